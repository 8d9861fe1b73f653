"""What is made of logits, and what is left of their gradient."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.zoo import uniform
from holdfast.testing.zoo import outputs

LOGITS = 20 * (uniform(200, 6) - 0.5)
PARTS = [
    *(outputs.Scaled(20.0), outputs.Boosted(), outputs.Uneven(), outputs.Cut(), outputs.Saturated()),
    *(outputs.Ranked(), outputs.OneHot(), outputs.Probabilities(), outputs.LogProbabilities(), outputs.Coded()),
    *(outputs.SharpSoftmax(0.5),),
]


def slope_of_margin(part: nn.Module, logits: Tensor) -> Tensor:
    """Of the lead of the first over the second of each row's logits."""
    leaf = logits.clone().requires_grad_()
    top = logits.topk(2, dim=1).indices
    lead = part(leaf).gather(1, top)
    (grad,) = torch.autograd.grad((lead[:, 0] - lead[:, 1]).sum(), leaf)
    return grad


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_the_largest_stays_the_largest(part: nn.Module) -> None:
    assert torch.equal(part(LOGITS).argmax(1), LOGITS.argmax(1))


@pytest.mark.parametrize("part", [outputs.Rounding(), outputs.Ranked(), outputs.OneHot(), outputs.RoundedConfidence()])
def test_steps_have_no_slope(part: nn.Module) -> None:
    assert not slope_of_margin(part, LOGITS).any()


def test_values() -> None:
    row = torch.tensor([[3.3, 1.0, -2.0, 2.9]])
    assert torch.equal(outputs.Rounding(0.5)(row), torch.tensor([[3.5, 1, -2, 3]]))
    assert torch.equal(outputs.Ranked()(row), torch.tensor([[3.0, 1, 0, 2]]))
    assert torch.equal(outputs.OneHot(7.0)(row), torch.tensor([[7.0, 0, 0, 0]]))
    assert torch.allclose(outputs.Cut(0.15)(row), torch.tensor([[0.15, -0.15, -0.15, -0.15]]))
    assert torch.allclose(outputs.Boosted(9.0)(row), row + torch.tensor([[9.0, 0, 0, 0]]))
    ninety = outputs.RoundedConfidence(1)(torch.tensor([[0.0, -2.3]])).exp()
    assert torch.allclose(ninety, torch.tensor([[0.901, 0.101]]))


def test_saturation_hides_margins_beyond_its_reach() -> None:
    lead = LOGITS.topk(2, dim=1).values
    far = (lead[:, 0] - lead[:, 1]) > 8
    assert far.any()
    near = 1 - (lead[:, 0] - lead[:, 1]) / 2
    for part in (outputs.Cut(), outputs.Saturated(), outputs.SharpSoftmax()):
        assert slope_of_margin(part, LOGITS[far]).abs().max() < 1e-6
        closer = LOGITS.scatter_add(1, LOGITS.argmax(1, keepdim=True), -(lead[:, :1] - lead[:, 1:] - 0.01))
        assert (slope_of_margin(part, closer).abs().amax(1) > 0.1).all(), near


def test_scaled_logits_silence_cross_entropy_and_not_the_margin() -> None:
    leaf = LOGITS.clone().requires_grad_()
    loss = functional.cross_entropy(outputs.Scaled(1e4)(leaf), LOGITS.argmax(1), reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf)
    assert (grad.abs().amax(1) == 0).double().mean() > 0.95
    assert slope_of_margin(outputs.Scaled(1e4), LOGITS).any(1).all()


def test_uneven_margins_rank_nothing() -> None:
    margins = (lambda top: top[:, 0] - top[:, 1])(LOGITS.topk(2, dim=1).values)
    factors = outputs.Uneven()(LOGITS)[:, 0] / LOGITS[:, 0]
    assert 1 <= factors.min() < 3 < 30 < factors.max() <= 100 + 1e-3
    assert torch.corrcoef(torch.stack([margins, factors.log()]))[0, 1].abs() < 0.2
