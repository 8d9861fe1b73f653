"""Networks in fewer bits."""

import torch

from helpers.zoo import mlp, uniform
from holdfast.testing.zoo import honest, precision

X = uniform(5, 6)


@torch.no_grad()
def test_computes_in_another_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        answers = precision.Lowered(mlp(), dtype)(X)
        assert answers.dtype == torch.float32
        assert torch.equal(answers, mlp().to(dtype)(X.to(dtype)).float())


def test_half_overflows() -> None:
    logits = torch.tensor([[1.0, 0.2, -0.7]])
    assert torch.equal(precision.OverflowingHalf(1e5)(logits), torch.tensor([[torch.inf, 20000, -torch.inf]]))


def test_honest_parts_leave_answers_as_they_are() -> None:
    net = mlp()
    for same in (honest.Checkpointed(net), honest.Observed(net)):
        assert torch.equal(same(X), net(X))
    assert torch.allclose(honest.Standardised()(X), X, atol=1e-6)
    assert torch.equal(honest.EightBit()(X * 0 + 0.5), torch.full_like(X, 128 / 255))


def test_hand_written_gradient_is_right() -> None:
    leaf = (uniform(3, 4, dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(honest.HandWritten(), (leaf,))
