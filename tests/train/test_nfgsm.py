"""N-FGSM against a step by hand: what is clipped, and what is not."""

import pytest
import torch
from torch.nn import functional

from helpers.training import perturbed
from helpers.zoo import mlp, uniform
from holdfast import L1, L2, Linf, SettingError
from holdfast.train import NFGSM, Step

X, INDEX = uniform(9, 6, dtype=torch.float64), torch.arange(9)
NET, Y, STEP = mlp().double(), INDEX % 4, Step(4, 7, INDEX)


def gradient(x):
    inputs = x.clone().requires_grad_()
    return torch.autograd.grad(functional.cross_entropy(NET(inputs), Y), inputs)[0]


def test_one_step_from_a_noisy_input_is_clipped_to_the_box_alone():
    noisy = (X + 0.1 * (2 * STEP.draws().uniform(6) - 1)).clamp(0, 1)
    by_hand = (noisy + 0.05 * gradient(noisy).sign()).clamp(0, 1)
    x_adv = perturbed(NFGSM(Linf(0.05)), NET, X, Y, STEP)
    torch.testing.assert_close(x_adv, by_hand, rtol=0, atol=1e-15)
    moved = (x_adv - X).abs()
    assert moved.max() > 2.5 * 0.05
    assert (moved > 0.05).double().mean() > 0.3
    shorter = perturbed(NFGSM(Linf(0.05), noise=1.0, step_size=0.5), NET, X, Y, STEP)
    noisy = (X + 0.05 * (2 * STEP.draws().uniform(6) - 1)).clamp(0, 1)
    torch.testing.assert_close(shorter, (noisy + 0.025 * gradient(noisy).sign()).clamp(0, 1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", [L2, L1])
def test_in_other_norms_the_noise_fills_a_larger_ball_and_the_step_leads_on(norm):
    threat = norm(0.3, box=None)
    noise = threat.scaled(2.0).sample(X, STEP.draws())
    assert threat.length(X + noise - X).max() > 0.45
    on = 0.3 * threat.steepest(gradient(X + noise))
    x_adv = perturbed(NFGSM(threat), NET, X, Y, STEP)
    torch.testing.assert_close(x_adv, X + noise + on, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"noise": 0.0}, {"step_size": -1.0}])
def test_noise_and_step_have_a_length(wrong):
    with pytest.raises(SettingError, match=r"^n-fgsm: noise and step_size must be positive, got "):
        NFGSM(Linf(0.1), **wrong)
