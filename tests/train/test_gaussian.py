"""Gaussian augmentation: the noise that is added, and the loss under it."""

import math

import pytest
import torch
from torch.nn import functional

from helpers.zoo import mlp, uniform
from holdfast import SettingError
from holdfast.models.query import Query
from holdfast.train import Gaussian, Step


def test_the_noise_has_the_given_deviation_and_leaves_the_box():
    net, x, step = mlp(), torch.ones(64, 1, 20, 30), Step(4, 2, torch.arange(64))
    noise = Gaussian(0.25).perturb(Query(net), x, torch.zeros(64), step) - x
    assert noise.shape == x.shape
    assert noise.mean() == pytest.approx(0, abs=5 * 0.25 / 38400**0.5)
    assert noise.std() == pytest.approx(0.25, rel=5 / (2 * 38400) ** 0.5)
    assert (noise > 0).double().mean() == pytest.approx(0.5, abs=0.02)


def test_the_loss_is_the_cross_entropy_at_noisy_inputs():
    net, x, noisy, y = mlp(), uniform(5, 6), uniform(5, 6, seed=2), torch.arange(5) % 4
    loss = Gaussian(0.1).loss(net, x, noisy, y, Step(0, 0, torch.arange(5)))
    torch.testing.assert_close(loss, functional.nll_loss(net(noisy).log_softmax(1), y))


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_wrong_deviation_is_named(sigma):
    with pytest.raises(SettingError, match="gaussian: sigma"):
        Gaussian(sigma)
