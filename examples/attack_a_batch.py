"""Attack one batch, and look at what was found.

python examples/attack_a_batch.py
"""

import torch

from holdfast import L2, PGD, Linf, load_data, train
from holdfast.models.networks import digits_conv


def main() -> None:
    torch.manual_seed(0)
    model = train(digits_conv(), "digits", "linf:0.1", method="standard", settings={"epochs": 5}).model
    batch = next(load_data("digits").batches(64))
    for threat in (Linf(0.1), L2(0.5)):
        result = PGD(steps=40, restarts=2)(model, batch.x, batch.y, threat=threat)
        with torch.no_grad():
            answers = model(result.x_adv).argmax(1)
        print(f"{threat.name}: {int(result.success.sum())} of {len(batch)} misclassified")
        # Where the clean input was misclassified already, it is returned as it is, at a distance of 0.
        for i in (result.success & (result.distance > 0)).nonzero()[:3, 0].tolist():
            print(
                f"  example {i}: a {batch.y[i]} is taken for a {answers[i]}, {result.distance[i]:.3f} from the clean "
                f"input, after {result.forwards[i]} forwards"
            )


if __name__ == "__main__":
    main()
