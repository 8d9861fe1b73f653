import math

import pytest
import torch

from helpers.attacks import NORMS, check_attack
from helpers.minimum import fewest_coordinates
from helpers.zoo import random_linear, uniform
from holdfast.attacks.sigma_zero import SigmaZero
from holdfast.errors import SettingError
from holdfast.threats import L0


def test_shared():
    check_attack(SigmaZero(steps=15, refine=8), "l0", forwards=23, backwards=22)


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_models_are_exact(classes):
    model = random_linear(7, classes)
    with torch.no_grad():
        model[1].bias[0] += 2  # the other classes lie several coordinates away
    x = uniform(40, 7, seed=3, dtype=torch.float64)
    y = model(x).argmax(1)
    expected = fewest_coordinates(model, x, y)
    result = SigmaZero(steps=200)(model, x, y, threat=L0("inf"))
    assert len({e for e in expected if e < 8}) > 2
    # What Adam never breaks is not refined either.
    assert result.success.tolist() == [e < 8 for e in expected]
    assert [d for d, e in zip(result.distance.tolist(), expected, strict=True) if e < 8] == [
        e for e in expected if e < 8
    ]


def published(model, x, y, steps):
    """Sigma-zero on one example, from the paper's algorithm 1 with torch's Adam; returns the fewest changes."""
    delta = torch.zeros_like(x, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=1.0)
    fewest, threshold = math.inf, 0.3
    for i in range(steps):
        logits = model((x + delta).expand(4, -1))[0]
        gap = logits[y] - torch.cat([logits[:y], logits[y + 1 :]]).max()
        count = int((delta != 0).sum())
        fooled = bool(gap < 0)
        if fooled:
            fewest = min(fewest, count)
        loss = gap.clamp_min(0) + (delta**2 / (delta**2 + 1e-3)).sum() / len(x)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta.grad = gradient / gradient.abs().max().clamp_min(1e-12)
        optimizer.step()
        rate = 0.1 + 0.9 * (1 + math.cos(math.pi * i / steps)) / 2
        optimizer.param_groups[0]["lr"] = rate
        threshold = min(max(threshold + (0.01 if fooled else -0.01) * rate, 0), 1)
        with torch.no_grad():
            delta.copy_((x + delta).clip(0, 1) - x)
            delta[delta.abs() < threshold] = 0
    return fewest


def test_without_refinement_it_is_the_published_algorithm():
    model = random_linear(12, 3)
    with torch.no_grad():
        model[1].bias[0] += 2
    x = uniform(24, 12, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    result = SigmaZero(steps=40, refine=0)(model, x, y, threat=L0("inf"))
    expected = [published(model, x[i], int(y[i]), 40) for i in range(len(x))]
    assert len(set(expected)) > 1
    assert [d if s else math.inf for d, s in zip(result.distance.tolist(), result.success.tolist(), strict=True)] == (
        expected
    )


def test_a_box_of_another_width_changes_nothing():
    model = random_linear(7, 3)
    x = uniform(10, 7, dtype=torch.float64)
    y = model(x).argmax(1)
    wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, 3, dtype=torch.float64))
    wide[1].load_state_dict({"weight": model[1].weight / 255, "bias": model[1].bias})
    attack = SigmaZero(steps=40)
    unit = attack(model, x, y, threat=L0("inf"))
    pixels = attack(wide, 255 * x, y, threat=NORMS["l0"]("inf", box=(0.0, 255.0)))
    assert torch.equal(unit.distance, pixels.distance)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"step_size": 0.0}, {"sigma": 0.0}, {"threshold": 1.5}, {"refine": -1}]
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="sigma-zero: "):
        SigmaZero(**settings)
