"""How close attacks come to the truth, where the truth is known: a linear model.

For a linear model the worst case of every wrong class is a linear function over ball and box, and its maximum has a
closed form. An attack can only find less, so its robust accuracy is never below the exact one.

    python examples/security_of_a_linear_model.py
"""

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from holdfast import FGSM, L0, L1, L2, PGD, Linf, Threat, load_data


def exact_robust_accuracy(linear: nn.Linear, x: Tensor, y: Tensor, threat: Threat) -> float:
    """Share of the inputs that no admissible change makes misclassified."""
    weight, logits = linear.weight.detach(), linear(x).detach()
    robust = torch.ones(len(x), dtype=torch.bool)
    for wrong in range(len(weight)):
        direction = weight[wrong] - weight[y]
        gap = logits[:, wrong] - logits.gather(1, y[:, None])[:, 0]
        worst = gap + (direction * threat.maximize(direction, x)).sum(1)
        robust &= (worst < 0) | (y == wrong)
    return robust.double().mean().item()


def main() -> None:
    train = next(load_data("digits", split="train").batches(10_000))
    test = next(load_data("digits").batches(10_000))
    fitted = LogisticRegression(max_iter=2000).fit(train.x.flatten(1).numpy(), train.y.numpy())
    linear = nn.Linear(64, 10).double()
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(fitted.coef_))
        linear.bias.copy_(torch.from_numpy(fitted.intercept_))
    x, y = test.x.flatten(1).double(), test.y
    attacks = {"FGSM": FGSM("margin"), "PGD": PGD(objective="margin")}
    print(f"{'threat':10}{'exact':>8}" + "".join(f"{name:>8}" for name in attacks))
    for threat in (Linf(0.1), L2(0.5), L1(2), L0(2)):
        exact = exact_robust_accuracy(linear, x, y, threat)
        found = [1 - attack(linear, x, y, threat=threat).success.double().mean().item() for attack in attacks.values()]
        print(f"{threat.name:10}{exact:8.1%}" + "".join(f"{share:8.1%}" for share in found))


if __name__ == "__main__":
    main()
