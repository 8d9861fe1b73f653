import math

import pytest
import torch

from helpers.attacks import check_attack
from helpers.minimum import exact_distance
from helpers.zoo import Wavy, random_linear, uniform
from holdfast.attacks.cw import CW
from holdfast.errors import SettingError
from holdfast.threats import L2

QUICK = {"steps": 8, "binary_search_steps": 3, "step_size": 0.1, "initial_constant": 1.0}


@pytest.mark.parametrize("abort", [False, True])
def test_shared(abort):
    check_attack(CW(**QUICK, abort_early=abort, refine=8), "l2", forwards=32, backwards=31, exact=not abort)


@pytest.mark.parametrize("classes", [2, 5])
def test_linear_models_are_exact(classes):
    model = random_linear(20, classes)
    x = uniform(40, 20, seed=7, dtype=torch.float64)
    y = model(x).argmax(1)
    # So wide a box binds nobody.
    result = CW(steps=60, step_size=0.01, initial_constant=1.0)(model, x, y, threat=L2("inf", box=(-9.0, 10.0)))
    torch.testing.assert_close(result.distance, exact_distance(model, x, y, 2), rtol=1e-4, atol=0)


def published(model, x, y, steps, rounds, size, constant):
    """The attack on one example with torch's Adam and autograd through the tanh; returns the least norm."""
    start = ((2 * x - 1) * (1 - 1e-6)).atanh()
    low, high, best = 0.0, math.inf, math.inf
    for turn in range(rounds):
        change = torch.zeros_like(x, requires_grad=True)
        optimizer, hit = torch.optim.Adam([change], lr=size), False
        for step in range(steps):
            z = ((start + change).tanh() + 1) / 2 - x if turn + step else 0 * change
            logits = model((x + z).expand(4, -1))[0]
            gap = logits[y] - torch.cat([logits[:y], logits[y + 1 :]]).max()
            if gap < 0:
                hit, best = True, min(best, float(z.detach().norm()))
            z = ((start + change).tanh() + 1) / 2 - x
            (change.grad,) = torch.autograd.grad((z**2).sum() + constant * gap_of(model, x + z, y).clamp_min(0), change)
            optimizer.step()
        low, high = (low, min(high, constant)) if hit else (max(low, constant), high)
        constant = 10 * constant if math.isinf(high) else (low + high) / 2
    return best


def gap_of(model, point, y):
    logits = model(point.expand(4, -1))[0]
    return logits[y] - torch.cat([logits[:y], logits[y + 1 :]]).max()


def test_without_refinement_it_is_the_published_algorithm():
    model = Wavy()
    x = uniform(8, 8, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    attack = CW(steps=20, binary_search_steps=5, step_size=0.05, initial_constant=0.01, abort_early=False, refine=0)
    result = attack(model, x, y, threat=L2("inf"))
    expected = [published(model, x[i], int(y[i]), 20, 5, 0.05, 0.01) for i in range(len(x))]
    assert sum(map(math.isfinite, expected)) > 5
    for distance, success, e in zip(result.distance.tolist(), result.success.tolist(), expected, strict=True):
        assert success == math.isfinite(e)
        assert not success or distance == pytest.approx(e, rel=1e-4)


def test_ending_early_saves_looks_and_costs_little():
    model = random_linear(12, 3)
    x = uniform(20, 12, dtype=torch.float64)
    y = model(x).argmax(1)
    settings = {"steps": 60, "step_size": 0.05, "initial_constant": 1.0, "refine": 0}
    whole, early = (CW(**settings, abort_early=a)(model, x, y, threat=L2("inf")) for a in (False, True))
    assert (early.forwards <= whole.forwards).all()
    assert early.forwards.sum() < 0.9 * whole.forwards.sum()
    assert (early.distance / whole.distance).median() < 1.05


def test_a_box_is_needed():
    x = uniform(2, 6, dtype=torch.float64)
    with pytest.raises(SettingError, match="cw: its tanh maps onto a box"):
        CW()(random_linear(6, 2), x, random_linear(6, 2)(x).argmax(1), threat=L2(1.0, box=None))


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"binary_search_steps": 0}, {"step_size": 0.0}, {"initial_constant": 0.0}, {"refine": -1}],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="cw: "):
        CW(**settings)
