"""Free adversarial training: one backward pass for two gradients, and what is carried from step to step."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.training import network, perturbed
from helpers.zoo import mlp, uniform
from holdfast import L2, Linf, SettingError
from holdfast.data import from_tensors
from holdfast.train import Free, Recipe, Step, fit

Y = torch.arange(8) % 4


def batches(count):
    return [uniform(8, 6, seed=seed, dtype=torch.float64) for seed in range(count)]


def gradients(net, x, y):
    """Those of the parameters and of the input, asked for apart from all else."""
    inputs = x.detach().clone().requires_grad_()
    loss = functional.cross_entropy(net(inputs), y)
    *parameters, own = torch.autograd.grad(loss, [*net.parameters(), inputs])
    return parameters, own


def test_the_backward_pass_of_the_loss_also_moves_the_perturbation():
    net, memory = mlp().double(), {}
    (x, other), delta = batches(2), torch.zeros(8, 6, dtype=torch.float64)
    # Two replays of a batch and the first of the next, whose examples take over the places and what is held there.
    for number, inputs in enumerate([x, x, other]):
        method, step = Free(Linf(0.1), replays=2), Step(number, 0, torch.arange(8) + 8 * (number // 2), memory=memory)
        x_adv = perturbed(method, net, inputs, Y, step)
        torch.testing.assert_close(x_adv, (inputs + delta).clamp(0, 1), rtol=0, atol=1e-15)
        expected, own = gradients(net, x_adv, Y)
        net.zero_grad()
        torch.autograd.backward(method.loss(net, inputs, x_adv, Y, step))
        for parameter, gradient in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-15)
        moved = (x_adv - inputs + 0.1 * own.sign()).clamp(-0.1, 0.1)
        delta = (inputs + moved).clamp(0, 1) - inputs
        torch.testing.assert_close(memory["delta"], delta, rtol=0, atol=1e-12)
        assert not memory["delta"].requires_grad


def test_the_input_gradient_is_that_of_training_mode():
    net, x = network().double(), batches(1)[0].reshape(8, 1, 2, 3)
    method, step = Free(L2(0.3, box=None)), Step(0, 0, torch.arange(8))
    own = torch.autograd.grad(functional.cross_entropy(net(inputs := x.clone().requires_grad_()), Y), inputs)[0]
    torch.autograd.backward(method.loss(net, x, x, Y, step))
    expected = 0.3 * own / own.flatten(1).norm(dim=1).reshape(8, 1, 1, 1)
    torch.testing.assert_close(step.memory["delta"], expected, rtol=1e-12, atol=0)


def test_what_is_carried_fits_the_budgets_that_are_in_force():
    memory = {"delta": torch.full((8, 6), 0.1, dtype=torch.float64)}
    eps = torch.linspace(0, 0.2, 8, dtype=torch.float64)
    x = batches(1)[0]
    x_adv = perturbed(Free(Linf(eps)), mlp().double(), x, Y, Step(1, 0, torch.arange(8), share=0.5, memory=memory))
    expected = torch.minimum(torch.tensor(0.1), eps / 2).unsqueeze(1)
    torch.testing.assert_close(x_adv, (x + expected).clamp(0, 1), rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Recording(Free):
    rows: list[list[int]] = field(default_factory=list)
    judged_by: ClassVar[str] = "robust"

    def loss(self, model, x, x_adv, y, step):
        self.rows.append(step.index.tolist())
        return super().loss(model, x, x_adv, y, step)


def test_every_batch_makes_replays_updates_and_an_epoch_costs_as_much_as_any():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    data = from_tensors(uniform(50, 6), torch.arange(50) % 4)
    method, rates = Recording(Linf(0.1), replays=3), []
    recipe = Recipe(epochs=6, batch_size=8, validation=10)
    fit(net, data, method, Linf(0.1), recipe, on_progress=lambda progress: rates.append(progress.step))
    # 40 examples are 5 batches: 6 epochs are 30 updates, made with 10 batches, which are 2 rounds through the data.
    assert len(method.rows) == len(rates) == 30
    used = method.rows[::3]
    assert [used[update // 3] for update in range(30)] == method.rows
    for part in (used[:5], used[5:]):
        assert len(set().union(*part)) == 40


def test_a_batch_is_used_at_least_once():
    with pytest.raises(SettingError, match=r"^free: replays must be at least 1, got 0$"):
        Free(Linf(0.1), replays=0)
