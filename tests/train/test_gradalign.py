"""GradAlign: the penalty by finite differences, what of it is differentiated, and examples without an angle."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.training import perturbed
from helpers.zoo import linear, mlp, random_linear, seeded, uniform
from holdfast import Linf, SettingError
from holdfast.train import FGSMTraining, GradAlign, Step

X, INDEX = uniform(5, 4, dtype=torch.float64), torch.arange(5)
Y, STEP, METHOD = INDEX % 3, Step(2, 0, INDEX), GradAlign(Linf(0.2), weight=0.7)


def smooth():
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))).double()
    with torch.no_grad():
        net[0].weight *= 4
    return net


def slopes(net, x):
    """``(N, D)`` input gradients of each example's cross-entropy by central differences."""
    with torch.no_grad():
        units = 1e-5 * torch.eye(4, dtype=torch.float64)
        up, down = (
            torch.stack([functional.cross_entropy(net(x + s * u), Y, reduction="none") for u in units], 1)
            for s in (1, -1)
        )
    return (up - down) / 2e-5


def cosines(a, b):
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def random_point(x=X):
    noise = 0.2 * (2 * STEP.draws().uniform(4) - 1)
    return (x + noise.to(x.dtype)).clamp(0, 1)


def test_the_loss_is_that_of_fgsm_and_the_mean_turn_of_the_gradient():
    net = smooth()
    x_adv = perturbed(METHOD, net, X, Y, STEP)
    assert torch.equal(x_adv, perturbed(FGSMTraining(METHOD.threat), net, X, Y, STEP))
    turn = 1 - cosines(slopes(net, X), slopes(net, random_point()))
    assert turn.max() > 0.03
    by_hand = functional.cross_entropy(net(x_adv), Y) + 0.7 * turn.mean()
    torch.testing.assert_close(METHOD.loss(net, X, x_adv, Y, STEP), by_hand, rtol=1e-8, atol=0)


def test_only_the_gradient_at_the_random_point_is_differentiated():
    net, h = smooth(), 1e-5
    loss = METHOD.loss(net, X, X, Y, STEP) - functional.cross_entropy(net(X), Y)
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, net.parameters())])
    weights = nn.utils.parameters_to_vector(net.parameters()).detach()
    here = slopes(net, X)

    def penalty(moved, constant):
        twin = smooth()
        nn.utils.vector_to_parameters(moved, twin.parameters())
        return 0.7 * (1 - cosines(here if constant else slopes(twin, X), slopes(twin, random_point()))).mean()

    for seed in range(3):
        way = 2 * uniform(len(weights), seed=seed, dtype=torch.float64) - 1
        half, whole = (
            (penalty(weights + h * way, constant) - penalty(weights - h * way, constant)) / (2 * h)
            for constant in (True, False)
        )
        torch.testing.assert_close(gradient @ way, half, rtol=1e-4, atol=1e-6)
        assert (half - whole).abs() > 1e-2


def test_gradients_of_a_linear_model_with_two_classes_never_turn():
    net, y = random_linear(4, 2), INDEX % 2
    loss = METHOD.loss(net, X, X, y, STEP)
    torch.testing.assert_close(loss, functional.cross_entropy(net(X), y), rtol=1e-12, atol=0)


def test_the_gradients_of_confident_examples_have_an_angle_too():
    weight = torch.tensor([[-4.0, 3.0, -2.0, 5.0], [4.0, -3.0, 2.0, -5.0]])
    net, y = linear(weight, torch.tensor([-30.0, 30.0])), torch.ones(5, dtype=torch.int64)
    x = X.float().requires_grad_()
    (grad,) = torch.autograd.grad(functional.cross_entropy(net(x), y, reduction="sum"), x)
    assert 0 < grad.abs().max() < 1e-20
    assert METHOD.loss(net, x.detach(), x.detach(), y, STEP).abs() < 1e-6


def test_examples_without_a_gradient_are_left_out():
    net = smooth()
    net[1] = nn.ReLU()
    with torch.no_grad():
        net[0].bias.fill_(-0.5)
    x = X * torch.tensor([1.0, 0, 1, 1, 0], dtype=torch.float64).unsqueeze(1)
    near = random_point(x)
    here, there = slopes(net, x), slopes(net, near)
    known = here.any(1) & there.any(1)
    assert known.sum() == 3
    expected = functional.cross_entropy(net(x), Y) + 0.7 * (1 - cosines(here[known], there[known])).mean()
    torch.testing.assert_close(METHOD.loss(net, x, x, Y, STEP), expected, rtol=1e-8, atol=0)
    with torch.no_grad():
        net[0].bias.fill_(-99.0)
    loss = METHOD.loss(net, x, x, Y, STEP)
    torch.testing.assert_close(loss, functional.cross_entropy(net(x), Y), rtol=0, atol=0)
    gradients = torch.autograd.grad(loss, net.parameters())
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_penalty_keeps_its_precision_in_mixed_precision():
    net, x, y = mlp(4, 3), X.float(), Y
    full = METHOD.loss(net, x, x, y, STEP) - functional.cross_entropy(net(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = METHOD.loss(net, x, x, y, STEP) - functional.cross_entropy(net(x), y)
    torch.testing.assert_close(mixed, full, rtol=0, atol=1e-6)


def test_the_weight_is_not_negative():
    with pytest.raises(SettingError, match=r"^gradalign: weight must not be negative, got -1$"):
        GradAlign(Linf(0.1), weight=-1)
