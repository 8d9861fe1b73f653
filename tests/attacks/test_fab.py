from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from helpers.attacks import NORMS, check_attack, check_superset, examples, outcomes
from helpers.planes import linear_distances
from helpers.zoo import Wavy, Wrapped, constant, convnet, random_linear, uniform
from holdfast.attacks import Problem, Rows, craft, fab
from holdfast.attacks.fab import FAB
from holdfast.errors import SettingError
from holdfast.models.query import Query

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


@pytest.mark.parametrize(
    ("norm", "targets"),
    [
        ("linf", 2),
        ("l2", 0),
        ("l1", 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("linf", 0), ("l2", 2), ("l1", 0)]),
    ],
)
def test_shared(norm, targets):
    runs, backwards = max(targets, 1), 1 if targets else 5
    check_attack(FAB(steps=4, targets=targets), norm, forwards=11 * runs, backwards=4 * runs * backwards)


@pytest.mark.parametrize("norm", ORDER)
def test_more_never_helps_the_defender(norm):
    check_superset(FAB(steps=4), FAB(steps=4, restarts=3), norm, factor=0.5)
    check_superset(FAB(steps=4, targets=1), FAB(steps=4, targets=3), norm, factor=0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("targets", [0, 4])
@pytest.mark.parametrize("norm", ORDER)
def test_the_distance_to_a_linear_boundary(norm, targets, dtype):
    model = random_linear(12, 5).to(dtype)
    x = uniform(30, 12, dtype=dtype)
    y = model(x).argmax(1)
    result = FAB(steps=10, targets=targets)(model, x, y, threat=NORMS[norm]("inf", box=None))
    assert result.success.all()
    exact = linear_distances(model, x, y, norm, box=None)
    rounding = 1e-8 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(result.distance.double(), exact, rtol=1e-4, atol=rounding)
    assert (result.distance >= exact * (1 - 1e-6)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("norm", ORDER)
def test_the_scale_of_the_logits_does_not_matter(norm, scale):
    model = random_linear(12, 5).float()
    x = uniform(30, 12)
    y = model(x).argmax(1)
    for attack in (FAB(steps=10), FAB(steps=10, targets=4)):
        result = attack(Wrapped(model, lambda z: z * scale), x, y, threat=NORMS[norm]("inf", box=None))
        exact = linear_distances(model, x, y, norm, box=None)
        torch.testing.assert_close(result.distance.double(), exact, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("targets", [0, 3])
@pytest.mark.parametrize("norm", ORDER)
def test_the_distance_to_a_linear_boundary_in_a_box(norm, targets):
    model = random_linear(5, 4)
    x = (4 * uniform(20, 5, seed=3, dtype=torch.float64) - 1.5).clamp(0, 1)  # most of the coordinates at a face
    y = model(x).argmax(1)
    exact = linear_distances(model, x, y, norm, box=(0.0, 1.0))
    free = linear_distances(model, x, y, norm, box=None)
    result = FAB(steps=100, targets=targets)(model, x, y, threat=NORMS[norm]("inf"))
    reachable = exact.isfinite()
    assert ((exact > 1.05 * free) & reachable).sum() >= 3  # the box is in the way
    assert torch.equal(result.success, reachable)
    assert (result.distance[reachable] >= exact[reachable] * (1 - 1e-6)).all()
    ratio = result.distance[reachable] / exact[reachable]
    # Of several boundaries the untargeted attack goes to the nearest one as if there were no box.
    assert (ratio < 1.003).sum() >= len(ratio) - (targets == 0)


def move_to_plane(norm, w, gap, low, high):
    """The shortest move in a box that gains ``gap`` along ``w``, found by bisection; the corner where none does."""
    if gap < 0:
        w, gap = -w, -gap
    room = np.where(w > 0, high, -low)
    size = np.abs(w)

    def moves(scale):
        if norm == "l1":  # ``scale`` is how much is gained by the coordinates in the order of their gradients
            done, order = np.zeros_like(w), np.argsort(-size, kind="stable")
            for i in order:
                done[i] = min(room[i], max(scale, 0) / size[i])
                scale -= done[i] * size[i]
            return done
        return np.minimum(room, scale * (size if norm == "l2" else 1))

    if size @ room <= gap:
        return np.sign(w) * room
    lowest, highest = 0.0, 1.0
    while size @ moves(highest) < gap:
        highest *= 2
    for _ in range(200):
        middle = (lowest + highest) / 2
        lowest, highest = (middle, highest) if size @ moves(middle) < gap else (lowest, middle)
    return np.sign(w) * moves(highest)


def published(model, x, y, t, norm, steps):
    """The points that FAB-T looks at, two an iteration, from the paper and the order of the published code."""

    def ask(point):
        point = torch.from_numpy(point).reshape(1, -1).requires_grad_(True)
        logits = model(point)[0]
        (gradient,) = torch.autograd.grad(logits[t] - logits[y], point)
        return (logits[t] - logits[y]).item(), gradient[0].numpy(), logits.argmax().item() != y

    x = x.numpy()
    current, points = x.copy(), []
    for _ in range(steps):
        f, w, _ = ask(current)
        points.append(current - x)
        d1 = move_to_plane(norm, w, -f, -current, 1 - current)
        d2 = move_to_plane(norm, w, -f + w @ (current - x), -x, 1 - x)
        a1, a2 = (max(np.linalg.norm(d, ORDER[norm]), 1e-8) for d in (d1, d2))
        alpha = min(a1 / (a1 + a2), 0.1)
        current = ((1 - alpha) * (current + 1.05 * d1) + alpha * (x + 1.05 * d2)).clip(0, 1)
        points.append(current - x)
        if ask(current)[2]:
            current = x + 0.9 * (current - x)
    return torch.from_numpy(np.stack(points))


@pytest.mark.parametrize("norm", ORDER)
def test_the_points_are_those_of_the_published_algorithm(norm):
    model = Wavy()
    x = uniform(6, 8, seed=1, dtype=torch.float64)
    x[0, :4], x[1, 4:] = 0.0, 1.0
    with torch.no_grad():
        clean = model(x)
    y = clean.argmax(1)
    rows = Rows.fresh(NORMS[norm](0.1), torch.arange(6), x, y, clean_logits=clean).entering(1)
    attack, points, fooled = FAB(steps=12, targets=3), [], []
    with Query(model, batch_size=8) as query:
        problem = Problem(query, NORMS[norm]("inf"), rows, roams=True)
        state = attack.init(problem)
        for _ in range(24):
            points.append(state.z)
            state = attack.step(problem, state)
            fooled.append(problem.fooled)
    second = clean.argsort(1, descending=True)[:, 2]
    for row in range(6):
        expected = published(model, x[row], int(y[row]), int(second[row]), norm, 12)
        torch.testing.assert_close(torch.stack(points)[:, row], expected, rtol=0, atol=1e-7)
    looks = torch.stack(fooled)[1::2]
    assert looks.any(0).all()
    assert not looks.all()


@dataclass(frozen=True)
class Recording(FAB):
    """FAB that notes where each run starts and which class it steers to."""

    log: dict = field(default_factory=dict)

    def init(self, problem):
        state = super().init(problem)
        for i, (index, run) in enumerate(zip(problem.rows.index.tolist(), problem.rows.run.tolist(), strict=True)):
            self.log[index, run] = (None if state.target is None else int(state.target[i]), state.z[i])
        return state


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("eps", ["1e-6", "inf"])
def test_runs(norm, eps):
    model = convnet()
    x, y = examples(model)
    with torch.no_grad():
        logits = torch.cat([model(row) for row in x.split(1)])
    attack = Recording(steps=2, restarts=2, targets=3)
    found = outcomes(attack, model, NORMS[norm](eps), x, y)
    one = outcomes(FAB(steps=2, targets=3), model, NORMS[norm](eps), x, y)
    for i in set(range(24)) - {3, 11}:
        ranked = [k for k in logits[i].argsort(descending=True).tolist() if k != int(y[i])]
        assert [attack.log[i, run][0] for run in range(6)] == ranked[:3] * 2
        starts = [attack.log[i, run][1].flatten() for run in range(6)]
        assert not any(start.any() for start in starts[:3])
        lengths = [float(np.linalg.norm(start, ORDER[norm])) for start in starts[3:]]
        radius = 1e-6 if eps != "inf" else one[i].distance if one[i].verdict == "broken" else 1.0
        # The box cuts a start short.
        assert all(0.25 * radius < length <= 0.5001 * radius for length in lengths)
        assert len({tuple(start.tolist()) for start in starts[3:]}) == 3
        assert found[i].forwards <= 1 + 6 * 7 + 5


def test_a_wanted_class_takes_one_run():
    model = random_linear(8, 10)
    x = uniform(4, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    for targets in (0, 9):
        attack = FAB(steps=5, targets=targets)
        near = attack(model, x, y, threat=NORMS["l2"](1e-6), target=(y + 1) % 10)
        assert (near.forwards <= 1 + 13).all()
        assert (near.backwards == 5).all()
        free = FAB(steps=30, targets=targets)(model, x, y, threat=NORMS["l2"]("inf", box=None), target=(y + 1) % 10)
        with torch.no_grad():
            assert torch.equal(model(free.x_adv).argmax(1), (y + 1) % 10)


def test_as_many_queries_as_the_published_attack():
    model = random_linear(8, 10)
    x = uniform(4, 8, dtype=torch.float64)
    result = FAB(targets=9)(model, x, model(x).argmax(1), threat=NORMS["linf"](1e-6))
    assert (result.forwards == 1 + 9 * 203).all()
    assert (result.backwards == 9 * 100).all()


@pytest.mark.parametrize("norm", ORDER)
def test_the_final_search(norm, monkeypatch):
    model = Wavy()
    x = uniform(20, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    attack, threat = FAB(steps=20, targets=3), NORMS[norm]("inf")
    searched = attack(model, x, y, threat=threat)
    monkeypatch.setattr(fab, "_SEARCH", 0)
    plain = attack(model, x, y, threat=threat)
    assert plain.success.all()
    ratio = searched.distance / plain.distance
    assert (ratio <= 1).all()
    assert (ratio < 0.999).float().mean() > 0.5
    assert (searched.forwards <= plain.forwards + 9 + 4).all()


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("box", [None, (0.0, 1.0)], ids=["free", "box"])
@pytest.mark.parametrize("norm", ORDER)
def test_flat_models(norm, box, targets):
    x, y = uniform(4, 6), torch.ones(4, dtype=torch.int64)
    for eps in ("inf", "0.1"):
        result = craft(FAB(steps=3, restarts=2, targets=targets), constant(), x, y, threat=NORMS[norm](eps, box=box))
        assert not result.success.any()
        assert result.x_adv.isfinite().all()
        assert (result.forwards <= 1 + 12 * max(targets, 1)).all()


@pytest.mark.parametrize("targets", [0, 1])
@pytest.mark.parametrize("norm", ORDER)
def test_two_classes(norm, targets):
    model = random_linear(6, 2)
    x = uniform(10, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    result = FAB(steps=5, targets=targets)(model, x, y, threat=NORMS[norm]("inf", box=None))
    torch.testing.assert_close(result.distance, linear_distances(model, x, y, norm, box=None), rtol=1e-4, atol=0)


def test_other_threats_are_refused():
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match="not under l0:2: use"):
        FAB()(model, x, y, threat=NORMS["l0"](2))


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"restarts": 0},
        {"targets": -1},
        {"alpha_max": 1.5},
        {"alpha_max": -0.1},
        {"eta": 0.9},
        {"eta": float("nan")},
        {"beta": 1.0},
        {"beta": 0.0},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match=r"^fab: "):
        FAB(**settings)
