import math

import pytest
import torch

from helpers.attacks import NORMS, check_attack, check_superset, examples, lengths
from helpers.zoo import Wavy, convnet, random_linear, uniform
from holdfast.attacks import Problem, Rows, maximize
from holdfast.attacks.square import Square, bump, window
from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin

BLOCK = 256


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_shared(norm):
    runs = 2 if norm == "linf" else 1
    check_attack(Square(queries=24 // runs, restarts=runs), norm, forwards=24, backwards=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_more_never_helps_the_defender(norm):
    check_superset(Square(queries=5), Square(queries=60), norm)
    check_superset(Square(queries=20), Square(queries=20, restarts=3), norm)


def share(step: int, p: float) -> float:
    """The published schedule of 10,000 queries, by the number of the proposal, from 0."""
    for last, divisor in ((10, 1), (50, 2), (200, 4), (500, 8), (1000, 16), (2000, 32), (4000, 64), (6000, 128)):
        if step <= last:
            return p / divisor
    return p / 256 if step <= 8000 else p / 512


def published_side(step: int, p: float, n: int, odd: bool) -> int:
    side = round(math.sqrt(share(step, p) * n * n))
    if odd:
        side = max(side, 3)
        side += side % 2 == 0
    return min(max(side, 1), n)


@pytest.mark.parametrize("n", [1, 2, 4, 6, 9, 10, 28, 32, 224])
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("p", [0.05, 0.8, 1.0])
def test_squares_have_the_published_sides(n, odd, p):
    for step in (0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001):
        assert window(share(step, p), n, n, odd) == (published_side(step, p, n, odd),) * 2


@pytest.mark.parametrize(("height", "width"), [(1, 100), (2, 50), (100, 1), (3, 17), (28, 32), (200, 7)])
def test_other_windows_have_their_share_of_the_pixels(height, width):
    for p in (1.0, 0.8, 0.4, 0.1, 0.01):
        h, w = window(p, height, width)
        assert (h <= height) & (w <= width)
        assert abs(h * w - p * height * width) <= max(h, w) + 0.5
        assert h == w or min(h, w) == min(height, width)
        h, w = window(p, height, width, odd=True)
        assert h % 2 == 1 or h == height
        assert w % 2 == 1 or w == width


def mounds(height: int, width: int, power: int) -> torch.Tensor:
    """A mound as the paper's algorithm 3 builds it, a rectangle at a time; L1 with its own weights."""
    eta = torch.zeros(height, width, dtype=torch.float64)
    i, j = height // 2, width // 2
    for k in range(max(height // 2, width // 2) + 1):
        rows = slice(max(i - k, 0), min(i + k + 1, height))
        columns = slice(max(j - k, 0), min(j + k + 1, width))
        eta[rows, columns] += 1 / (k + 1) ** (2 if power == 2 else 4)
    return eta / eta.norm(power)


def eta(height: int, width: int, power: int, along: bool) -> torch.Tensor:
    """Two mounds of opposite sign in a window, its norm 1."""
    if along:
        return eta(width, height, power, False).T
    upper = height // 2
    parts = ([mounds(upper, width, power)] if upper else []) + [-mounds(height - upper, width, power)]
    whole = torch.cat(parts)
    return whole / whole.norm(power)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 3), (5, 5), (6, 6), (25, 25), (2, 9), (9, 4), (1, 7)])
def test_bumps(power, height, width):
    torch.testing.assert_close(bump(height, width, power), eta(height, width, power, False), rtol=1e-14, atol=0)


def published(model, x, y, index, eps, norm, queries, run=0, p=0.8):
    """The perturbations that Square looks at for one image, from the papers' algorithms in plain loops."""
    channels, h, w = x.shape
    power, blocks = {"linf": 0, "l2": 2, "l1": 1}[norm], -(-queries // BLOCK)
    threat = NORMS[norm](eps)
    nobody = torch.tensor([index])

    def words(draw, count, lane=0):
        return Draws(0, nobody, 0, draw).bits(count, lane)[0].tolist()

    def sign(word):
        return word % 2 * 2 - 1

    def admissible(change):
        if norm == "l1":
            return threat.project(change[None], x[None])[0]
        change = change.clip(-eps, eps) if norm == "linf" else change * min(1, eps / float(change.norm()))
        return change.clip(-x, 1 - x)

    def start():
        z = torch.zeros_like(x)
        if norm == "linf":
            signs = iter(words(run * blocks, channels * w, lane=1))
            for c in range(channels):
                for j in range(w):
                    z[c, :, j] = eps * sign(next(signs))
            return admissible(z)
        th, tw = max(h // 5, 1), max(w // 5, 1)
        top, left = max(h - 5 * th, 0) // 2, max(w - 5 * tw, 0) // 2
        rows, columns = (h - top) // th, (w - left) // tw
        signs = [sign(word) for word in words(run * blocks, (channels + 1) * rows * columns, lane=1)]
        for r in range(rows):
            for k in range(columns):
                split_rows = (signs[r * columns + k] > 0 or tw == 1) and th != 1
                tile = eta(th, tw, power, not split_rows and tw > 1)
                for c in range(channels):
                    i, j = top + r * th, left + k * tw
                    z[c, i : i + th, j : j + tw] = tile * signs[((c + 1) * rows + r) * columns + k]
        size = float(z.abs().pow(power).sum() ** (1 / power))
        return admissible(z * (eps / size if norm == "l2" else max(eps / size, 1)))

    def moved(z, step):
        count = (2 if norm == "linf" else 5) + channels
        drawn = words(run * blocks + step // BLOCK, BLOCK * count)[step % BLOCK * count :][:count]
        sides = window(share(step, p), h, w, odd=norm != "linf")
        room, signs = (h - sides[0] + 1, w - sides[1] + 1), drawn[-channels:]
        i, j = drawn[0] * room[0] >> 32, drawn[1] * room[1] >> 32
        first = (slice(i, i + sides[0]), slice(j, j + sides[1]))
        z = z.clone()
        if norm == "linf":
            for c in range(channels):
                z[(c, *first)] += 2 * eps * sign(signs[c])
            return admissible(z)
        i, j = drawn[2] * room[0] >> 32, drawn[3] * room[1] >> 32
        second = (slice(i, i + sides[0]), slice(j, j + sides[1]))
        split_along = (drawn[4] % 2 == 1 and sides[1] > 1) or sides[0] == 1
        shape = eta(*sides, power, split_along)
        whole = float(z.abs().pow(power).sum())
        old = z.clone()
        for c in range(channels):
            there = old[(c, *first)]
            new = sign(signs[c]) * shape + there / (1e-12 + there.norm(power))
            both = torch.zeros(h, w, dtype=torch.bool)
            both[first] = both[second] = True
            spent = old[c][both].abs().pow(power).sum()
            length = (max(eps**power - whole, 0) / channels + spent) ** (1 / power)
            new = new / (1e-12 + new.norm(power)) * length * (channels if norm == "l1" else 1)
            z[(c, *second)] = 0
            z[(c, *first)] = new
        return admissible(z / float(z.norm()) * eps if norm == "l2" else z)

    def look(z):
        points.append(z)
        return float(margin(model((x + z).clip(0, 1).expand(4, *x.shape)).detach(), y.expand(4))[0])

    points: list[torch.Tensor] = []
    best = start()
    value = look(best)
    for step in range(queries - 1):
        z = moved(best, step)
        if (seen := look(z)) > value:
            best, value = z, seen
    return points


def trace(attack, model, x, y, threat, index, run=0):
    """What ours looks at, and its best, all rows at once."""
    points = []
    with Query(model, batch_size=4) as query:
        problem = Problem(query, threat, Rows.fresh(threat, index, x, y).entering(run))
        state = attack.init(problem)
        while not attack.done(state).all():
            points.append(state.z)
            state = attack.step(problem, state)
    return torch.stack(points, 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 8, 8), (2, 4, 12), (10,), (7, 1)])
def test_the_whole_trace_is_that_of_the_papers(norm, shape):
    queries, run = (300, 1) if shape == (1, 9, 9) else (60, 0)
    model = Wavy(math.prod(shape))
    x = uniform(4, *shape, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    eps = {"linf": 0.1, "l2": 0.5, "l1": 1.5}[norm]
    index = torch.tensor([5, 0, 17, 2])
    got = trace(Square(queries=queries), model, x, y, NORMS[norm](eps), index, run)
    for row in range(4):
        image = x[row].reshape(-1, *(1, *shape)[-2:])
        expected = published(model, image, y[row], int(index[row]), eps, norm, queries, run)
        error = (got[row] - torch.stack(expected).reshape(-1, *shape)).abs()
        # A bump that meets its own opposite leaves rounding noise, which the authors' floor of 1e-12 magnifies.
        assert error.amax() < (1e-9 if norm == "linf" else 1e-3)
        assert (error > 1e-9).double().mean() < 0.005


@pytest.mark.parametrize("shape", [(12,), (2, 3, 4), (1, 5, 5)])
def test_linf_reaches_the_optimum_of_a_linear_model_by_corners_alone(shape):
    model = random_linear(math.prod(shape), 2)
    x, eps = uniform(6, *shape, seed=5, dtype=torch.float64), 0.1
    y = model(x).argmax(1)
    g = (model[1].weight[1] - model[1].weight[0]).detach() * torch.where(y == 0, 1, -1).unsqueeze(1)
    corner = (eps * g.sign().reshape(x.shape)).clamp(-x, 1 - x)
    with Query(model, batch_size=6) as query:
        x_adv = maximize(Square(queries=1500), query, NORMS["linf"](eps), x, y)
    torch.testing.assert_close(x_adv, x + corner, rtol=0, atol=1e-12)
    points = trace(Square(queries=300), model, x[:4], y[:4], NORMS["linf"](eps), torch.arange(4))
    x = x[:4, None]
    ends = torch.isclose(points, (-x).clamp_min(-eps)) | torch.isclose(points, (1 - x).clamp_max(eps))
    assert ends.all()


@pytest.mark.parametrize(("norm", "eps", "part"), [("l2", 0.4, 0.45), ("l1", 0.8, 0.4)])
@pytest.mark.parametrize("box", [None, (0, 1)])
def test_l2_and_l1_spend_the_budget_and_no_more(norm, eps, part, box):
    model = random_linear(48, 2)
    x = uniform(4, 3, 4, 4, seed=5, dtype=torch.float64)
    y = model(x).argmax(1)
    threat = NORMS[norm](eps, box=box)
    points = trace(Square(queries=800), model, x, y, threat, torch.arange(4))
    sizes = lengths(norm, points.flatten(0, 1))
    assert (sizes <= eps * (1 + 1e-12)).all()
    if box is None:
        torch.testing.assert_close(sizes, torch.full_like(sizes, eps), rtol=1e-9, atol=0)
    g = (model[1].weight[1] - model[1].weight[0]).detach() * torch.where(y == 0, 1, -1).unsqueeze(1)
    g = g.reshape(x.shape)
    most = (g * threat.maximize(g, x)).flatten(1).sum(1)
    got = (g[:, None] * points).flatten(2).sum(2).amax(1)
    assert (got >= part * most).all(), got / most
    assert (got <= most + 1e-9).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_windows_touch_every_edge(norm):
    """Over many proposals every position is drawn about equally often, the last ones included."""
    attack = Square(queries=257)
    x = torch.full((400, 1, 5, 5), 0.5)
    with Query(random_linear(25, 2).float(), batch_size=400) as query:
        problem = Problem(
            query, NORMS[norm](0.1), Rows.fresh(NORMS[norm](0.1), torch.arange(400), x, torch.zeros(400).long())
        )
        plan = attack.step(problem, attack.init(problem)).plan
    for axis in (0, 1):
        last = 5 - plan[:, 250, 2 + axis]
        position = plan[:, 250, axis]
        counts = torch.bincount(position.long())
        assert len(counts) == last[0] + 1 == last.amax() + 1 > 2
        assert (counts > 0.6 * 400 / len(counts)).all()
    if norm == "linf":
        assert abs(plan[..., 4:].mean()) < 0.02
        assert set(plan[..., 4:].unique().tolist()) == {-1.0, 1.0}


def test_l0_is_refused():
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match=r"square works in .* not under l0:2: use sparse-rs"):
        Square()(model, x, y, threat=NORMS["l0"](2))


@pytest.mark.parametrize("settings", [{"queries": 0}, {"restarts": 0}, {"p": 0.0}, {"p": 1.1}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="square: "):
        Square(**settings)
