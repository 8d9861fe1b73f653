"""SmoothAdv: the smoothed classifier's gradient, the noise that stays the same, the loss under it."""

import math

import pytest
import torch
from torch.nn import functional

from helpers.zoo import mlp, uniform
from holdfast import L2, SettingError
from holdfast.models.query import Query
from holdfast.train import SmoothAdv, Step

THREAT = L2(0.3, box=None)
Y = torch.arange(7) % 4
STEP = Step(2, 5, torch.arange(7))
METHOD = SmoothAdv(THREAT, 0.4, samples=3, steps=1, step_size=0.5)


def noises() -> torch.Tensor:
    """``(N, samples, 6)``."""
    return 0.4 * STEP.draws().normal(18).reshape(7, 3, 6)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_step_goes_up_the_smoothed_classifiers_loss(scale):
    # At the larger scale labels have probabilities down to 1e-100, which float32 does not know. (Where they are near 1
    # under some noise, float32 does not know the gradient.)
    net = mlp()
    with torch.no_grad():
        net[3].weight *= scale
    exact = mlp().double()
    exact.load_state_dict(net.state_dict())
    x = uniform(7, 6, dtype=torch.float64).requires_grad_()
    probability = exact((x.unsqueeze(1) + noises()).flatten(0, 1)).softmax(1).reshape(7, 3, 4)
    smoothed = probability.mean(1).gather(1, Y.unsqueeze(1)).squeeze(1)
    (grad,) = torch.autograd.grad(-smoothed.log().sum(), x)
    expected = x + 0.5 * 0.3 * functional.normalize(grad, dim=1)
    with Query(net, batch_size=7) as query:
        x_adv = METHOD.perturb(query, x.detach().float(), Y, STEP)
    known = torch.ones(7, dtype=torch.bool) if scale == 1.0 else smoothed < 1e-3
    torch.testing.assert_close(x_adv[known], expected.detach().float()[known], rtol=0, atol=2e-5)
    assert scale == 1.0 or smoothed.min() < 1e-45


def test_the_loss_is_taken_under_the_noise_of_the_ascent():
    net, x, x_adv = mlp().double(), uniform(7, 6, dtype=torch.float64), uniform(7, 6, seed=2, dtype=torch.float64)
    pairs = [(i, k) for i in range(7) for k in range(3)]
    by_hand = [-net((x_adv[i] + noises()[i, k])[None]).log_softmax(1)[0, Y[i]] for i, k in pairs]
    torch.testing.assert_close(METHOD.loss(net, x, x_adv, Y, STEP), sum(by_hand) / 21)


def test_the_whole_budget_can_be_spent_and_no_more():
    net, x = mlp(), uniform(7, 6)
    with Query(net, batch_size=7) as query:
        x_adv = SmoothAdv(THREAT, 0.01, samples=2, steps=4).perturb(query, x, Y, STEP)
    length = (x_adv - x).norm(dim=1)
    assert length.max() <= 0.3 + 1e-6
    assert length.median() >= 0.29


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"sigma": math.nan}, {"samples": 0}, {"steps": 0}, {"step_size": 0}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(SettingError, match=f"smoothadv: .*{next(iter(wrong))}"):
        SmoothAdv(THREAT, **{"sigma": 0.1, **wrong})
