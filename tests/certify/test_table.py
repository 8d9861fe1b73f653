"""Proofs about tables are held against every admissible row there is: grids of whole numbers and categories."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

import holdfast
from helpers.tables import random_rules
from holdfast.certify.bounds.crown import crown
from holdfast.certify.certificate import LEAVES, PROGRAM
from holdfast.certify.certifier import Certifier
from holdfast.certify.milp.encoding import encode
from holdfast.certify.milp.rules import constrain, rows_around
from holdfast.certify.milp.solver import margin, solve
from holdfast.certify.proving import prover_of
from holdfast.certify.table import _region
from holdfast.models.estimators.estimator import as_classifier
from holdfast.models.estimators.forest import read_forest
from holdfast.models.query import Query
from holdfast.threats.table import Column, Rules, Table, parse_relation, read_table
from holdfast.threats.table.layout import layout_of

NORMS = ("linf", "l1", "l2", "l0", "cost")
MOST = 4000


def grid(threat: Table, x: Tensor, most: int) -> Tensor | None:
    """All rows that the columns by themselves allow, ``(M, d)``; None where they are too many."""
    layout = layout_of(threat.rules)
    rows = rows_around(layout, threat, x)
    assert rows.whole[rows.lower < rows.upper].all()
    axes: list[list[tuple[tuple[int, ...], tuple[float, ...]]]] = []
    grouped: set[int] = set()
    for group in layout.groups:
        places = tuple(group.columns.tolist())
        grouped.update(places)
        axes.append([(places, tuple(np.eye(len(places))[k])) for k in range(len(places))])
    for column in range(x.shape[1]):
        if column not in grouped:
            values = np.arange(rows.lower[column], rows.upper[column] + 0.5) if rows.whole[column] else [rows.x[column]]
            axes.append([((column,), (float(value),)) for value in values])
    if np.prod([float(len(axis)) for axis in axes]) > most:
        return None
    table = np.zeros((int(np.prod([len(axis) for axis in axes])), x.shape[1]))
    for number, parts in enumerate(itertools.product(*axes)):
        for places, values in parts:
            table[number, places] = values
    return torch.from_numpy(table).to(x.dtype)


def admissible(threat: Table, x: Tensor, most: int = MOST) -> Tensor | None:
    every = grid(threat, x, most)
    if every is None:
        return None
    return every[threat.admits(every, x.expand(len(every), -1))]


def cases(tmp_path: Path, seeds: range, norm: str | None, dtype: torch.dtype = torch.float64) -> Any:
    """Threats, clean rows and all their admissible ones."""
    for seed in seeds:
        text, x = random_rules(seed, norm=norm, whole=True)
        path = tmp_path / f"{seed}.toml"
        path.write_text(text)
        threat = read_table(path)
        for row in x.to(dtype).split(1):
            rows = admissible(threat, row)
            if rows is not None and len(rows) > 1:
                yield seed, threat, x, row, rows


def network(features: int, kind: str, seed: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "linear":
        model: nn.Module = nn.Linear(features, 3)
    else:
        model = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 3))
    return model.to(dtype)


def margins(model: nn.Module, rows: Tensor, y: int) -> Tensor:
    with torch.no_grad():
        logits = model(rows).double()
    others = logits.clone()
    others[:, y] = -torch.inf
    return logits[:, y] - others.amax(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["linear", "relu"])
def test_the_least_margin_is_that_of_all_rows(tmp_path: Path, kind: str, norm: str) -> None:
    seen = 0
    for seed, threat, _, x, rows in cases(tmp_path, range(30), norm):
        model = network(x.shape[1], kind, seed, torch.float64)
        with torch.no_grad():
            y = int(model(x).argmax())
        certifier = Certifier.of(model, x, "complete", seconds=9.0, logits=model)
        assert certifier.graph is not None
        found = rows_around(layout_of(threat.rules), threat, x)
        region = _region(found, torch.float64)
        encoding = encode(certifier.graph, region, crown(certifier.graph, region).intervals, whole=found.whole)
        spent = constrain(encoding.program, encoding.inputs, found)
        least = min(solve(encoding.program, margin(encoding, y, k), seconds=9.0).upper for k in range(3) if k != y)
        others = rows[(rows != x).any(1)]
        expected = float(margins(model, others, y).min()) if len(others) else np.inf
        if norm == "l2":  # its program holds a little more
            assert least <= expected + 1e-6
        elif threat.admits(x, x) and len(others):
            both = min(expected, float(margins(model, x, y)[0]))
            assert least == pytest.approx(expected, abs=1e-5) or least == pytest.approx(both, abs=1e-5)
        assert len(spent) == 0 or norm == "l2"
        seen += 1
        if seen == 4:
            break
    assert seen == 4


def centred(model: nn.Module, rows: Tensor, y: int, share: float) -> None:
    """Move the bias until about such a share of rows keeps the label ``y``."""
    level = float(margins(model, rows, y).quantile(1 - share))
    last = model if isinstance(model, nn.Linear) else model[-1]
    with torch.no_grad():
        last.bias[y] -= level - 1e-3  # lest two classes tie


def decide(model: Any, x: Tensor, y: Tensor, threat: Table, method: str = "complete", seconds: float = 20.0) -> Any:
    with Query(model) as query:
        inputs = query.prepare(x).contiguous()
        query.bare_logits(inputs)
        prover = prover_of(query.model, inputs, method, threat, seconds=seconds, logits=query.bare_logits)
        (first,) = prover.bound(inputs, y, threat)
        if first.verdict != "undecided":
            return first
        ((_, second),) = prover.prove(inputs, y, threat)
        return second


def check(model: Any, x: Tensor, y: int, threat: Table, rows: Tensor, answers: Tensor) -> str:
    """The verdict, once it is known to be that of all rows."""
    found = decide(model, x, torch.tensor([y]), threat)
    if found.verdict == "certified":
        assert bool((answers == y).all())
        assert found.bound is not None
    elif found.verdict == "broken":
        assert bool((answers != y).any())
        row = found.x_adv.unsqueeze(0)
        assert bool(threat.contains(x, found.choice.unsqueeze(0)))
        assert threat.apply(x, found.choice.unsqueeze(0)).equal(row)
        assert bool((rows == row).all(1).any())
    return str(found.verdict)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("kind", "dtype"), [("linear", torch.float64), ("relu", torch.float32)])
def test_networks_are_decided_as_all_rows_decide(tmp_path: Path, kind: str, norm: str, dtype: torch.dtype) -> None:
    verdicts = []
    for number, (seed, threat, _, x, rows) in enumerate(cases(tmp_path, range(60), norm, dtype)):
        model = network(x.shape[1], kind, seed, dtype)
        with torch.no_grad():
            y = int(model(x).argmax())
        centred(model, rows, y, (1.0, 0.98, 0.8)[number % 3])
        with torch.no_grad():
            if int(model(x).argmax()) != y:
                continue
            answers = model(rows).argmax(1)
        verdicts.append(check(model, x, y, threat, rows, answers))
        if len(verdicts) == 4:
            break
    assert "undecided" not in verdicts


ESTIMATORS = {
    "tree": DecisionTreeClassifier(max_depth=5, random_state=0),
    "forest": RandomForestClassifier(9, max_depth=4, random_state=0),
    "scaled forest": make_pipeline(StandardScaler(), RandomForestClassifier(9, max_depth=4, random_state=0)),
    "boosting": GradientBoostingClassifier(n_estimators=8, max_depth=2, random_state=0),
    "stumps": ExtraTreesClassifier(15, max_depth=1, random_state=0),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_trees_are_decided_as_all_rows_decide(tmp_path: Path, name: str, norm: str) -> None:
    verdicts, _methods = [], set()
    for seed, threat, whole, x, rows in cases(tmp_path, range(100), norm):
        rng = np.random.default_rng(seed)
        train = (whole.numpy()[rng.integers(0, len(whole), 80)] + rng.integers(-6, 7, (80, x.shape[1]))).astype(float)
        labels = train @ rng.normal(size=x.shape[1]) + 3 * rng.normal(size=80)
        model = ESTIMATORS[name].fit(train, np.digitize(labels, np.quantile(labels, [0.3, 0.6])))
        answers = torch.from_numpy(model.predict(rows.numpy()))
        y = int(model.predict(x.numpy())[0])
        verdicts.append(check(as_classifier(model), x, y, threat, rows, answers))
        if len(verdicts) == 5:
            break
    assert "undecided" not in verdicts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu", "forest", "boosting"])
def test_grids_of_many_rows(tmp_path: Path, name: str) -> None:
    """About a hundred thousand rows, with relations, an implication and a category."""
    text = """
