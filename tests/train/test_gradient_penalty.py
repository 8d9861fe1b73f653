"""The dual-norm penalty against closed forms on linear models."""

import pytest
import torch
from torch.nn import functional

from helpers.training import DUAL, margins, perturbed, robust_loss
from helpers.zoo import constant, mlp, random_linear, uniform
from holdfast import L1, L2, Linf
from holdfast.train import GradientPenalty, Step

NORMS = pytest.mark.parametrize("norm", [Linf, L2, L1])
X, INDEX = uniform(7, 6, dtype=torch.float64), torch.arange(7)
Y, STEP = INDEX % 2, Step(0, 0, INDEX)


@NORMS
def test_the_loss_and_its_gradient_have_a_closed_form_on_a_linear_model(norm):
    net, eps = random_linear(6, 2), torch.linspace(0, 0.3, 7, dtype=torch.float64)
    method = GradientPenalty(norm(eps))
    assert perturbed(method, net, X, Y, STEP) is X
    loss = method.loss(net, X, X, Y, STEP)
    margin, w = margins(net, X, Y)
    length = torch.linalg.vector_norm(w, DUAL[method.threat.norm])
    exact = (functional.softplus(-margin) + eps * torch.sigmoid(-margin) * length).mean()
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=0)
    mine, theirs = (torch.autograd.grad(value, net.parameters()) for value in (loss, exact))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@NORMS
def test_it_is_the_robust_loss_to_first_order(norm):
    net = random_linear(6, 2)
    threats = [norm(eps, box=None) for eps in (1e-2, 5e-3, 2.5e-3)]
    missing = [
        (robust_loss(net, X, Y, threat) - GradientPenalty(threat).loss(net, X, X, Y, STEP)).item() for threat in threats
    ]
    # The loss is convex in the margin, so that its tangent is below it; half the budget, a quarter of the difference.
    assert missing[2] > 0
    assert missing[0] / missing[1] == pytest.approx(4, rel=0.05)
    assert missing[1] / missing[2] == pytest.approx(4, rel=0.05)


@NORMS
def test_where_there_is_no_gradient_there_is_no_penalty(norm):
    net = constant(3).double()
    loss = GradientPenalty(norm(0.5)).loss(net, X, X, Y, STEP)
    torch.testing.assert_close(loss, functional.cross_entropy(net(X), Y), rtol=0, atol=0)
    gradients = torch.autograd.grad(loss, net.parameters(), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_the_penalty_keeps_its_precision_in_mixed_precision():
    net, x = mlp(), X.float()
    method = GradientPenalty(Linf(0.1))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = method.loss(net, x, x, Y, STEP)
    torch.testing.assert_close(mixed, method.loss(net, x, x, Y, STEP), rtol=0, atol=0)
