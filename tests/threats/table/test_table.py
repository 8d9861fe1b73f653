"""The threat against ground truth: an independent judge, quadratic programs, and enumerated grids."""

import os
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, linprog, minimize

from helpers.sets import CHECKS, Case
from helpers.tables import Judge, random_rules
from helpers.zoo import random_linear
from holdfast.attacks import APGD, Evolution
from holdfast.draws import Draws
from holdfast.threats.table import Column, Group, Rules, Table, parse_relation, read_table

RELATIONS = ("words <= 2*links + 30", "rate + share <= 1.5", "`kind=b` = 1 -> links >= 3", "links > 6 -> words > 12")

# Files of random rules; a run of many takes a fifth of a second each.
FILES = int(os.environ.get("HOLDFAST_RULE_FILES", "200"))


def mail(norm, eps, **settings):
    """A table of every kind of column."""
    columns = (
        Column("words", "integer", "up", lower=0, upper=60, unit=20),
        Column("links", "integer", "both", lower=0, upper=9, unit=5, cost=2),
        Column("rate", move="both", lower=0, upper=1, cost=0.5),
        Column("share", move="down", lower=0, most=0.4, unit=0.5),
        Column("age"),
        Column("kind=a"),
        Column("kind=b"),
        Column("kind=c"),
    )
    group = Group("kind", ("kind=a", "kind=b", "kind=c"), distance=0.5, transitions=(("kind=a", ("kind=b",)),))
    relations = tuple(map(parse_relation, RELATIONS))
    return Table(Rules(columns, (group,), relations), norm, eps, **settings)


