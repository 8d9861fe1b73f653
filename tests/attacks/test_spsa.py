import pytest
import torch

from helpers.attacks import NORMS, check_attack, check_superset, examples
from helpers.zoo import Wavy, convnet, random_linear, uniform
from holdfast.attacks import Problem, Rows, maximize
from holdfast.attacks.spsa import SPSA
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_shared(norm):
    rate = {"linf": 0.005, "l2": 0.02}[norm]
    samples = 12 if norm == "linf" else 4
    attack = SPSA(steps=4, samples=samples, delta=0.001, learning_rate=rate)
    check_attack(attack, norm, forwards=4 * samples + 5, backwards=0)


def test_more_never_helps_the_defender():
    few = SPSA(steps=3, samples=6, learning_rate=0.005)
    check_superset(few, SPSA(steps=6, samples=6, learning_rate=0.005), "linf")
    check_superset(few, SPSA(steps=3, samples=6, learning_rate=0.005, restarts=2), "linf")


@pytest.mark.parametrize("eps", [0.02, 0.2])
def test_the_moves_are_adams(eps):
    """With the estimates it made, torch's Adam and clipping walk the same way; rows of other ages do not disturb."""
    model, samples = Wavy(), 4
    x = uniform(3, 8, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    attack = SPSA(steps=6, samples=samples, delta=0.01, learning_rate=0.01)
    estimates, iterates = [], []
    with Query(model, batch_size=3) as query:
        problem = Problem(query, NORMS["linf"](eps), Rows.fresh(NORMS["linf"](eps), torch.arange(3), x, y), roams=True)
        state = attack.init(problem)
        while not attack.done(state).all():
            values = []
            evaluate = problem.evaluate
            z, v, total = state.z, state.noise, state.total
            problem.evaluate = lambda *a, f=evaluate, out=values: out.append(f(*a)) or out[-1]
            probe, ahead = int(state.looks[0]) % (samples + 1), state.ahead
            state = attack.step(problem, state)
            problem.evaluate = evaluate
            if probe == 0:
                iterates.append(z)
            if probe == samples:
                estimates.append(total + ((ahead - values[0]) / 0.02 / (samples // 2)).unsqueeze(1) * v)
    walker = torch.zeros_like(x).requires_grad_(True)
    adam = torch.optim.Adam([walker], lr=0.01, maximize=True)
    for iterate, estimate in zip(iterates[1:], estimates, strict=False):
        walker.grad = estimate
        adam.step()
        with torch.no_grad():
            walker.clamp_(-eps, eps).clamp_(-x, 1 - x)
        torch.testing.assert_close(iterate, walker.detach(), rtol=0, atol=1e-9)
    assert len(iterates) == 7
    assert (iterates[-1] != 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_most_of_what_a_linear_model_allows_is_reached(norm):
    model = random_linear(12, 2)
    x = uniform(8, 12, seed=5, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = NORMS[norm]({"linf": 0.1, "l2": 0.3}[norm])
    g = (model[1].weight[1] - model[1].weight[0]).detach() * torch.where(y == 0, 1, -1).unsqueeze(1)
    most = (g * threat.maximize(g, x)).sum(1)
    with Query(model, batch_size=8) as query:
        x_adv = maximize(SPSA(steps=40, samples=40), query, threat, x, y)
    got = margin(model(x_adv), y) - margin(model(x), y)
    assert threat.admits(x_adv, x).all()
    assert (got >= {"linf": 0.95, "l2": 0.85}[norm] * most).all(), got / most
    assert (got <= most + 1e-12).all()


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_other_norms_are_refused(norm):
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match=f"not under {norm}:2: use nes"):
        SPSA()(model, x, y, threat=NORMS[norm](2))


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"restarts": 0}, {"samples": 0}, {"samples": 5}, {"delta": 0.0}, {"learning_rate": 0.0}],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="spsa: "):
        SPSA(**settings)
