"""Ordinary training against hand computation."""

import math

import pytest
import torch

from helpers.training import perturbed
from helpers.zoo import mlp, uniform
from holdfast import SettingError
from holdfast.train import Standard, Step


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (20.0, 0.0), (3.0, 0.1)])
def test_the_loss_is_the_mean_cross_entropy(temperature, smoothing):
    net, x, y = mlp().double(), uniform(5, 6, dtype=torch.float64), torch.arange(5) % 4
    step = Step(0, 0, torch.arange(5), label_smoothing=smoothing)
    total = 0.0
    for row, label in zip(net(x).tolist(), y.tolist(), strict=True):
        size = math.log(sum(math.exp(z / temperature) for z in row))
        losses = [size - z / temperature for z in row]
        total += (1 - smoothing) * losses[label] + smoothing * sum(losses) / 4
    method = Standard(temperature)
    assert perturbed(method, net, x, y, step) is x
    assert method.loss(net, x, x, y, step).item() == pytest.approx(total / 5, rel=1e-12)


def test_a_temperature_is_positive():
    with pytest.raises(SettingError, match=r"^standard: temperature must be positive, got 0$"):
        Standard(0)
