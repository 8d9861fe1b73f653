from itertools import combinations, product

import pytest
import torch

from helpers.attacks import NORMS, check_attack, check_superset, examples
from helpers.zoo import Wavy, convnet, random_linear, uniform
from holdfast.attacks import Problem, Rows, maximize
from holdfast.attacks.sparse_rs import SparseRS
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin


def test_shared():
    check_attack(SparseRS(queries=15, restarts=2), "l0", forwards=30, backwards=0)


def test_more_never_helps_the_defender():
    check_superset(SparseRS(queries=20), SparseRS(queries=20, restarts=3), "l0")


@pytest.mark.parametrize("eps", [1, 2, 3, 5, 6, 9])
def test_the_best_corner_of_a_tiny_problem_by_brute_force(eps):
    """Of every choice of coordinates and ends, whatever the budget, more than all coordinates included."""
    model = Wavy(6, seed=3)
    x = uniform(5, 6, seed=1, dtype=torch.float64)
    x[0, 2], x[0, 3], x[1] = 0.0, 1.0, torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    y = model(x).argmax(1)
    with Query(model, batch_size=160) as query:
        x_adv = maximize(SparseRS(queries=200), query, NORMS["l0"](eps), x.repeat(32, 1), y.repeat(32))
    for i in range(len(x)):
        corners = [
            x[i].index_put((torch.tensor(where),), torch.tensor(ends, dtype=torch.float64))
            for where in combinations(range(6), min(eps, 6))
            for ends in product((0.0, 1.0), repeat=min(eps, 6))
        ]
        # Every change is a change, so a corner that leaves a coordinate where it was does not count.
        corners = [c for c in corners if int((c != x[i]).sum()) == min(eps, 6)]
        best = margin(model(torch.stack(corners)), y[i].expand(len(corners))).max()
        # Exchanges one by one end in the best corner from some starts only.
        got = margin(model(x_adv[i :: len(x)]), y[i].expand(32)).max()
        assert float(got.detach()) == pytest.approx(float(best.detach()), abs=1e-9)


def trace(attack, x, threat, looks=None):
    """What is looked at, and the best before each look, on a model that is a sum."""
    model = random_linear(x[0].numel(), 2).to(x.dtype)
    y = model(x).argmax(1)
    looked, best = [], []
    with Query(model, batch_size=len(x)) as query:
        problem = Problem(query, threat, Rows.fresh(threat, torch.arange(len(x)), x, y))
        state = attack.init(problem)
        while not attack.done(state).all() and len(looked) != looks:
            looked.append(state.z)
            best.append(state.best)
            state = attack.step(problem, state)
    return torch.stack(looked, 1), torch.stack(best, 1)


def published_exchange(step: int, queries: int, alpha: float, eps: int) -> int:
    at = step * 10000 // queries
    for last, divisor in (
        (0, 1),
        (50, 2),
        (200, 4),
        (500, 5),
        (1000, 6),
        (2000, 8),
        (4000, 10),
        (6000, 12),
        (8000, 15),
    ):
        if at <= last:
            return max(int(alpha / divisor * eps), 1)
    return max(int(alpha / 20 * eps), 1)


@pytest.mark.parametrize("queries", [100, 400])
def test_as_many_changes_are_exchanged_as_published(queries):
    eps, alpha = torch.tensor([1.0, 4.0, 30.0, 59.0]), 0.8
    x = 0.1 + 0.8 * uniform(4, 3, 4, 5, dtype=torch.float64)
    looked, best = trace(SparseRS(queries=queries, alpha=alpha), x, NORMS["l0"](eps))
    changed, before = looked != 0, best != 0
    assert (changed.flatten(2).sum(2) == eps.long()[:, None]).all()
    ends = ((x[:, None] + looked - 0.5).abs() - 0.5).abs() < 1e-12
    assert torch.equal(ends, changed)
    left = (before & ~changed).flatten(2).sum(2)
    assert torch.equal(left, (changed & ~before).flatten(2).sum(2))
    for row, budget in enumerate(eps.long().tolist()):
        expected = [min(published_exchange(step, queries, alpha, budget), 60 - budget) for step in range(1, queries)]
        assert left[row, 1:].tolist() == expected
    kept = changed & before
    assert torch.equal(looked[kept], best[kept])


def test_every_coordinate_is_drawn_equally_often():
    x = torch.full((4000, 8), 0.5)
    looked, best = trace(SparseRS(queries=20_000, alpha=0.5), x, NORMS["l0"](4), looks=2)
    for share, expected in (
        ((looked[:, 0] != 0), 0.5),
        ((looked[:, 0] > 0), 0.25),
        (((looked[:, 1] != 0) & (best[:, 1] == 0)), 0.25),
        (((looked[:, 1] == 0) & (best[:, 1] != 0)), 0.25),
        (((looked[:, 1] > 0) & (best[:, 1] == 0)), 0.125),
    ):
        assert (share.double().mean(0) - expected).abs().max() < 0.035


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_other_norms_are_refused(norm):
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match=f"not under {norm}:2: use square"):
        SparseRS()(model, x, y, threat=NORMS[norm](2))


@pytest.mark.parametrize("settings", [{"queries": 0}, {"restarts": 0}, {"alpha": 0.0}, {"alpha": 1.1}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="sparse-rs: "):
        SparseRS(**settings)
