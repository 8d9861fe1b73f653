"""TRADES: the loss by hand and by finite differences, and where its ascent ends on a linear model."""

import math

import pytest
import torch
from torch import nn

from helpers.zoo import mlp, uniform
from holdfast import Linf, SettingError
from holdfast.models.query import Query
from holdfast.train import TRADES, Standard, Step

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
    by_hand = 0.0
    for row, worst, label in zip(x, x_adv, Y, strict=True):
        p, q = probabilities(net, row), probabilities(net, worst)
        by_hand += -math.log(p[label]) + 6 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert TRADES(THREAT).loss(net, x, x_adv, Y, STEP).item() == pytest.approx(by_hand / 7, rel=1e-12)


def test_the_gradient_flows_through_both_predictions():
    net, x, x_adv, method = mlp().double(), inputs(), inputs(2), TRADES(THREAT)
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


def test_without_the_divergence_it_is_ordinary_training_to_the_bit():
    net, x = mlp(), uniform(7, 6)
    losses = [
        TRADES(THREAT, beta=0).loss(net, x, uniform(7, 6, seed=2), Y, STEP),
        Standard().loss(net, x, x, Y, STEP),
        TRADES(THREAT).loss(net, x, x, Y, STEP),  # nor is there any at the clean input
    ]
    grads = [torch.autograd.grad(loss, list(net.parameters())) for loss in losses]
    assert losses[0] == losses[1] == losses[2]
    assert all(map(torch.equal, grads[0], grads[1]))


def test_the_ascent_leaves_the_clean_prediction_whatever_the_label():
    # Two classes: the divergence grows with the distance between the logits' differences, on either side, so the
    # ascent ends in the corner that the start leans to.
    net = nn.Linear(6, 2).double()
    x, step = uniform(64, 6, dtype=torch.float64) / 2 + 0.25, Step(3, 1, torch.arange(64))
    w = (net.weight[1] - net.weight[0]).detach()
    lean = (step.normal(x) @ w).sign().unsqueeze(1)
    assert lean.unique().tolist() == [-1, 1]
    for y in (torch.zeros(64, dtype=torch.int64), torch.arange(64) % 2):
        with Query(net, batch_size=64) as query:
            x_adv = TRADES(THREAT).perturb(query, x, y, step)
        torch.testing.assert_close(x_adv, x + 0.1 * lean * w.sign(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"step_size": 0.0}, {"beta": -1.0}, {"beta": math.nan}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(SettingError, match=f"trades: .*{next(iter(wrong))}"):
        TRADES(THREAT, **wrong)
