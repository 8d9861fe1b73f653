"""FGSM training from a random start against a step by hand."""

import pytest
import torch
from torch.nn import functional

from helpers.training import perturbed
from helpers.zoo import constant, mlp, uniform
from holdfast import Linf, SettingError
from holdfast.train import FGSMRS, Step

X, INDEX = uniform(9, 6, dtype=torch.float64), torch.arange(9)


def test_one_projected_step_from_a_random_point():
    net, y, step, threat = mlp().double(), INDEX % 4, Step(4, 7, INDEX), Linf(0.2)
    noise = 0.2 * (2 * step.draws().uniform(6) - 1)
    inputs = (X + noise).clamp(0, 1).requires_grad_()
    (grad,) = torch.autograd.grad(functional.cross_entropy(net(inputs), y), inputs)
    by_hand = (inputs.detach() - X + 0.25 * grad.sign()).clamp(-0.2, 0.2) + X
    x_adv = perturbed(FGSMRS(threat), net, X, y, step)
    torch.testing.assert_close(x_adv, by_hand.clamp(0, 1), rtol=0, atol=1e-15)
    # A step longer than the budget and no longer than two leaves some coordinates inside it, and others on its bound.
    full = ((x_adv - X).abs() > 0.2 - 1e-12).double().mean()
    assert 0.3 < full < 0.9


def test_without_a_gradient_the_random_start_stays():
    net = constant(4).double()
    x_adv = perturbed(FGSMRS(Linf(0.2)), net, X, INDEX % 4, Step(0, 0, INDEX))
    noise = 0.2 * (2 * Step(0, 0, INDEX).draws().uniform(6) - 1)
    torch.testing.assert_close(x_adv, (X + noise).clamp(0, 1), rtol=0, atol=1e-15)


def test_a_step_has_a_length():
    with pytest.raises(SettingError, match=r"^fgsm-rs: step_size must be positive, got 0\.0$"):
        FGSMRS(Linf(0.1), step_size=0.0)
