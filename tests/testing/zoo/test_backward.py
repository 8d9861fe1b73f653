"""What wrong backward passes are, beside the gradient that there is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.zoo import mlp, uniform
from holdfast.testing.zoo import activations, backward, outputs


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((model(leaf) * torch.tensor([1.0, -2.0, 3.0, 0.5])).sum(), leaf)
    return grad


NET, X = mlp(), uniform(5, 6)
TRUE = gradient(NET, X)
SIGNS = torch.tensor([1.0, -1, 1, -1, 1, -1])
EXPECTED: dict[Callable[[Tensor, Tensor], Tensor], Tensor] = {
    backward.flipped: -TRUE,
    backward.half_flipped: TRUE * SIGNS,
    backward.ones: torch.ones_like(TRUE),
    backward.nothing: torch.zeros_like(TRUE),
    backward.sparse: TRUE * torch.tensor([1.0, 0, 0, 0, 0, 0]),
    backward.shifted: TRUE[:, [3, 4, 5, 0, 1, 2]],
    backward.mirrored: TRUE.flip(1),
    backward.huge: TRUE.sign() * torch.inf,
    backward.not_a_number: torch.full_like(TRUE, torch.nan),
}


@pytest.mark.parametrize("identity", [backward.Lying, backward.Hooked])
@pytest.mark.parametrize("change", EXPECTED, ids=lambda change: change.__name__)
def test_changes_the_gradient_and_nothing_else(identity: type[nn.Module], change: backward.Change) -> None:
    model = nn.Sequential(identity(change), NET)
    assert torch.equal(model(X), NET(X))
    assert torch.equal(gradient(model, X).nan_to_num(7.0), EXPECTED[change].nan_to_num(7.0))


def test_hash_noise_and_drip_say_nothing_of_the_gradient() -> None:
    x, true = uniform(50, 784), uniform(50, 784, seed=1) - 0.5
    noise = backward.Noise()
    for change in (backward.hashed, noise, backward.drip):
        said = change(x, true)
        assert ((said.sign() * true.sign()).mean()).abs() < 0.03
    assert torch.equal(backward.hashed(x, true), backward.hashed(x, true))
    assert not torch.equal(noise(x, true), noise(x, true))


def test_tiny_is_below_what_numbers_are_normal() -> None:
    said = backward.tiny(X, TRUE)
    assert said.abs().max() < torch.finfo(torch.float32).tiny
    assert (said != 0).any()


def test_stale_lags_behind() -> None:
    model = nn.Sequential(backward.Lying(backward.Stale()), NET)
    assert not gradient(model, X).any()
    assert torch.equal(gradient(model, X.flip(0)), TRUE)


def test_cut_graphs() -> None:
    connected = nn.Sequential(backward.Detached(connected=True), NET)
    assert not gradient(connected, X).any()
    for cut in (backward.Detached(connected=False), backward.ThroughNumpy()):
        with torch.no_grad():
            assert torch.equal(cut(X), X)
        assert not cut(X.clone().requires_grad_()).requires_grad


def test_branches_see_the_grad_mode() -> None:
    leaf = X.clone().requires_grad_()
    branching, faced = backward.Branching(NET), backward.TwoFaced(NET)
    assert torch.equal(branching(leaf), NET(1 - leaf))
    with torch.no_grad():
        assert torch.equal(branching(leaf), NET(leaf))
    assert torch.equal(faced(leaf), NET(leaf))
    assert torch.equal(gradient(faced, X), gradient(nn.Sequential(_Mirror(), NET), X))


class _Mirror(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 - x


def test_replaced_hands_the_logits_gradient_back() -> None:
    model = backward.Replaced(NET, outputs.OneHot(), backward.flipped)
    assert torch.equal(model(X), outputs.OneHot()(NET(X)))
    assert torch.equal(gradient(model, X), -TRUE)


def test_layers_and_units() -> None:
    hooked = activations.LayerHooked(mlp(), backward.flipped)
    assert torch.equal(hooked(X), NET(X))
    # The hook is on the last layer: everything before it gets the other sign.
    assert torch.equal(gradient(hooked, X), -TRUE)
    lying = activations.Activated(mlp(), backward.Lying(backward.nothing))
    assert torch.equal(lying(X), NET(X))
    assert not gradient(lying, X).any()