norm = "l1"
eps = 3
relations = ["a + 2*b - c <= 24", "`k=x` = 1 -> d >= a - 10", "b > 8 -> e <= 4"]
[columns]
a = { kind = "integer", move = "both", bounds = [0, 12], unit = 4 }
b = { kind = "integer", move = "both", bounds = [0, 12], unit = 4 }
c = { kind = "integer", move = "up", bounds = [0, 6], unit = 2 }
d = { kind = "integer", move = "both", bounds = [0, 3], unit = 1 }
e = { kind = "integer", move = "down", bounds = [0, 6], unit = 2 }
"k=x" = {}
"k=y" = {}
[groups]
k = { columns = ["k=x", "k=y"], distance = 1 }
"""
    (tmp_path / "rules.toml").write_text(text)
    threat, rng = read_table(tmp_path / "rules.toml"), np.random.default_rng(0)
    ends = np.array([12, 12, 6, 3, 6])
    train = np.concatenate([rng.integers(0, ends + 1, (300, 5)), np.eye(2)[rng.integers(0, 2, 300)]], 1)
    score = train[:, 0] + 2 * train[:, 1] - train[:, 2] * train[:, 3] / 3 + 4 * train[:, 5] + rng.normal(size=300)
    labels = score > 22
    models = {
        "relu": make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=3000, random_state=0)),
        "forest": RandomForestClassifier(20, max_depth=5, random_state=0),
        "boosting": GradientBoostingClassifier(n_estimators=30, random_state=0),
    }
    model = models[name].fit(train, labels)
    verdicts = []
    for row in train[score.argsort()[[0, 5, 10, 20, 60, 120, 180, 240, 297, 299]]]:
        x = torch.from_numpy(row)[None]
        every = grid(threat, x, 10**6)
        assert every is not None
        rows = every[threat.admits(every, x.expand(len(every), -1))]
        answers = torch.from_numpy(model.predict(rows.numpy()).astype(int))
        verdicts.append(check(as_classifier(model), x, int(model.predict(row[None])[0]), threat, rows, answers))
    assert {"certified", "broken"} == set(verdicts), verdicts


def linf(*names: str, eps: float = 1.0, **settings: Any) -> Table:
    columns = tuple(Column(name, move="both", lower=-10, upper=10, **settings) for name in names)
    return Table(Rules(columns), "linf", eps)


def test_real_columns_end_where_the_budget_does() -> None:
    """A line that is crossed just inside the budget, and just outside."""
    model = nn.Linear(2, 2, dtype=torch.float64)
    model.weight.data, model.bias.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double(), torch.zeros(2).double()
    for distance, verdict in ((0.999, "broken"), (1.001, "certified")):
        x = torch.full((1, 2), distance, dtype=torch.float64)
        for norm, eps in (("linf", 1.0), ("l2", np.sqrt(2)), ("l1", 2.0), ("cost", 2.0)):
            threat = Table(linf("a", "b").rules, norm, float(eps))
            found = decide(model, x, torch.tensor([0]), threat)
            assert found.verdict == verdict, (distance, norm)
            if verdict == "broken":
                assert bool(threat.contains(x, found.choice[None]))


def test_an_l2_ball_is_held_by_planes() -> None:
    """The best corner of what holds the ball at first is outside of it by far."""
    torch.manual_seed(0)
    names = [f"c{j}" for j in range(6)]
    threat = Table(linf(*names).rules, "l2", 1.0)
    model = nn.Linear(6, 2, dtype=torch.float64)
    weight = model.weight.detach()[0] - model.weight.detach()[1]
    for share, verdict in ((0.98, "broken"), (1.02, "certified")):
        x = torch.zeros(1, 6, dtype=torch.float64)
        gap = share * weight.norm()
        model.bias.data = torch.stack([gap, torch.zeros_like(gap)])
        found = decide(model, x, torch.tensor([0]), threat)
        assert found.verdict == verdict
        if verdict == "certified":
            assert 0 < found.bound <= 0.02 * float(weight.norm()) + 1e-9


def test_guards_and_their_ways_out() -> None:
    """The label falls only where the guard holds and its relation does not, or at a price."""
    columns = tuple(Column(name, kind="integer", move="both", lower=0, upper=5) for name in "ab")
    model = nn.Linear(2, 2, dtype=torch.float64)
    model.weight.data, model.bias.data = (
        torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(),
        torch.tensor([6.5, 0.0]).double(),
    )
    x = torch.zeros(1, 2, dtype=torch.float64)
    for relation, verdict in (
        ("a >= 3 -> b <= 2", "broken"),  # a = 2, b = 5
        ("a >= 2 -> b <= 2", "broken"),  # a = 5, b = 2
        ("a >= 2 -> b <= 1", "certified"),  # at best a = 1, b = 5 or a = 5, b = 1
        ("a = 2 -> b <= 2", "broken"),  # on either side of the guard
        ("a > 1 -> b < 2", "certified"),
        ("a + b > 6 -> a >= 6", "certified"),
    ):
        threat = Table(Rules(columns, (), (parse_relation(relation),)), "linf", 9.0)
        found = decide(model, x, torch.tensor([0]), threat)
        assert found.verdict == verdict, relation


def test_quick_methods_leave_the_rest_open() -> None:
    threat, x = linf("a", "b"), torch.zeros(1, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    y = model(x).argmax(1)
    for method in ("ibp", "crown", "alpha-crown"):
        assert decide(model, x, y, Table(threat.rules, "linf", 9.0), method).note == "the bound is not positive"
        assert decide(model, x, y, Table(threat.rules, "linf", 1e-6), method).verdict == "certified"


def test_networks_with_other_bends_are_bounded_over_boxes() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.zeros(1, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    small, large = (decide(model, x, y, linf("a", "b", eps=eps)) for eps in (1e-3, 9.0))
    assert small.verdict == "certified"
    assert (large.verdict, large.note) == ("undecided", "the bound is not positive")


def test_models_that_are_not_known_stay_open() -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    model = as_classifier(KNeighborsClassifier().fit(x, x[:, 0] > 0))
    found = decide(model, torch.from_numpy(x[:1]), torch.tensor([int(x[0, 0] > 0)]), linf("a", "b"))
    assert found.verdict == "undecided"
    assert "a KNeighborsClassifier is not taken" in found.note
    squares = make_pipeline(PolynomialFeatures(), DecisionTreeClassifier()).fit(x, x[:, 0] > 0)
    found = decide(as_classifier(squares), torch.from_numpy(x[:1]), torch.tensor([1]), linf("a", "b"))
    assert "before the trees of a DecisionTreeClassifier only scalers are taken" in found.note


def test_time_ends() -> None:
    threat, x = linf("a", "b", eps=3.0), torch.zeros(1, 2, dtype=torch.float64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 2)).double()
    found = decide(model, x, model(x).argmax(1), threat, seconds=0.0)
    assert (found.verdict, found.note) == ("undecided", "timeout")


def test_stumps_are_enumerated_by_feature() -> None:
    """Of features that move by themselves the leaves alone are exact."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    model = GradientBoostingClassifier(n_estimators=60, max_depth=1, random_state=0).fit(
        x, x[:, 0] + x[:, 1] ** 2 > 0.4
    )
    threat = linf(*"abcd", eps=0.3)
    found = [
        decide(as_classifier(model), torch.from_numpy(row)[None], torch.tensor([int(label)]), threat)
        for row, label in zip(x[:12], model.predict(x[:12]), strict=True)
    ]
    assert {one.method for one in found if one.verdict == "certified"} == {LEAVES}
    assert {one.method for one in found if one.verdict == "broken"} == {PROGRAM}


