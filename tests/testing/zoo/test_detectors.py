"""Detectors: hardly a clean input is suspect, and many adversarial ones are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.networks import ordinary_digits
from holdfast import load_data
from holdfast.testing.zoo import detectors, inputs
from holdfast.testing.zoo.randomness import perturbed

MAKES: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "squeezed": lambda net, x: detectors.Squeezed(net, x, inputs.Rounded(4)),
    "distant": detectors.Distant,
    "dimensional": detectors.Dimensional,
    "odd": lambda net, x: detectors.Odd(net, x, 0.3),
    "unstable": detectors.Unstable,
}


@pytest.fixture(scope="module")
def moved() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean inputs, their labels, and inputs moved just into another class, and deep into one."""
    batch = next(load_data("digits", split="test", examples="0:200").batches(200))
    net = ordinary_digits()
    right = net(batch.x).argmax(1) == batch.y
    x, y = batch.x[right], batch.y[right]

    def ascend(*, on: bool) -> Tensor:
        z = x.clone()
        for _ in range(30):
            z = z.detach().requires_grad_()
            logits = net(z)
            lead = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1) - logits.gather(1, y.unsqueeze(1))[:, 0]
            (slope,) = torch.autograd.grad(lead.sum(), z)
            size = 0.025 * ((lead < 0) | on).to(x.dtype).view(-1, 1, 1, 1)
            z = torch.clamp(z.detach() + size * slope.sign(), x - 0.2, x + 0.2).clamp(0, 1)
        return z.detach()

    return x, y, ascend(on=False), ascend(on=True)


def test_swaps_the_two_largest() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.0]])
    swapped = detectors.swapped(logits, torch.tensor([True, False]))
    assert torch.equal(swapped, torch.tensor([[1.0, 3.0, 5.0], [1.0, 5.0, 3.0]]))


@torch.no_grad()
@pytest.mark.parametrize("name", MAKES)
def test_suspects_few_clean_inputs_and_more_adversarial_ones(
    name: str, moved: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    net, (x, y, near, deep) = ordinary_digits(), moved
    fitted = next(load_data("digits", split="train", examples="0:800").batches(800)).x
    model = MAKES[name](net, fitted)

    def suspects(inputs: Tensor) -> float:
        return float((model(inputs).argmax(1) != net(inputs).argmax(1)).double().mean())

    assert suspects(x) < 0.08
    assert max(suspects(near), suspects(deep)) > suspects(x) + 0.03
    assert all((net(adversarial).argmax(1) != y).double().mean() > 0.9 for adversarial in (near, deep))


@torch.no_grad()
def test_ensemble_abstains_where_it_disagrees(moved: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    nets = [ordinary_digits(), *(perturbed(ordinary_digits(), 0.2, seed) for seed in range(3))]
    x = moved[2]
    answers, classes = detectors.Abstaining(nets)(x), torch.stack([net(x).argmax(1) for net in nets])
    same = (classes == classes[0]).all(0)
    assert 0 < int(same.sum()) < len(x)
    assert torch.equal(answers[same].argmax(1), classes[0][same])
    assert not answers[~same].any()
