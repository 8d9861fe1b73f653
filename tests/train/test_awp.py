"""Adversarial weight perturbation: where the weights go, that the gradient is taken there, and what stays put."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from helpers.zoo import mlp, seeded, uniform
from holdfast import Linf, SettingError
from holdfast.train import AWP, IBP, TRADES, Standard, Step

Y = torch.arange(7) % 4
GAMMA = 0.05


def step() -> Step:
    return Step(0, 0, torch.arange(7))


def inputs(seed: int = 1) -> torch.Tensor:
    return uniform(7, 6, seed=seed, dtype=torch.float64)


def moved(net: nn.Module, inner, names: list[str]) -> nn.Module:
    """A copy of the network whose named weights went up the loss by ``GAMMA`` times their length."""
    trial, twin = copy.deepcopy(net), copy.deepcopy(net)
    trial.requires_grad_(True)
    weights = dict(trial.named_parameters())
    grads = torch.autograd.grad(inner.loss(trial, inputs(), inputs(2), Y, step()), [weights[name] for name in names])
    for name, grad in zip(names, grads, strict=True):
        shift = GAMMA * weights[name].detach().norm() / grad.norm() * grad
        with torch.no_grad():
            dict(twin.named_parameters())[name].add_(shift)
    return twin


def check(net: nn.Module, inner, names: list[str]) -> None:
    """Value and gradient are those of the inner loss at the moved weights, and the weights are where they were."""
    twin, before = moved(net, inner, names), copy.deepcopy(net.state_dict())
    loss = AWP(inner, GAMMA).loss(net, inputs(), inputs(2), Y, step())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    expected = inner.loss(twin, inputs(), inputs(2), Y, step())
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    mine, theirs = ([p for p in module.parameters() if p.requires_grad] for module in (net, twin))
    for a, b in zip(torch.autograd.grad(loss, mine), torch.autograd.grad(expected, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name), rtol=1e-12, atol=0)


@pytest.mark.parametrize("inner", [Standard(), TRADES(Linf(0.1)), IBP(Linf(0.1))])
def test_the_loss_is_the_inner_one_at_weights_moved_against_it(inner):
    net = mlp().double()
    check(net, inner, ["1.weight", "3.weight"])
    check(nn.Sequential(net), inner, ["0.1.weight", "0.3.weight"])


def test_frozen_tensors_and_vectors_stay():
    net = mlp().double()
    net[1].weight.requires_grad_(False)
    check(net, Standard(), ["3.weight"])


def test_batch_norm_learns_from_the_loss_that_is_minimised_alone():
    net = seeded(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).double(), 3
    ).train()
    check(net, Standard(), ["0.weight", "3.weight"])
    assert net[1].num_batches_tracked == 1


def test_tied_weights_move_once():
    net = seeded(
        lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)).double(), 3
    )
    net[2].weight = net[0].weight
    check(net, Standard(), ["0.weight", "4.weight"])


def test_a_gradient_of_zero_moves_nothing():
    net = mlp().double()
    with torch.no_grad():
        net[3].weight.zero_()
    # The first layer has no gradient, and the second no length.
    loss = AWP(Standard(), GAMMA).loss(net, inputs(), inputs(2), Y, step())
    torch.testing.assert_close(loss, Standard().loss(net, inputs(), inputs(2), Y, step()), rtol=1e-14, atol=0)


@dataclass(frozen=True)
class Counting:
    """Remembers how many losses were taken, and doubles the batches in a row."""

    replays: ClassVar[int] = 2

    def perturb(self, query, x, y, step):
        return x + 1

    def loss(self, model, x, x_adv, y, step):
        step.memory["losses"] = step.memory.get("losses", torch.tensor(0)) + 1
        return model(x_adv).square().mean()


def test_the_inner_method_perturbs_replays_and_remembers():
    method, memory = AWP(Counting()), {}
    assert method.replays == 2
    assert torch.equal(method.perturb(None, torch.zeros(2), None, None), torch.ones(2))
    for number in range(3):
        method.loss(mlp(), uniform(7, 6), uniform(7, 6), Y, Step(number, 0, torch.arange(7), memory=memory))
    assert memory["losses"] == 3


def test_a_wrong_length_is_named():
    with pytest.raises(SettingError, match="awp: gamma"):
        AWP(Standard(), 0.0)
