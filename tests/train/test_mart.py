"""MART: the loss by hand and by finite differences, and its ascent on a linear model."""

import math

import pytest
import torch
from torch import nn

from helpers.zoo import mlp, uniform
from holdfast import Linf, SettingError
from holdfast.models.query import Query
from holdfast.train import MART, Step

THREAT = Linf(0.1)
Y = torch.arange(7) % 4
STEP = Step(0, 0, torch.arange(7))


def inputs(seed: int = 1) -> torch.Tensor:
    return uniform(7, 6, seed=seed, dtype=torch.float64)


def probabilities(net: nn.Module, row: torch.Tensor) -> list[float]:
    odds = [math.exp(float(z)) for z in net(row[None])[0].detach()]
    return [value / sum(odds) for value in odds]


def test_the_loss_is_the_published_one():
    net, x, x_adv = mlp().double(), inputs(), inputs(2)
    by_hand, right = 0.0, 0
    for row, worst, label in zip(x, x_adv, Y, strict=True):
        p, q = probabilities(net, row), probabilities(net, worst)
        rival = max(value for k, value in enumerate(q) if k != label)
        right += q[label] > rival
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        by_hand += -math.log(q[label]) - math.log(1.0001 - rival) + 5 * (1 - p[label]) * divergence
    assert 0 < right < 7
    assert MART(THREAT).loss(net, x, x_adv, Y, STEP).item() == pytest.approx(by_hand / 7, rel=1e-12)


def test_the_gradient_flows_through_clean_predictions_and_their_weight():
    net, x, x_adv, method = mlp().double(), inputs(), inputs(2), MART(THREAT)
    bias, width = net[3].bias, 1e-5
    (grad,) = torch.autograd.grad(method.loss(net, x, x_adv, Y, STEP), bias)
    for k in range(len(bias)):
        values = []
        for side in (width, -width):
            with torch.no_grad():
                bias[k] += side
                values.append(method.loss(net, x, x_adv, Y, STEP).item())
                bias[k] -= side
        assert float(grad[k]) == pytest.approx((values[0] - values[1]) / (2 * width), abs=1e-8)


def test_a_loss_of_certain_and_wrong_predictions_is_finite():
    net = nn.Linear(6, 4).double()
    with torch.no_grad():
        net.bias.copy_(torch.tensor([1e4, 0.0, 0.0, 0.0]))
    loss = MART(THREAT).loss(net, inputs(), inputs(2), torch.ones(7, dtype=torch.int64), STEP)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, list(net.parameters())))


def test_the_ascent_raises_the_cross_entropy():
    net, x, y = nn.Linear(6, 2).double(), inputs() / 2 + 0.25, torch.arange(7) % 2
    w = (net.weight[1] - net.weight[0]).detach()
    with Query(net, batch_size=7) as query:
        x_adv = MART(THREAT).perturb(query, x, y, STEP)
    torch.testing.assert_close(x_adv, x + 0.1 * w.sign() * (1 - 2 * y).unsqueeze(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"step_size": 0.0}, {"beta": -1.0}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(SettingError, match=f"mart: .*{next(iter(wrong))}"):
        MART(THREAT, **wrong)
