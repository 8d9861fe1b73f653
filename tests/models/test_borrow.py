import pytest
import torch
from torch import nn

from helpers.attacks import snapshot
from helpers.zoo import Moody, uniform
from holdfast.models.borrow import borrowed


def use(model: nn.Module) -> None:
    with torch.no_grad():
        model(uniform(4, 6))


def test_inside_the_model_is_evaluated_and_frozen():
    model = Moody()
    with borrowed(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert not model.body[3].training
    assert not model.body[1].bias.requires_grad
    assert model.body[1].weight.requires_grad


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_it_is_given_back_as_it_was(error):
    model = Moody()
    torch.manual_seed(3)
    before = snapshot(model)

    def hold() -> None:
        with borrowed(model, seed=7):
            for _ in range(3):
                use(model)
            assert int(model.calls) == 3
            assert snapshot(model) != before
            if error is not None:
                raise error

    if error is None:
        hold()
    else:
        with pytest.raises(error):
            hold()
    assert snapshot(model) == before


def test_gradients_are_left_alone():
    model = Moody()
    grads = [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()]
    with borrowed(model):
        x = uniform(4, 6).requires_grad_(True)
        torch.autograd.grad(model(x).sum(), x)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        if grad is not None:
            assert id(parameter.grad) == grad[0]
            assert torch.equal(parameter.grad, grad[1])


def test_random_state_inside_depends_on_the_seed_alone():
    drawn = []
    for outer in (1, 2):
        torch.manual_seed(outer)
        with borrowed(Moody(), seed=5):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    with borrowed(Moody(), seed=6):
        assert not torch.equal(torch.rand(3), drawn[0])


def test_devices_that_the_model_does_not_use_are_not_seeded(monkeypatch):
    model, seeded = Moody(), []
    for name in ("cuda", "mps", "xpu"):
        module = getattr(torch, name)
        for function in ("manual_seed", "manual_seed_all"):
            if hasattr(module, function):
                monkeypatch.setattr(module, function, seeded.append)
    with borrowed(model):
        pass
    assert seeded == []


@pytest.mark.parametrize("fast", [True, False])
def test_modes_of_torch_are_given_back(monkeypatch, fast):
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", fast)
    with borrowed(nn.Linear(2, 2)):
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_models_that_refuse_to_change_their_mode():
    class Fixed(nn.Module):
        def train(self, mode=True):
            raise NotImplementedError("fixed at export")

    model = Fixed()
    with borrowed(model):
        assert not model.training
    assert model.training


def test_borrowing_twice():
    model = Moody()
    before = snapshot(model)
    with borrowed(model), borrowed(model):
        use(model)
    assert snapshot(model) == before
