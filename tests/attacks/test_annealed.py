import math

import pytest
import torch

from helpers.attacks import NORMS, check_attack, check_superset
from helpers.zoo import Wavy, random_linear, uniform
from holdfast.attacks import Problem, Rows
from holdfast.attacks.annealed import AnnealedPGD
from holdfast.errors import SettingError
from holdfast.models.query import Query


@pytest.mark.parametrize("norm", NORMS)
def test_shared(norm):
    check_attack(AnnealedPGD(steps=6, restarts=2), norm, forwards=14, backwards=12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_shared_with_targets(norm):
    check_attack(AnnealedPGD(steps=4, targets=3, start="random", objective="dlr"), norm, forwards=15, backwards=12)


@pytest.mark.parametrize("norm", NORMS)
def test_more_never_helps_the_defender(norm):
    check_superset(AnnealedPGD(steps=4), AnnealedPGD(steps=4, restarts=3), norm)


def test_moves_are_those_of_the_formula():
    """A scalar run written from the docstring: cosine steps, momentum, ball and box."""
    model, eps, steps = Wavy(), 0.08, 6
    x = uniform(5, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    with Query(model, batch_size=8) as query:
        rows = Rows.fresh(NORMS["linf"](0.1), torch.arange(5), x, y, clean_logits=query.bare_logits(x))
        problem = Problem(query, NORMS["linf"](eps), rows)
        attack = AnnealedPGD(steps=steps)
        state = attack.init(problem)
        ours = [state.z]
        while not attack.done(state).all():
            state = attack.step(problem, state)
            ours.append(state.z)
    for i in range(5):
        point = last = torch.zeros(8, dtype=torch.float64)
        for k in range(steps):
            assert torch.allclose(ours[k][i], point, atol=1e-12)
            given = (x[i] + point).requires_grad_(True)
            logits = model(given[None])[0]
            others = torch.cat([logits[: y[i]], logits[y[i] + 1 :]])
            (grad,) = torch.autograd.grad(others.max() - logits[y[i]], given)
            size = 2 * eps * 0.5 * (1 + math.cos(math.pi * k / steps))
            ahead = (point + size * grad.sign()).clamp(-eps, eps)
            ahead = (x[i] + ahead).clamp(0, 1) - x[i]
            if k:
                mixed = 0.75 * ahead + 0.25 * (point + (point - last))
                ahead = (x[i] + mixed.clamp(-eps, eps)).clamp(0, 1) - x[i]
            point, last = ahead, point


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_it_ends_at_the_optimum(norm):
    model = random_linear(6, 2)
    x = uniform(10, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = NORMS[norm](0.02)
    result = AnnealedPGD(steps=20)(model, x, y, threat=threat)
    rows = torch.autograd.functional.jacobian(model, x[:1])[0, :, 0]
    weight = rows[1 - y] - rows[y]
    gain = (weight * threat.maximize(weight, x)).sum(1)
    best = (model(x).gather(1, 1 - y[:, None]) - model(x).gather(1, y[:, None]))[:, 0] + gain
    still = ~result.success
    assert still.sum() >= 5
    assert torch.allclose(result.objective[still], best[still], atol=1e-4)


def test_the_best_start_goes_on_from_what_was_seen():
    model = Wavy()
    x = uniform(4, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    with Query(model, batch_size=4) as query:
        rows = Rows.fresh(NORMS["linf"](0.1), torch.arange(4), x, y, clean_logits=query.bare_logits(x))
        problem = Problem(query, NORMS["linf"](0.01), rows)
        attack = AnnealedPGD(start="best")
        assert torch.equal(attack.init(problem).z, torch.zeros_like(x))
        z = torch.full_like(x, 0.005)
        problem.evaluate(z, problem.objective("margin"))
        assert torch.equal(attack.init(problem).z, z)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"restarts": 0}, {"step_size": 0.0}, {"targets": -1}, {"start": "home"}]
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="annealed-pgd: "):
        AnnealedPGD(**settings)
