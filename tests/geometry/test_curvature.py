"""Bends of losses against closed forms and finite differences."""

import pytest
import torch
from torch import nn

from holdfast.errors import ModelError, SettingError
from holdfast.geometry import crossing, curvature, gradient_alignment, gradient_saturation, linearity_violation
from holdfast.tasks.objectives import cross_entropy, margin
from holdfast.threats import L1, L2, Linf

BALLS = {"linf": Linf, "l2": L2, "l1": L1}
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


def linear(classes, inputs=6, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, classes).double()


def smooth():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    for parameter in model.parameters():
        parameter.data *= 3
    return model


def data(model, seed=2, count=16):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, model(x).detach().argmax(1)


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_of_two_linear_classes_everything_has_a_closed_form(norm):
    """The loss is softplus of the margin, and the margin moves by the dual norm of the weights."""
    model, ball = linear(2), BALLS[norm](0.1, box=None)
    x, y = data(model)
    rate = (model.weight[0] - model.weight[1]).detach().norm(p=DUAL[norm])
    lead = margin(model(x), y).detach()
    p = torch.sigmoid(-lead)
    torch.testing.assert_close(curvature(model, x, y, ball), p * (1 - p) * rate**2)
    torch.testing.assert_close(curvature(model, x, y, ball, loss=margin), torch.zeros(16).double())
    found = crossing(model, x, y, ball, 1.0, reach=100.0, steps=200)
    expected = (torch.log(torch.expm1(torch.tensor(1.0).double())) - lead) / rate
    torch.testing.assert_close(found.t_act, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.t_lin, (1 - torch.nn.functional.softplus(lead)) / ((1 - p) * rate))
    assert bool((found.r < 1).all())
    straight = crossing(model, x, y, ball, 0.5, reach=100.0, loss=margin)
    torch.testing.assert_close(straight.r, torch.ones(16).double(), rtol=1e-9, atol=0)
    saturation = gradient_saturation(model, x, y, ball)
    torch.testing.assert_close(saturation.confidence, p)
    torch.testing.assert_close(saturation.ratio, 1 - p)
    torch.testing.assert_close(saturation.margin, (0.1 * rate).expand(16))
    torch.testing.assert_close(gradient_alignment(model, x, y, ball), torch.ones(16).double())
    assert float(linearity_violation(model, x, y, ball, loss=margin).max()) < 1e-12
    # Convex: the tangent errs most at the end of the budget, one way or the other.
    ends = [
        torch.nn.functional.softplus(lead + s * 0.1 * rate)
        - torch.nn.functional.softplus(lead)
        - s * 0.1 * (1 - p) * rate
        for s in (-1, 1)
    ]
    found = linearity_violation(model, x, y, ball)
    assert bool((found <= torch.maximum(*ends) + 1e-14).all())
    assert bool((found >= 0.7 * torch.minimum(*ends)).all())


def test_cross_entropy_of_a_linear_model_is_never_late():
    model = linear(5, seed=3)
    x, y = data(model, count=64)
    for ball in BALLS.values():
        found = crossing(model, x, y, ball(1.0, box=None), 2.0, reach=50.0, steps=100)
        assert bool((found.r <= 1 + 1e-9).all())
        assert bool((found.r < 0.9).any())


def test_curvature_is_the_second_difference():
    model, ball = smooth(), Linf(1.0, box=None)
    x, y = data(model)
    inputs = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(model(inputs), y).sum(), inputs)
    v, h = ball.steepest(grad), 1e-4
    values = [cross_entropy(model(x + s * h * v), y).detach() for s in (-1, 0, 1)]
    expected = (values[0] - 2 * values[1] + values[2]) / h**2
    found = curvature(model, x, y, ball)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert bool((found < 0).any())
    assert model[0].weight.requires_grad


def test_the_crossing_is_the_first_point_as_high():
    model, ball = smooth(), L2(1.0, box=None)
    x, y = data(model)
    found = crossing(model, x, y, ball, 1.2, reach=5.0, steps=100)
    inputs = x.clone().requires_grad_()
    values = cross_entropy(model(inputs), y)
    (grad,) = torch.autograd.grad(values.sum(), inputs)
    t = torch.linspace(0, 5, 20001, dtype=torch.float64)
    for i in range(len(x)):
        line = cross_entropy(model(x[i] + t[:, None] * ball.steepest(grad)[i]), y[i].expand(len(t))).detach() >= 1.2
        expected = float(t[line.long().argmax()]) if bool(line.any()) else torch.inf
        assert float(found.t_act[i]) == pytest.approx(expected, abs=3e-4)
        assert float(found.t_lin[i]) == pytest.approx(float((1.2 - values[i]) / grad[i].norm()))
    assert bool((found.r > 1).any())
    assert bool((found.r < 1).any())


def test_a_threshold_already_passed_is_at_0_and_one_out_of_reach_nowhere():
    model = linear(2)
    x, y = data(model)
    passed = crossing(model, x, 1 - y, Linf(1.0, box=None), 0.1, reach=1.0)
    assert float(passed.t_lin.max()) == float(passed.t_act.max()) == 0
    assert bool(passed.r.isnan().all())
    far = crossing(model, x, y, Linf(1.0, box=None), 1e6, reach=1.0)
    assert bool(far.t_act.isinf().all())
    with pytest.raises(SettingError, match="reach: a positive, finite number"):
        crossing(model, x, y, Linf(1.0), 1.0, reach=0.0)


def test_cross_entropy_saturates_and_the_margin_does_not():
    """In float32 the gradient of cross-entropy dies while that of the margin grows with the logits."""
    model = linear(4, seed=5).float()
    x, y = (part.float() if part.is_floating_point() else part for part in data(linear(4, seed=5)))
    plain, scaled = (gradient_saturation(model, x, y, Linf(0.1, box=None), scale=s) for s in (1.0, 1e4))
    torch.testing.assert_close(scaled.margin, 1e4 * plain.margin)
    confident = margin(model(x), y) * 1e4 < -200
    assert bool(confident.any())
    assert bool((scaled.cross_entropy[confident] == 0).all())
    assert bool((plain.cross_entropy > 0).all())
    assert bool((scaled.confidence[confident] == 1).all())


def test_alignment_and_linearity_of_a_bending_loss():
    model, ball = smooth(), Linf(0.5, box=None)
    x, y = data(model)
    aligned = gradient_alignment(model, x, y, ball)
    assert bool((aligned < 1 - 1e-4).all())
    assert bool((aligned >= -1).all())
    small = linearity_violation(model, x, y, Linf(0.005, box=None))
    large = linearity_violation(model, x, y, Linf(0.01, box=None))
    # The error of a tangent is of second order.
    torch.testing.assert_close(large / small, torch.full((16,), 4.0).double(), rtol=0.2, atol=0)
    rng = torch.Generator().manual_seed(7)
    inputs = x.clone().requires_grad_()
    values = cross_entropy(model(inputs), y)
    (grad,) = torch.autograd.grad(values.sum(), inputs)
    for _ in range(50):
        d = (torch.rand(x.shape, generator=rng, dtype=torch.float64) * 2 - 1) * 0.01
        error = (cross_entropy(model(x + d), y) - values - (d * grad).sum(1)).abs()
        assert bool((error <= large * 1.05).all())


def test_without_a_gradient_there_is_no_curvature():
    class Blind(nn.Module):
        def forward(self, x):
            return x.detach()

    with pytest.raises(ModelError, match="no gradient"):
        curvature(Blind(), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), Linf(0.1))
