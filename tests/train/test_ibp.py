"""Interval training: its loss by hand, what it is for linear models, and that it bounds every attack's loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.intervals import check_slope, cross_entropy_by_hand, two_hidden, worst_by_hand
from helpers.zoo import random_linear, uniform
from holdfast import L1, L2, Linf, SettingError
from holdfast.train import IBP, Standard, Step

X, Y, INDEX = uniform(5, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 0]), torch.arange(5)


@pytest.mark.parametrize("share", [1.0, 0.25, torch.tensor([0.0, 0.2, 0.5, 1.0, 1.0], dtype=torch.float64)])
def test_the_loss_by_hand(share):
    net, eps = two_hidden(), 0.2
    shares = torch.as_tensor(share, dtype=torch.float64).expand(5)
    reach = eps * shares.unsqueeze(1)
    worst = worst_by_hand(net, (X - reach).clamp_min(0), (X + reach).clamp_max(1), Y)
    weight = 1 - 0.7 * shares
    expected = weight * cross_entropy_by_hand(net(X), Y) + (1 - weight) * cross_entropy_by_hand(worst, Y)
    loss = IBP(Linf(eps), kappa=0.3).loss(net, X, X, Y, Step(0, 0, INDEX, share))
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-12, atol=0)


def test_the_gradient_is_that_of_the_loss():
    net = two_hidden()
    check_slope(net, lambda: IBP(Linf(0.2), kappa=0.3).loss(net, X, X, Y, Step(0, 0, INDEX)))


@pytest.mark.parametrize(("ball", "dual"), [(Linf, 1), (L2, 2), (L1, torch.inf)])
def test_for_a_linear_model_it_is_the_exact_robust_loss(ball, dual):
    net, eps = random_linear(6, 4), 0.05
    weight = net[1].weight
    rise = net(X) - net(X)[torch.arange(5), Y].unsqueeze(1)
    rise = rise + eps * torch.linalg.vector_norm(weight.unsqueeze(0) - weight[Y].unsqueeze(1), ord=dual, dim=2)
    loss = IBP(ball(eps, None), kappa=0.0).loss(net, X, X, Y, Step(0, 0, INDEX))
    torch.testing.assert_close(loss, cross_entropy_by_hand(rise, Y).mean(), rtol=1e-12, atol=0)


def test_it_bounds_the_loss_at_every_input_of_the_set():
    net, threat = two_hidden(), Linf(0.2)
    bound = IBP(threat, kappa=0.0).loss(net, X, X, Y, Step(0, 0, INDEX))
    corners = 0.4 * (uniform(500, 5, 6, dtype=torch.float64, seed=3) > 0.5) - 0.2
    assert all(functional.cross_entropy(net((X + z).clamp(0, 1)), Y) < bound for z in corners)


def test_without_a_budget_and_at_the_start_of_a_warm_up_it_is_standard_training():
    net = two_hidden()
    expected = Standard().loss(net, X, X, Y, Step(0, 0, INDEX))
    for method, share in ((IBP(Linf(0.2)), 0.0), (IBP(Linf(0.0), kappa=0.0), 1.0)):
        torch.testing.assert_close(method.loss(net, X, X, Y, Step(0, 0, INDEX, share)), expected, rtol=1e-12, atol=0)


def test_label_smoothing_reaches_both_losses():
    net, step = two_hidden(), Step(0, 0, INDEX, label_smoothing=0.2)
    worst = worst_by_hand(net, (X - 0.1).clamp_min(0), (X + 0.1).clamp_max(1), Y)
    expected = [0.8 * cross_entropy_by_hand(z, Y) - 0.2 * z.log_softmax(1).mean(1) for z in (net(X), worst)]
    loss = IBP(Linf(0.1)).loss(net, X, X, Y, step)
    torch.testing.assert_close(loss, (sum(expected) / 2).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 3, 2, stride=2), nn.MaxPool2d(2), nn.Sigmoid()])
def test_other_layers(layer):
    """What bounds are known for can be trained with; the loss bounds that of the corners of the set."""
    torch.manual_seed(0)
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)).double()
    x = uniform(3, 1, 4, 4, dtype=torch.float64)
    net(x)
    bound = IBP(Linf(0.1), kappa=0.0).loss(net, x, x, Y[:3], Step(0, 0, INDEX[:3]))
    corners = 0.2 * (uniform(100, 3, 1, 4, 4, dtype=torch.float64, seed=3) > 0.5) - 0.1
    assert all(functional.cross_entropy(net((x + z).clamp(0, 1)), Y[:3]) <= bound for z in corners)
    assert all(bool(grad.any()) for grad in torch.autograd.grad(bound, list(net.parameters())))


def test_settings_are_checked():
    with pytest.raises(SettingError, match="kappa must lie between 0 and 1, got 2"):
        IBP(Linf(0.1), kappa=2)
