import math

import pytest
import torch

from helpers.attacks import check_attack, examples
from helpers.minimum import exact_distance
from helpers.zoo import Wavy, constant, convnet, random_linear, uniform
from holdfast.attacks import Problem, Rows
from holdfast.attacks.ddn import DDN
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.threats import L2


def test_shared():
    check_attack(DDN(steps=12, refine=8, init_norm=0.2), "l2", forwards=20, backwards=19)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_linear_models_are_exact(classes):
    model = random_linear(20, classes)
    x = uniform(40, 20, seed=7, dtype=torch.float64)
    y = model(x).argmax(1)
    result = DDN()(model, x, y, threat=L2("inf", box=None))
    torch.testing.assert_close(result.distance, exact_distance(model, x, y, 2), rtol=1e-4, atol=0)


def published(model, x, y, steps, gamma, norm):
    """DDN on one example, from the paper's algorithm 1; returns its least adversarial norm and all its norms."""
    delta, radius, best, norms = torch.zeros_like(x), norm, math.inf, []
    worst = torch.maximum(x, 1 - x).norm()
    for i in range(steps):
        point = (x + delta).requires_grad_(True)
        logits = model(point.expand(4, -1))
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits[:1], y[None]), point)
        fooled = bool(logits[0].argmax() != y)
        norms.append(float(delta.norm()))
        if fooled:
            best = min(best, norms[-1])
        size = 0.01 + 0.99 * (1 + math.cos(math.pi * i / steps)) / 2
        delta = delta + size * gradient / gradient.norm()
        radius = min(radius * (1 - gamma if fooled else 1 + gamma), float(worst))
        delta = (x + radius * delta / delta.norm()).clip(0, 1) - x
    return best, norms


def test_without_refinement_it_is_the_published_algorithm():
    model = Wavy()
    x = uniform(12, 8, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    result = DDN(steps=30, gamma=0.1, init_norm=0.3, refine=0)(model, x, y, threat=L2("inf"))
    expected = [published(model, x[i], y[i], 30, 0.1, 0.3)[0] for i in range(len(x))]
    assert sum(math.isfinite(e) for e in expected) > 8
    for distance, success, e in zip(result.distance.tolist(), result.success.tolist(), expected, strict=True):
        assert success == math.isfinite(e)
        assert not success or distance == pytest.approx(e, rel=1e-6)


def test_refinement_never_leads_away():
    model = convnet()
    x, y = examples(model)
    rough, fine = (DDN(steps=20, refine=n)(model, x, y, threat=L2("inf")) for n in (0, 20))
    assert torch.equal(rough.success, fine.success)
    assert (fine.distance <= rough.distance * (1 + 1e-3)).all()
    assert (fine.distance < 0.99 * rough.distance).float().mean() > 0.5


def test_levels():
    model = convnet()
    x, y = examples(model)
    x = (15 * x).round() / 15
    result = DDN(steps=20, levels=16)(model, x, y, threat=L2("inf"))
    assert result.success.sum() > 15
    torch.testing.assert_close(15 * result.x_adv, (15 * result.x_adv).round(), rtol=0, atol=1e-4)
    assert (result.forwards[result.distance > 0] <= 1 + 20 + 5).all()


def test_without_a_gradient_directions_are_random():
    x = uniform(3, 6)
    with Query(constant(), batch_size=4) as query:
        problem = Problem(
            query, L2("inf"), Rows.fresh(L2("inf"), torch.arange(3), x, torch.ones(3, dtype=torch.int64)), roams=True
        )
        attack = DDN(init_norm=0.1)
        state = attack.step(problem, attack.init(problem))
    assert (state.z.norm(dim=1) > 0.05).all()
    assert (torch.nn.functional.cosine_similarity(state.z[:2], state.z[1:]).abs() < 0.99).all()


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"gamma": 0.0}, {"gamma": 1.0}, {"init_norm": 0.0}, {"levels": 1}, {"refine": -1}]
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="ddn: "):
        DDN(**settings)


def test_levels_need_a_box():
    x = uniform(2, 6, dtype=torch.float64)
    with pytest.raises(SettingError, match="ddn: levels"):
        DDN(levels=256)(random_linear(6, 2), x, torch.zeros(2, dtype=torch.int64), threat=L2("inf", box=None))
