"""Adversarial training against what is known exactly of linear models."""

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

from helpers.training import perturbed, robust_loss
from helpers.zoo import random_linear, uniform
from holdfast import L1, L2, Linf, SettingError
from holdfast.train import PGDTraining, Step


@pytest.mark.parametrize(("norm", "eps"), [(Linf, 0.05), (L2, 0.1), (L1, 0.2)])
def test_loss_and_gradient_of_a_linear_model_are_those_of_the_exact_robust_loss(norm, eps):
    # The worst perturbation lowers the margin by eps times the dual norm of the weights, whatever the input; by
    # Danskin's theorem the gradient there is that of the worst loss.
    net, x, y = random_linear(6, 2), uniform(7, 6, dtype=torch.float64), torch.arange(7) % 2
    method, step = PGDTraining(norm(eps, box=None), steps=30, step_size=1.0), Step(0, 0, torch.arange(7))
    loss = method.loss(net, x, perturbed(method, net, x, y, step), y, step)
    exact = robust_loss(net, x, y, norm(eps, box=None))
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=1e-8)
    mine, theirs = (torch.autograd.grad(value, net.parameters()) for value in (loss, exact))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("norm", "eps"), [(Linf, 0.1), (L2, 0.2)])
def test_on_a_linear_model_training_reaches_the_exact_robust_optimum(norm, eps):
    x, noise = uniform(40, 5, dtype=torch.float64), uniform(40, seed=1, dtype=torch.float64)
    y = (x @ torch.tensor([2.0, -1.0, 0.5, 0.2, 0.0], dtype=torch.float64) + 0.6 * noise > 1.2).long()
    y[:3] = 1 - y[:3]
    net, index = random_linear(5, 2), torch.arange(40)
    method = PGDTraining(norm(eps, box=None), steps=6, step_size=1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
    for number in range(120):
        step = Step(number, 0, index)
        loss = method.loss(net, x, perturbed(method, net, x, y, step), y, step)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    reached = robust_loss(net, x, y, norm(eps, box=None)).item()
    best, w = convex_optimum(x.numpy(), 2.0 * y.numpy() - 1, eps, norm)
    assert best <= reached + 1e-9
    assert reached == pytest.approx(best, abs=5e-4)
    weight, _ = net.parameters()
    np.testing.assert_allclose((weight[1] - weight[0]).detach(), w, atol=0.05 * np.abs(w).max())
    # The budget matters: the best that can be done without it is another model.
    _, plain = convex_optimum(x.numpy(), 2.0 * y.numpy() - 1, 0.0, norm)
    assert np.abs(w - plain).max() > 0.2 * np.abs(w).max()


def convex_optimum(x, sign, eps, norm):
    """The least robust logistic loss and its weights: in u - v with u, v >= 0 the L1 norm is linear."""

    def value(theta):
        w = theta[:5] - theta[5:10]
        size = theta[:10].sum() if norm is Linf else np.sqrt(w @ w + 1e-16)
        slope = np.ones(5) if norm is Linf else w / size
        margin = sign * (x @ w + theta[10]) - eps * size
        pull = -1 / (1 + np.exp(margin)) / len(x)
        own = (pull * sign) @ x
        back = -eps * pull.sum() * slope
        mirrored = back if norm is Linf else -back
        return np.logaddexp(0, -margin).mean(), np.r_[own + back, -own + mirrored, (pull * sign).sum()]

    bounds = [(0, None)] * 10 + [(None, None)]
    found = optimize.minimize(
        value, np.full(11, 0.1), jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "maxiter": 5000}
    )
    return found.fun, found.x[:5] - found.x[5:10]


def test_the_inner_ascent_sees_evaluation_mode_and_the_loss_training_mode():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)).train()
    seen = []
    net[2].register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    x, y, step = uniform(5, 6), torch.arange(5) % 4, Step(0, 0, torch.arange(5))
    method = PGDTraining(Linf(0.1), steps=3)
    method.loss(net, x, perturbed(method, net, x, y, step), y, step)
    assert seen == [False] * 3 + [True]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"step_size": 0.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SettingError, match=r"^pgd: steps and step_size must be positive, got "):
        PGDTraining(Linf(0.1), **wrong)