@pytest.mark.parametrize("steps", [(), (StandardScaler(),), (MinMaxScaler((-2, 3), clip=True), RobustScaler())])
def test_thresholds_before_scaling_are_the_estimator_s(steps: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 3)) * [1, 1e-3, 1e4] + [0, 1, -3e5]
    model = make_pipeline(*steps, DecisionTreeClassifier(random_state=0)).fit(x, rng.integers(0, 3, 100))
    ensemble = read_forest(as_classifier(model))
    (tree,) = ensemble.trees
    inner = np.flatnonzero(tree.left >= 0)
    for node in inner.tolist():
        cut = tree.threshold[node]
        rows = x[rng.integers(0, 100, 4)]
        rows[:, tree.feature[node]] = [
            np.nextafter(cut, -np.inf),
            cut,
            np.nextafter(cut, np.inf),
            cut + 1e-12 * abs(cut),
        ]
        assert np.array_equal(ensemble.scores(rows).argmax(1), model.predict(rows))
        paths = model[-1].decision_path(model[:-1].transform(rows) if steps else rows).toarray()
        below = paths[:, model[-1].tree_.children_left[node]][paths[:, node] > 0]
        expected = np.array([1, 1, 0, 0])[paths[:, node] > 0]
        assert np.array_equal(below, expected)


