"""Training with backward bounds: its loss by hand, and where it lies between intervals and the truth."""

import pytest
import torch
from torch.nn import functional

from helpers.intervals import check_slope, cross_entropy_by_hand, hidden_box, two_hidden, worst_by_hand
from helpers.zoo import mlp, random_linear, uniform
from holdfast import Linf, SettingError
from holdfast.train import CROWNIBP, IBP, Step

X, Y, INDEX = uniform(5, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 0]), torch.arange(5)


def backward_by_hand(net, x, eps, y):
    """Of one hidden layer: each neuron between its chord and the line of slope 0 or 1 that is nearer, in floats."""
    first, last = net[1], net[3]
    weight, bias = first.weight.detach(), first.bias.tolist()
    found = torch.zeros(len(x), 4, dtype=torch.float64)
    for i, label in enumerate(y.tolist()):
        low, high = (x[i] - eps).clamp_min(0), (x[i] + eps).clamp_max(1)
        ((down, up),) = hidden_box(net, low.tolist(), high.tolist())
        for k in range(4):
            row = (last.weight[k] - last.weight[label]).tolist()
            slope, shift = torch.zeros(6, dtype=torch.float64), (last.bias[k] - last.bias[label]).item()
            for j, c in enumerate(row):
                if up[j] <= 0:
                    continue
                chord = 1.0 if down[j] >= 0 else up[j] / (up[j] - down[j])
                # Largest of c relu(z): the upper plane where c is positive, the lower one where it is not.
                if c > 0:
                    slope += c * chord * weight[j]
                    shift += c * chord * (bias[j] - min(down[j], 0.0))
                elif up[j] > -down[j]:
                    slope += c * weight[j]
                    shift += c * bias[j]
            found[i, k] = shift + (slope.clamp_min(0) * high + slope.clamp_max(0) * low).sum()
    return found


@pytest.mark.parametrize(("share", "beta"), [(1.0, 1.0), (1.0, 0.3), (0.5, 0.3)])
def test_the_loss_by_hand(share, beta):
    net, eps = mlp().double(), 0.2
    reach = eps * share
    intervals = worst_by_hand(net, (X - reach).clamp_min(0), (X + reach).clamp_max(1), Y)
    backwards = backward_by_hand(net, X, reach, Y)
    assert (backwards < intervals - 1e-3).any()
    part = 1 - (1 - beta) * share
    worst = part * backwards + (1 - part) * intervals
    weight = 1 - 0.7 * share
    expected = weight * cross_entropy_by_hand(net(X), Y) + (1 - weight) * cross_entropy_by_hand(worst, Y)
    loss = CROWNIBP(Linf(eps), kappa=0.3, beta=beta).loss(net, X, X, Y, Step(0, 0, INDEX, share))
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-12, atol=0)


def test_budgets_of_examples_have_parts_of_their_own():
    net, method = two_hidden(), CROWNIBP(Linf(0.2), beta=0.2)
    shares = torch.tensor([0.0, 0.2, 0.5, 1.0, 1.0], dtype=torch.float64)
    together = method.loss(net, X, X, Y, Step(0, 0, INDEX, shares))
    alone = [
        method.loss(net, X[[i]], X[[i]], Y[[i]], Step(0, 0, INDEX[[i]], share))
        for i, share in enumerate(shares.tolist())
    ]
    torch.testing.assert_close(together, sum(alone) / 5, rtol=1e-12, atol=0)


def test_the_gradient_is_that_of_the_loss():
    net = two_hidden()
    check_slope(net, lambda: CROWNIBP(Linf(0.2), beta=0.4).loss(net, X, X, Y, Step(0, 0, INDEX)))


def test_when_the_whole_budget_is_in_force_it_is_interval_training():
    net, step = two_hidden(), Step(0, 0, INDEX)
    expected = IBP(Linf(0.2), kappa=0.3).loss(net, X, X, Y, step)
    torch.testing.assert_close(CROWNIBP(Linf(0.2), kappa=0.3).loss(net, X, X, Y, step), expected, rtol=1e-12, atol=0)


def test_for_a_linear_model_it_is_the_exact_robust_loss():
    net, step = random_linear(6, 4), Step(0, 0, INDEX)
    expected = IBP(Linf(0.05), kappa=0.0).loss(net, X, X, Y, step)
    torch.testing.assert_close(CROWNIBP(Linf(0.05), 0.0, 1.0).loss(net, X, X, Y, step), expected, rtol=1e-12, atol=0)


def test_it_bounds_the_loss_at_every_input_of_the_set():
    net = two_hidden()
    bound = CROWNIBP(Linf(0.2), kappa=0.0, beta=1.0).loss(net, X, X, Y, Step(0, 0, INDEX))
    corners = 0.4 * (uniform(500, 5, 6, dtype=torch.float64, seed=3) > 0.5) - 0.2
    assert all(functional.cross_entropy(net((X + z).clamp(0, 1)), Y) < bound for z in corners)


def test_settings_are_checked():
    with pytest.raises(SettingError, match=r"must lie between 0 and 1, got 0\.5 and -1"):
        CROWNIBP(Linf(0.1), beta=-1)
