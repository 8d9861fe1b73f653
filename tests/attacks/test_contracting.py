import math

import pytest
import torch
from torch import nn

from helpers.attacks import NORMS, check_attack, check_superset
from helpers.zoo import Wavy, random_linear, uniform
from holdfast.attacks import ContractingPGD, Problem, Rows
from holdfast.engine.attack import roams
from holdfast.errors import SettingError
from holdfast.models.query import Query

BALLS = ["linf", "l2", "l1"]


@pytest.mark.parametrize("norm", BALLS)
def test_shared(norm):
    check_attack(ContractingPGD(steps=6, radius=2.0, restarts=2), norm, forwards=14, backwards=12)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_shared_with_targets(norm):
    check_attack(ContractingPGD(steps=4, radius=2.0, targets=3, objective="margin"), norm, forwards=15, backwards=12)


def test_more_never_helps_the_defender():
    check_superset(ContractingPGD(steps=4, radius=2.0), ContractingPGD(steps=4, radius=2.0, restarts=3), "l1")


def test_moves_are_those_of_the_formula():
    """A scalar run written from the docstring, far from the box: the ball contracts, steps shrink with it, momentum."""
    model, eps, steps, radius = Wavy(), 0.05, 10, 5.0
    x = 0.4 + 0.2 * uniform(3, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    with Query(model, batch_size=4) as query:
        rows = Rows.fresh(NORMS["l2"](eps), torch.arange(3), x, y, clean_logits=query.bare_logits(x))
        problem = Problem(query, NORMS["l2"](eps), rows, roams=True)
        attack = ContractingPGD(steps=steps, radius=radius)
        state = attack.init(problem)
        ours = [state.z]
        while not attack.done(state).all():
            state = attack.step(problem, state)
            ours.append(state.z)

    def back(point: torch.Tensor, size: float) -> torch.Tensor:
        return point * min(1.0, size / point.norm().item())

    for i in range(3):
        point = last = torch.zeros(8, dtype=torch.float64)
        for k in range(steps):
            assert torch.allclose(ours[k][i], point, atol=1e-9)
            given = (x[i] + point).requires_grad_(True)
            loss = nn.functional.cross_entropy(model(given[None]), y[i : i + 1])
            (grad,) = torch.autograd.grad(loss, given)
            ball = eps * (1 + (radius - 1) * max(0.0, 1 - (k + 1) / (0.6 * steps)))
            step = 2 * ball * 0.5 * (1 + math.cos(math.pi * k / steps))
            ahead = back(point + step * grad / grad.norm(), ball)
            if k:
                ahead = back(0.75 * ahead + 0.25 * (2 * point - last), ball)
            point, last = ahead, point
        assert ours[steps][i].norm() <= eps * (1 + 1e-6)


@pytest.mark.parametrize("norm", BALLS)
def test_on_a_linear_model_it_ends_at_the_optimum(norm):
    model = random_linear(6, 2)
    x = uniform(10, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = NORMS[norm](0.02)
    result = ContractingPGD(steps=40, objective="margin")(model, x, y, threat=threat)
    rows = torch.autograd.functional.jacobian(model, x[:1])[0, :, 0]
    weight = rows[1 - y] - rows[y]
    gain = (weight * threat.maximize(weight, x)).sum(1)
    best = (model(x).gather(1, 1 - y[:, None]) - model(x).gather(1, y[:, None]))[:, 0] + gain
    still = ~result.success
    assert still.sum() >= 5
    assert torch.allclose(result.objective[still], best[still], atol=1e-4)


class Trap(nn.Module):
    """The gradient at the clean input, and all around it, points along a coordinate that never breaks anything.

    Class 1 wins by the second coordinate alone, whose slope is hidden until it has moved by more than the budget, or
    the first one has reached its end.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lure, way = x[:, 0], x[:, 1]
        far = (lure > 0.9).to(x) + (way > 0.05).to(x)
        rise = torch.where(far > 0, 2 * way, way.detach() * 2) - 0.3 + 0.1 * lure * (lure <= 0.9)
        return torch.stack([torch.zeros_like(rise), rise], 1)


def test_what_gradients_inside_the_ball_hide_is_found_from_outside():
    x, y = torch.tensor([[0.1, 0.0]]).double(), torch.tensor([0])
    threat = NORMS["l1"](0.2)
    inside = ContractingPGD(radius=1.0)(Trap(), x, y, threat=threat)
    outside = ContractingPGD(radius=20.0)(Trap(), x, y, threat=threat)
    assert not inside.success
    assert outside.success
    assert outside.distance <= 0.2 * (1 + 1e-6)


def test_what_it_sees_outside_the_budget_is_not_believed():
    assert roams(ContractingPGD())


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"restarts": 0}, {"step_size": 0.0}, {"targets": -1}, {"radius": 0.5}]
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="contracting-pgd: "):
        ContractingPGD(**settings)
