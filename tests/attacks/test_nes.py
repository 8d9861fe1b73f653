import math

import pytest
import torch

from helpers.attacks import NORMS, check_attack, check_superset
from helpers.zoo import Wavy, random_linear, uniform
from holdfast.attacks import Problem, Rows, maximize
from holdfast.attacks.differences import Climb, Probing, gaussian, rademacher
from holdfast.attacks.nes import NES
from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin


@pytest.mark.parametrize("norm", NORMS)
def test_shared(norm):
    samples = 12 if norm == "linf" else 6
    check_attack(NES(steps=4, samples=samples), norm, forwards=4 * samples + 5, backwards=0)


def test_more_never_helps_the_defender():
    few = NES(steps=3, samples=6, step_size=0.005)
    check_superset(few, NES(steps=6, samples=6, step_size=0.005), "linf")
    check_superset(few, NES(steps=3, samples=6, step_size=0.005, restarts=2), "linf")


@pytest.mark.parametrize("noise", [gaussian, rademacher])
def test_noise_has_independent_coordinates_of_variance_one(noise):
    u = noise(Draws(0, torch.arange(20000)), 37).double()
    assert u.shape == (20000, 37)
    torch.testing.assert_close(u.T @ u / 20000, torch.eye(37, dtype=torch.float64), rtol=0, atol=0.05)
    assert u.mean(0).abs().max() < 0.04
    assert u.abs().unique().tolist() == [1] or noise is gaussian


def climbed(probing, model, x, y, threat, looks, run=0):
    """The state after some looks, and what was looked at."""
    points = []
    with Query(model, batch_size=len(x)) as query:
        problem = Problem(query, threat, Rows.fresh(threat, torch.arange(len(x)), x, y).entering(run), roams=True)
        evaluate = problem.evaluate
        problem.evaluate = lambda z, objective: points.append(z) or evaluate(z, objective)
        climb = Climb.start(problem, moments=False)
        for _ in range(looks):
            climb, complete = probing.look(problem, climb)
    return climb, complete, torch.stack(points, 1)


@pytest.mark.parametrize("noise", [gaussian, rademacher])
def test_estimates_approach_the_gradient_of_a_linear_model(noise):
    """The cosine between estimate and gradient in d dimensions after n pairs is about sqrt(n / (n + d))."""
    model = random_linear(12, 2)
    x = 0.3 + 0.4 * uniform(5, 12, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    g = (model[1].weight[1] - model[1].weight[0]).detach() * torch.where(y == 0, 1, -1).unsqueeze(1)
    for samples in (60, 6000):
        probing = Probing(1, samples, 0.01, "margin", noise)
        climb, complete, points = climbed(probing, model, x, y, NORMS["linf"](0.001), samples + 1)
        assert complete.all()
        cosine = torch.nn.functional.cosine_similarity(climb.total, g)
        expected = math.sqrt(samples / (samples + 24))
        assert (cosine > 1 - 2.5 * (1 - expected)).all()
        assert abs(float(cosine.mean()) - expected) < 0.5 * (1 - expected)
        # An estimate, not only its direction: rises are divided by the distance between the two probes.
        assert (climb.total.norm(dim=1) / g.norm(dim=1)).mean() == pytest.approx(1 / expected, rel=0.2)
        # Probes come in pairs around the iterate, which is looked at first.
        assert (points[:, 0] == 0).all()
        assert torch.equal(points[:, 1::2], -points[:, 2::2])
        assert len(points[:, 1::2].flatten(0, 1).unique(dim=0)) == 5 * samples // 2 or noise is rademacher


def test_no_noise_is_drawn_twice():
    model, x = Wavy(), uniform(2, 8, dtype=torch.float64)
    y, seen = model(x).argmax(1), []
    for run in (0, 1):
        attack = NES(steps=3, samples=4, restarts=2)
        with Query(model, batch_size=2) as query:
            rows = Rows.fresh(NORMS["linf"](0.1), torch.arange(2), x, y).entering(run)
            problem = Problem(query, NORMS["linf"](0.1), rows, roams=True)
            state = attack.init(problem)
            while not attack.done(state).all():
                if int(state.looks[0]) % 5:
                    seen.append(state.noise)
                state = attack.step(problem, state)
    assert len(torch.cat(seen).unique(dim=0)) == 2 * 2 * 3 * 2


@pytest.mark.parametrize(("norm", "part"), [("linf", 0.98), ("l2", 0.95), ("l1", 0.85), ("l0", 0.9)])
def test_most_of_what_a_linear_model_allows_is_reached(norm, part):
    model = random_linear(12, 2)
    x = uniform(8, 12, seed=5, dtype=torch.float64)
    y = model(x).argmax(1)
    eps = {"linf": 0.1, "l2": 0.3, "l1": 0.5, "l0": 2.0}[norm]
    threat = NORMS[norm](eps)
    g = (model[1].weight[1] - model[1].weight[0]).detach() * torch.where(y == 0, 1, -1).unsqueeze(1)
    most = (g * threat.maximize(g, x)).sum(1)
    size = {"l0": 2.0}.get(norm)
    with Query(model, batch_size=8) as query:
        x_adv = maximize(NES(steps=20, samples=100, step_size=size), query, threat, x, y)
    got = margin(model(x_adv), y) - margin(model(x), y)
    assert threat.admits(x_adv, x).all()
    assert (got >= part * most).all(), got / most
    assert (got <= most + 1e-12).all()


def test_a_run_by_hand():
    """The paper's algorithm 1 and projected steps, one example at a time."""
    model = Wavy()
    x = uniform(3, 8, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    steps, samples, sigma, eps = 3, 4, 0.01, 0.05
    threat, attack = NORMS["linf"](eps), NES(steps=steps, samples=samples, sigma=sigma)
    with Query(model, batch_size=4) as query:
        problem = Problem(query, threat, Rows.fresh(threat, torch.arange(3), x, y), roams=True)
        state, iterates = attack.init(problem), []
        while not attack.done(state).all():
            if int(state.looks[0]) % (samples + 1) == 0:
                iterates.append(state.z)
            state = attack.step(problem, state)
    for row in range(3):
        z = torch.zeros(8, dtype=torch.float64)
        for move in range(steps + 1):
            torch.testing.assert_close(iterates[move][row], z, rtol=0, atol=1e-9)
            estimate = torch.zeros_like(z)
            for pair in range(samples // 2):
                draw = move * samples // 2 + pair
                u = Draws(0, torch.tensor([row]), 0, draw).normal(8)[0]
                ends = [model((x[row] + z + side * sigma * u).clip(0, 1)[None]).detach() for side in (1, -1)]
                estimate += float(margin(ends[0], y[row : row + 1]) - margin(ends[1], y[row : row + 1])) * u
            z = (z + 2.5 * eps / steps * estimate.sign()).clip(-eps, eps).clip(-x[row], 1 - x[row])


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"restarts": 0}, {"samples": 0}, {"samples": 5}, {"sigma": 0.0}, {"step_size": -1.0}],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="nes: "):
        NES(**settings)