X = torch.tensor(
    [
        [10, 4, 0.25, 0.75, 31.5, 1, 0, 0],
        [30, 1, 0.5, 0.5, 2, 1, 0, 0],
        [0, 0, 1, 0.125, 0.1, 0, 0, 1],
        [44, 7, 0.1, 0.9, 12, 0, 1, 0],
        [12, 6, 0.7, 0.75, -3, 1, 0, 0],
    ],
    dtype=torch.float32,
)
EACH = torch.tensor([0.3, 0.6, 1.0, 0.2, 2.0])
CASES = {
    "linf": Case(mail("linf", 0.6), X, mail("linf", 0.0), smooth=False, parses=False),
    "l2": Case(mail("l2", 0.75), X, mail("l2", 0.0), smooth=False, parses=False),
    "l1": Case(mail("l1", 1.5), X, mail("l1", 0.0), smooth=False, parses=False),
    "l0": Case(mail("l0", 2), X, mail("l0", 0), smooth=False, parses=False),
    "cost": Case(mail("cost", 1.5), X, mail("cost", 0.0), smooth=False, parses=False),
    "each its own": Case(mail("linf", EACH), X, mail("linf", 0 * EACH), smooth=False, parses=False),
    "float64": Case(mail("l1", 1.5), X.double(), mail("l1", 0.0), smooth=False, parses=False),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_threat(case, check):
    check(case)


def test_a_file_of_rules_round_trips(tmp_path):
    text, x = random_rules(3)
    path = tmp_path / "rules.toml"
    path.write_text(text)
    for check in CHECKS:
        if check.__name__ != "check_nothing":
            check(Case(read_table(path), x, smooth=False))


def test_units_are_told_in_words():
    assert mail("l1", 1.5).units() == {
        "words": "20 (raw)",
        "links": "5 (raw)",
        "rate": "1 (raw)",
        "share": "0.5 (raw)",
        "kind": "another category counts 0.5",
    }
    assert mail("cost", 1.5).units()["links"] == "5 (raw), at 2 each"
    assert mail("cost", 1.5).units()["kind"] == "another category counts 1"
    assert mail("l0", 1).units()["kind"] == "another category counts 1"


def choices(threat, x, seed):
    """Choices found in all ways that there are."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale):
        return (torch.randn(x.shape, generator=generator, dtype=torch.float64) * scale).to(x.dtype)

    yield threat.sample(x, Draws(seed, torch.arange(len(x))))
    for scale in (0.3, 3, 30):
        yield threat.project(noise(scale), x)
        yield threat.retract(noise(scale), x)
    z, grad = threat.nothing(x), noise(1)
    for number in range(3):
        z = threat.ascend(z, x, grad, 2 * threat.budget(x) / (number + 1))
        yield z


def check_judged(seeds, tmp_path):
    """No choice breaks a rule of random files; most of them change something."""
    moved, all_ = 0, 0
    path = tmp_path / "rules.toml"
    for seed in seeds:
        text, x = random_rules(seed)
        path.write_text(text)
        threat, x = read_table(path), x.float() if seed % 2 else x
        threat = threat.near(x)
        for z in choices(threat, x, seed):
            assert bool(threat.contains(x, z).all()), f"seed {seed}"
            row = threat.apply(x, z)
            assert Judge(text).broken(x, row) is None, f"seed {seed}"
            moved, all_ = moved + int((row != x).any(1).sum()), all_ + len(x)
    assert moved > 0.6 * all_


def test_no_choice_breaks_a_rule(tmp_path):
    check_judged(range(25), tmp_path)


@pytest.mark.slow
def test_no_choice_breaks_a_rule_of_many_files(tmp_path):
    check_judged(range(800, 800 + FILES), tmp_path)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("seed", range(6))
def test_the_projection_is_that_of_a_quadratic_program(norm, seed):
    """Random polytopes of real columns, in units of their own."""
    generator = np.random.default_rng([seed, ord(norm[1])])
    d, x = 5, generator.uniform(-1, 1, 5)
    unit = generator.uniform(0.5, 3, d)
    normal = generator.normal(size=(3, d)).round(3)
    bound = (normal @ x + generator.uniform(0, 0.3, 3)).round(6) + 1e-3
    names = [f"c{j}" for j in range(d)]
    columns = tuple(Column(n, move="both", lower=-1.5, upper=1.5, unit=u) for n, u in zip(names, unit, strict=True))
    texts = [
        " ".join(f"{'-' if a < 0 else '+'} {abs(a)}*{n}" for a, n in zip(row, names, strict=True)) + f" <= {b!r}"
        for row, b in zip(normal, bound.tolist(), strict=True)
    ]
    eps = 0.4 if norm == "linf" else 0.8
    threat = Table(Rules(columns, (), tuple(parse_relation(text.lstrip("+ ")) for text in texts)), norm, eps)
    wanted = generator.normal(size=d) * 1.5
    clean = torch.tensor(x)[None]
    z = threat.project(torch.tensor(wanted)[None], clean)
    assert bool(threat.contains(clean, z).all())
    # The same in units of the budget. A point is the nearest if no other one lies nearer in the direction of what was
    # wanted, and that is a linear program but for the round ball of L2.
    found, goal = z[0].numpy() / unit, wanted / unit
    low, high = (-1.5 - x) / unit, (1.5 - x) / unit
    slopes, limits = normal * unit, bound - normal @ x
    if norm == "l2":
        best = minimize(
            lambda s: ((s - goal) ** 2).sum(),
            np.zeros(d),
            jac=lambda s: 2 * (s - goal),
            bounds=list(zip(low, high, strict=True)),
            constraints=[
                LinearConstraint(slopes, -np.inf, limits),
                {"type": "ineq", "fun": lambda s: eps**2 - (s**2).sum(), "jac": lambda s: -2 * s},
            ],
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-12},
        )
        # The search may say that it could not go on, having arrived.
        assert ((found - goal) ** 2).sum() <= best.fun + 1e-7
        np.testing.assert_allclose(found, best.x, atol=1e-4)
        return
    # Each change is the difference of two numbers that are not negative, whose sum L1 counts.
    pairs = np.hstack([np.eye(d), -np.eye(d)])
    ends = np.maximum(low, -eps), np.minimum(high, eps)
    rows = [slopes @ pairs, pairs, -pairs] + ([np.ones((1, 2 * d))] if norm == "l1" else [])
    least = np.concatenate([limits, ends[1], -ends[0]] + ([[eps]] if norm == "l1" else []))
    program = linprog(-pairs.T @ (goal - found), np.vstack(rows), least, bounds=(0, None))
    assert program.status == 0
    assert (goal - found) @ (pairs @ program.x - found) < 1e-8


def grid(threat, x):
    """Every row of whole numbers and categories in the bounds of a clean one, ``(M, d)``."""
    choices = []
    columns = threat.rules.columns
    grouped = {name: group for group in threat.rules.groups for name in group.columns}
    for column, value in zip(columns, x.tolist(), strict=True):
        if column.name in grouped:
            choices.append([0.0, 1.0])
        elif column.move == "none":
            choices.append([value])
        else:
            choices.append([float(v) for v in range(int(value) - 12, int(value) + 13)])
    if np.prod([len(c) for c in choices]) > 100_000:
        return None
    return torch.tensor(list(product(*choices)), dtype=x.dtype)


def test_membership_on_whole_grids_is_the_judges(tmp_path):
    """Both ways: no row too many, and none too few."""
    path = tmp_path / "rules.toml"
    seen = inside = 0
    for seed in range(400):
        text, x = random_rules(seed, rows=1, whole=True)
        path.write_text(text)
        rows = grid(threat := read_table(path), x[0])
        if rows is None or not 1 < len(rows) < 4000:
            continue
        admitted = threat.admits(rows, x.expand_as(rows))
        judge = Judge(text)
        judged = [judge.says(x[0].tolist(), row, 0) is None for row in rows.tolist()]
        assert admitted.tolist() == judged, f"seed {seed}"
        seen, inside = seen + len(rows), inside + sum(judged)
    assert seen > 10_000
    assert inside > 1000


def margins(model, rows, y):
    logits = model(rows).detach()
    label = int(y)
    return logits.index_fill(1, torch.tensor([label]), -torch.inf).amax(1) - logits[:, label]


def worst(model, threat, x, y):
    """The largest margin over all admissible rows of a grid, by enumeration."""
    rows = grid(threat, x)
    return float(margins(model, rows[threat.admits(rows, x.expand_as(rows))], y).max())


class Curved(torch.nn.Module):
    """A small network with hidden units that matter at the scale of the columns."""

    def __init__(self, features, scale, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.scale = scale
        self.hidden = torch.randn(features, 16, generator=generator, dtype=torch.float64)
        self.out = torch.randn(16, 3, generator=generator, dtype=torch.float64)
        self.p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return (x / self.scale @ self.hidden).relu() @ self.out


@pytest.mark.parametrize("kind", ["linear", "network"])
@pytest.mark.parametrize("norm", ["linf", "l1", "l2", "l0", "cost"])
def test_the_worst_row_of_a_grid_is_found(norm, kind, tmp_path):
    """Attacks never beat the enumeration, and between them come near it."""
    path, shares, tried = tmp_path / "rules.toml", [], 0
    for seed in range(1000, 1400):
        text, x = random_rules(seed, rows=1, norm=norm, whole=True)
        path.write_text(text)
        threat = read_table(path)
        if (rows := grid(threat, x[0])) is None or len(rows) < 200:
            continue
        tried += 1
        features = x.shape[1]
        model = random_linear(features, 3, seed).double() if kind == "linear" else Curved(features, 5.0, seed)
        y = model(x).argmax(1)
        clean = float(margins(model, x, y))
        best = worst(model, threat, x[0], y)
        found = clean
        for attack in (APGD(steps=20, restarts=2, objective="margin"), Evolution(queries=60)):
            result = attack(model, x, y, threat=threat)
            value = float(margins(model, result.x_adv, y))
            assert value <= best + 1e-9
            assert bool(result.success) == (value >= 0)
            assert Judge(text).broken(x, result.x_adv) is None
            found = max(found, value)
        # A row that is broken is left alone; its margin need not be the worst.
        shares.append(1.0 if found >= 0 or best - clean < 1e-9 else (found - clean) / (best - clean))
        assert found >= 0 or best <= 0 or shares[-1] > 0.5
        if tried == 4:
            break
    assert tried == 4
    assert np.mean(shares) > 0.9
