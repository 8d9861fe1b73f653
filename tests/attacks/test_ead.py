import math

import pytest
import torch

from helpers.attacks import check_attack
from helpers.minimum import exact_distance
from helpers.zoo import Wavy, random_linear, uniform
from holdfast.attacks.ead import EAD
from holdfast.errors import SettingError
from holdfast.threats import L1

QUICK = {"steps": 6, "binary_search_steps": 3, "step_size": 0.1, "initial_constant": 1.0}


def test_shared():
    check_attack(EAD(**QUICK, abort_early=False, refine=6), "l1", forwards=42, backwards=23)


@pytest.mark.parametrize("classes", [2, 5])
def test_linear_models_are_exact(classes):
    model = random_linear(20, classes)
    x = uniform(40, 20, seed=7, dtype=torch.float64)
    y = model(x).argmax(1)
    result = EAD(steps=40, step_size=0.05, initial_constant=1.0)(model, x, y, threat=L1("inf", box=None))
    torch.testing.assert_close(result.distance, exact_distance(model, x, y, torch.inf), rtol=1e-4, atol=0)


def published(model, x, y, attack):
    """EAD on one example, from the paper's equations 4 to 8 and its binary search; returns the least L1 norm."""

    def gap(point):
        logits = model(point.expand(4, -1))[0]
        return logits[y] - torch.cat([logits[:y], logits[y + 1 :]]).max()

    low, high, constant, best = 0.0, math.inf, attack.initial_constant, math.inf
    for _ in range(attack.binary_search_steps):
        current, slack, hit = x, x, False
        for k in range(attack.steps):
            point = slack.clone().requires_grad_(True)
            loss = constant * gap(point).clamp_min(0) + (point - x).square().sum()
            (gradient,) = torch.autograd.grad(loss, point)
            best = min(best, float((slack - x).abs().sum())) if gap(slack) < 0 else best
            moved = slack - attack.step_size * math.sqrt(1 - k / attack.steps) * gradient - x
            shrunk = torch.where(moved.abs() > attack.beta, moved - attack.beta * moved.sign(), 0)
            following = (x + shrunk).clip(0, 1)
            slack = (following + k / (k + 3) * (following - current)).clip(0, 1)
            current = following
            if gap(current) < 0:
                hit, best = True, min(best, float((current - x).abs().sum()))
        low, high = (low, min(high, constant)) if hit else (max(low, constant), high)
        constant = 10 * constant if math.isinf(high) else (low + high) / 2
    return best


def test_without_refinement_it_is_the_published_algorithm():
    model = Wavy()
    x = uniform(8, 8, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    attack = EAD(steps=15, binary_search_steps=5, initial_constant=0.1, beta=0.01, abort_early=False, refine=0)
    result = attack(model, x, y, threat=L1("inf"))
    with torch.enable_grad():
        expected = [published(model, x[i], int(y[i]), attack) for i in range(len(x))]
    assert sum(map(math.isfinite, expected)) > 5
    for distance, success, e in zip(result.distance.tolist(), result.success.tolist(), expected, strict=True):
        assert success == math.isfinite(e)
        assert not success or distance == pytest.approx(e, rel=1e-4)
    assert (result.forwards == 1 + 2 * 5 * 15 + 1)[result.success].float().mean() > 0.5
    assert (result.backwards == 5 * 15)[result.success].all()


def test_ending_early_saves_looks_and_costs_little():
    model = random_linear(12, 3)
    x = uniform(20, 12, dtype=torch.float64)
    y = model(x).argmax(1)
    settings = {"steps": 40, "step_size": 0.05, "initial_constant": 1.0, "refine": 0}
    whole, early = (EAD(**settings, abort_early=a)(model, x, y, threat=L1("inf")) for a in (False, True))
    assert (early.forwards <= whole.forwards).all()
    assert early.forwards.sum() < 0.9 * whole.forwards.sum()
    assert (early.distance / whole.distance).median() < 1.05


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"binary_search_steps": 0}, {"step_size": 0.0}, {"beta": 0.0}, {"refine": -1}],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="ead: "):
        EAD(**settings)
