import pytest
import torch
from torch import Tensor, nn

from helpers.attacks import snapshot
from helpers.zoo import linear, mlp, random_linear, uniform
from holdfast.attacks import PGD
from holdfast.errors import ModelError
from holdfast.models.bpda import BPDA
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin
from holdfast.threats import Linf


def quantise(x: Tensor) -> Tensor:
    return (x * 32).round() / 32


class Quantise(nn.Module):
    """The same by way of NumPy, where no gradient can follow, and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.trained.append(self.training)
        x.mul_(32)
        return torch.from_numpy(x.numpy().round()) / 32


def test_the_forward_pass_is_the_part_and_the_backward_pass_goes_straight_through():
    model = random_linear(6, 3)
    x, y = uniform(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    before = x.clone()
    for part in (quantise, Quantise()):
        with Query(nn.Sequential(BPDA(part), model)) as query, Query(model) as bare:
            answer = query.gradient(x, lambda logits: margin(logits, y))
            expected = bare.gradient(quantise(x), lambda logits: margin(logits, y))
            assert torch.equal(answer.logits, expected.logits)
            assert torch.equal(answer.grad, expected.grad)
            assert torch.equal(query.bare_logits(x), bare.bare_logits(quantise(x)))
        assert torch.equal(x, before)


def test_the_substitute_gives_the_gradient_at_the_same_input():
    x = uniform(4, 6, dtype=torch.float64).requires_grad_(True)
    out = BPDA(lambda x: x.sign(), torch.tanh)(2 * x - 1)
    assert torch.equal(out, (2 * x - 1).sign())
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad, 2 / (2 * x - 1).cosh() ** 2)


def test_parts_may_change_the_shape():
    x = uniform(4, 1, 4, 4).requires_grad_(True)
    layer = BPDA(lambda x: nn.functional.max_pool2d(x, 2).round(), lambda x: nn.functional.avg_pool2d(x, 2))
    out = layer(x)
    assert torch.equal(out, nn.functional.max_pool2d(x, 2).round())
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, torch.full_like(x, 0.25))


def test_pgd_sees_through_it_and_breaks_what_it_could_not_even_ask():
    """A part whose gradient is cut: refused without a substitute, and exactly as weak as it is with one."""
    weight = torch.tensor([[1.0, -1.0, 0.5, -0.5, 1.0, -1.0]])
    model = linear(torch.cat([weight, -weight]).double(), torch.zeros(2).double())
    x = 0.5 + (uniform(20, 6, seed=4, dtype=torch.float64) - 0.5) / 2
    with torch.no_grad():
        y = model(quantise(x)).argmax(1)
    part = Quantise()
    with pytest.raises(ModelError, match="no gradient reaches the model's input"):
        PGD(steps=10)(nn.Sequential(Wrapped(part), model), x, y, threat=Linf(0.05))
    result = PGD(steps=10)(nn.Sequential(BPDA(part), model), x, y, threat=Linf(0.05))
    gap = (model(quantise(x))[:, 0] - model(quantise(x))[:, 1]).abs().detach()
    # The quantised input can be moved by 1/32 at least in every coordinate, and by less than 0.05 + 1/32.
    assert result.success[gap < 2 * weight.abs().sum() / 32].all()
    assert not result.success[gap > 2 * weight.abs().sum() * (0.05 + 1 / 32)].any()
    assert result.success.any()
    assert (gap > 2 * weight.abs().sum() * (0.05 + 1 / 32)).any()
    with torch.no_grad():
        assert torch.equal(model(quantise(result.x_adv)).argmax(1) != y, result.success)


class Wrapped(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x.detach().clone())


def test_it_is_borrowed_with_the_model():
    part = Quantise()
    model = nn.Sequential(BPDA(part, nn.Identity()), mlp())
    model.train()
    before = snapshot(model)
    x, y = uniform(5, 6), torch.tensor([0, 1, 2, 3, 0])
    PGD(steps=2)(model, x, y, threat=Linf(0.05))
    assert snapshot(model) == before
    assert part.trained
    assert not any(part.trained)


def test_a_substitute_that_does_not_fit():
    x = uniform(3, 6)
    with pytest.raises(ModelError, match=r"bpda: the part returns torch.float32 \(3, 2\) and its substitute"):
        BPDA(lambda x: x[:, :2])(x)
    with pytest.raises(ModelError, match=r"bpda: the part returns torch.int64"):
        BPDA(lambda x: x.long())(x)