@pytest.mark.parametrize("name", ["logistic", "forest"])
def test_audits_are_exact(name: str) -> None:
    """What attacks and proofs say of a table meets, and a resumed run says the same."""
    rng = np.random.default_rng(0)
    x = np.round(rng.uniform(0, 9, (120, 3)))
    y = x.sum(1) + rng.normal(size=120) > 13
    head = LogisticRegression() if name == "logistic" else RandomForestClassifier(12, max_depth=4, random_state=0)
    model = make_pipeline(StandardScaler(), head).fit(x, y)
    columns = tuple(Column(c, kind="integer", move="both", lower=0, upper=9) for c in "abc")
    threat = Table(Rules(columns, (), (parse_relation("a + b <= 15"),)), "l1", 2.0)
    keep = x[:, 0] + x[:, 1] <= 15
    data = (x[keep][:12], y[keep][:12].astype(int))
    result = holdfast.audit(model, data, threat, certify="complete", max_forwards=100)
    robust = 0
    for row, label in zip(*data, strict=True):
        rows = admissible(threat, torch.from_numpy(row)[None])
        assert rows is not None
        robust += bool(
            (model.predict(rows.numpy()) == bool(label)).all() and model.predict(row[None])[0] == bool(label)
        )
    assert result.bracket == (robust / 12, robust / 12)
    assert result.certification.open == 0
    assert result.certification.checked == sum(result.certification.methods.values())


@pytest.mark.parametrize("kind", ["real", "integer"])
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_column_with_one_end_keeps_it(kind, norm):
    """Only beyond its lower end, which no choice passes, would the row change its class."""
    line = nn.Linear(1, 2).double()
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[1.0], [0.0]]))
        line.bias.copy_(torch.tensor([0.05, 0.0]))
    x, y = torch.tensor([[0.2 if kind == "real" else 0.0]], dtype=torch.float64), torch.tensor([0])
    threat = Table(Rules((Column("a", kind=kind, move="both", lower=0.0),)), norm, 3.0)
    (certificate,) = holdfast.certify(line, x, y, threat, method="complete", seconds=10)
    assert certificate.verdict == "certified"
    assert 0 < certificate.bound <= 0.05 + 1e-9
