"""Breast cancer as a table: what attacks leave beside the exact value, and what rules take from an adversary."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from holdfast.attacks import APGD, Evolution
from holdfast.audit import AuditResult, Certification, audit
from holdfast.certify.certificate import SEARCH
from holdfast.engine import Attack
from holdfast.lab.canvas import BLUE, GOLD, GREEN, GREY, INK, PURPLE, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.threats.table import Column, Rules, Table, parse_relation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from holdfast.threats.table.columns import Move

# A tenth of each column's range.
EPS = 0.1
TABULARBENCH, FLOOR = "TabularBench, Simonetto et al. 2024", "derived: attacks cannot leave less than the exact value"
MEASURED, EXACT = "the data: the largest nuclei and all of them", "derived: a proof or a counterexample for each row"
SUBSET, DOWN = "derived: fewer rows to choose from", "derived: who lowers measurements hides what is malignant"
# A climb where there is a gradient, and a search of what it leaves.
ATTACKS: tuple[Attack, ...] = (APGD(steps=20, restarts=2, objective="margin"), Evolution(queries=500))
MODELS = {
    "logistic": (BLUE, lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))),
    "ReLU": (GREEN, lambda: make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=1000, random_state=0))),
    "forest": (GOLD, lambda: RandomForestClassifier(10, max_depth=4, random_state=0)),
    "boosting": (PURPLE, lambda: GradientBoostingClassifier(n_estimators=20, max_depth=2, random_state=0)),
}
# No split is worth it: one leaf, which answers the commonest label.
CONSTANT = DecisionTreeClassifier(min_impurity_decrease=1.0)
# What each adds to the one before. What is called worst is the mean of the three largest nuclei: leaving nuclei out of
# the count lowers it, and never below the mean of all.
RULES = ("all columns", "worst alone", "only down", "worst >= mean")


@dataclass(frozen=True)
class _Data:
    """Rows to learn from and to audit, in raw units; label 1 is malignant."""

    names: tuple[str, ...]
    x: NDArray[np.float64]
    y: NDArray[np.int64]
    x_test: NDArray[np.float64]
    y_test: NDArray[np.int64]


def run(rows: int = 80, models: tuple[str, ...] = tuple(MODELS), seconds: float = 5.0) -> Finding:
    """Audit classifiers and a constant one under four sets of rules, each stricter than the one before."""
    data = _read(rows)
    threats = _threats(data)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in models:
        model = MODELS[name][1]().fit(data.x, data.y)
        found[name] = {rules: _audited(model, data, threat, rules, seconds) for rules, threat in threats.items()}
    constant = _audited(CONSTANT.fit(data.x, data.y), data, threats[RULES[0]], RULES[0], seconds)
    claims = _claims(found, constant, _exceptions(data))
    return Finding(tuple(claims), {"found": found, "constant": constant})


def _read(rows: int) -> _Data:
    bundle = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(bundle.data))
    x, y, cut = bundle.data[order], 1 - bundle.target[order], 2 * len(order) // 3
    test = slice(cut, cut + rows)
    return _Data(tuple(map(str, bundle.feature_names)), x[:cut], y[:cut], x[test], y[test])


def _threats(data: _Data) -> dict[str, Table]:
    """Sets of rows, each of which holds the next one."""
    ends = zip(data.names, (2 * data.x.max(0)).tolist(), np.ptp(data.x, axis=0).tolist(), strict=True)
    bounds = {name: {"lower": 0.0, "upper": upper, "unit": unit} for name, upper, unit in ends}
    moves: tuple[tuple[Move, str], ...] = (("both", ""), ("both", "worst"), ("down", "worst"))
    both, worst, down = (
        tuple(
            Column(name, move=move, measure="range", **sizes) if name.startswith(start) else Column(name)
            for name, sizes in bounds.items()
        )
        for move, start in moves
    )
    pairs = [name.removeprefix("mean ") for name in data.names if name.startswith("mean")]
    relations = tuple(parse_relation(f"`worst {name}` >= `mean {name}`") for name in pairs)
    every = (Rules(both), Rules(worst), Rules(down), Rules(down, relations=relations))
    return {name: Table(rules, "linf", EPS) for name, rules in zip(RULES, every, strict=True)}


def _audited(model: Any, data: _Data, threat: Table, rules: str, seconds: float) -> dict[str, float]:
    """What attacks leave, what is exactly so, and how many of the rows that are reported break a rule."""
    # Writing a classifier out in layers draws their first weights, to no end.
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        result = audit(
            model,
            (torch.from_numpy(data.x_test), torch.from_numpy(data.y_test)),
            threat,
            protocol=list(ATTACKS),
            certify=Certification("complete", seconds=seconds),
            run=folder,
            save_inputs=True,
        )
        with np.load(Path(folder) / "adversarial.npz") as saved:
            broken = _broken_rules(data, saved["x"], RULES.index(rules))
            wrong = model.predict(saved["x"].astype(np.float64)) != saved["y"]
            mistaken = (wrong != saved["success"])[saved["success"]]
    malignant = result.per_class[1]
    return {
        "clean": result.clean_accuracy,
        "left": result.robust_accuracy + _by_search(result) / result.examples,
        "exact": result.robust_accuracy,
        "open": 0 if result.certification is None else result.certification.open,
        "mcc": result.clean_mcc or 0.0,
        "clean sensitivity": malignant.clean_accuracy,
        "sensitivity": malignant.robust_accuracy,
        "rules broken": int(broken.sum()),
        "no mistakes": int(mistaken.sum()),
    }


def _by_search(result: AuditResult) -> int:
    """How many rows the proofs broke and no attack did."""
    return sum(stage.broken for stage in result.stages if stage.name == SEARCH)


def _broken_rules(data: _Data, found: NDArray[np.float32], rules: int) -> NDArray[np.bool_]:
    """``(N,)`` which rows, stored in float32, break one of the first ``rules`` rules or the budget."""
    x, row = data.x_test.astype(np.float32).astype(np.float64), found.astype(np.float64)
    moved, slack = row - x, 2e-6 * (np.abs(row) + np.abs(x)) * (row != x)
    bad = (np.abs(moved) > EPS * np.ptp(data.x, axis=0) + slack) | (row < 0) | (row > 2 * data.x.max(0) + slack)
    if rules >= 1:
        bad[:, :20] |= moved[:, :20] != 0
    if rules >= 2:
        bad |= moved > 0
    if rules >= 3:
        bad[:, 20:] |= row[:, 20:] < row[:, :10] - slack[:, 20:]
    return np.asarray(bad.any(1))


def _exceptions(data: _Data) -> int:
    """How many rows of the data break a relation as they are."""
    rows = np.concatenate([data.x, data.x_test])
    return int((rows[:, 20:] < rows[:, :10]).any(1).sum())


def _claims(found: dict[str, dict[str, dict[str, float]]], constant: dict[str, float], exceptions: int) -> list[Claim]:
    every = [one for rules in found.values() for one in rules.values()]
    exact = np.array([[rules[name]["exact"] for name in RULES] for rules in found.values()])
    added = np.diff(exact, axis=1)
    strict = [rules[RULES[-1]] for rules in found.values()]
    lost = [(one["clean sensitivity"] - one["sensitivity"]) - (one["clean"] - one["exact"]) for one in strict]
    taken = constant["clean"] - constant["exact"]
    outranked = int((exact[:, 0] < constant["exact"]).sum())
    return [
        near("rows of the data that break worst >= mean", MEASURED, exceptions, 0, 0),
        near("rows neither proved nor broken, all models and rules", EXACT, _sum(every, "open"), 0, 0),
        between(
            "what attacks leave less the exact value, most", FLOOR, max(o["left"] - o["exact"] for o in every), 0, 0.02
        ),
        near("reported rows that break a rule", "the rules, written out again", _sum(every, "rules broken"), 0, 0),
        near("rows reported broken that predict() answers rightly", "scikit-learn", _sum(every, "no mistakes"), 0, 0),
        near("constant answer: accuracy that the adversary takes", TABULARBENCH, taken, 0, 0),
        near("constant answer: Matthews correlation", TABULARBENCH, constant["mcc"], 0, 0),
        between("the others: Matthews correlation, least", TABULARBENCH, min(one["mcc"] for one in strict), 0.8),
        between("of them, below it in robust accuracy when all columns move", TABULARBENCH, outranked, 1, 4),
        between("robust accuracy that a further rule adds, least", SUBSET, added.min(), 0),
        between("all rules less none: robust accuracy, least", SUBSET, (exact[:, -1] - exact[:, 0]).min(), 0.1),
        between("of that by worst >= mean alone, most", SUBSET, added[:, -1].max(), 0.005, 0.05),
        between("all rules: sensitivity lost less accuracy lost, least", DOWN, min(lost), 0.05),
    ]


def _sum(found: list[dict[str, float]], key: str) -> float:
    return sum(one[key] for one in found)


def draw(data: dict[str, Any]) -> "Figure":
    """Exact robust accuracy as rules are added, sensitivity under all of them, and where a constant answer stands."""
    figure, (steps, bars, ranks) = canvas("What an adversary can do to a table is what its rules allow", 5.4, 4.2, 4.2)
    places, names = np.arange(len(RULES)), list(data["found"])
    for name, rules in data["found"].items():
        colour = MODELS[name][0]
        steps.plot(places, [rules[rule]["exact"] for rule in RULES], "-", color=colour, lw=1.6, label=name)
        steps.plot(places, [rules[rule]["left"] for rule in RULES], "o", color=colour, ms=6, mfc="white", mew=1.5)
    steps.plot([], [], "o", color=GREY, ms=6, mfc="white", mew=1.5, label="left by attacks")
    steps.set_xticks(places, [RULES[0], *(f"+ {rule}" for rule in RULES[1:])], fontsize=9.5)
    steps.set(ylim=(0, 1.02), xlim=(-0.25, len(RULES) - 0.7))
    label(steps, "lines exact, rings left by attacks", "what may move, by a tenth of its range", "robust accuracy")
    steps.legend(fontsize=9, frameon=False, loc="lower right")
    strict = [rules[RULES[-1]] for rules in data["found"].values()]
    for shift, clean, under, colour, text in (
        (-0.2, "clean", "exact", BLUE, "accuracy"),
        (0.2, "clean sensitivity", "sensitivity", RED, "sensitivity"),
    ):
        at = np.arange(len(names)) + shift
        bars.bar(at, [one[under] for one in strict], 0.36, color=colour, label=text)
        bars.hlines([one[clean] for one in strict], at - 0.18, at + 0.18, color=INK, lw=1.4)
    bars.set_xticks(range(len(names)), names)
    bars.set(ylim=(0, 1.15), yticks=np.linspace(0, 1, 6))
    label(bars, "under all rules; clean as a line", "", "share of rows, of malignant ones")
    bars.legend(fontsize=9, frameon=False, ncols=2, loc="upper center")
    points = {name: (rules[RULES[0]], MODELS[name][0]) for name, rules in data["found"].items()}
    for name, (one, colour) in {**points, "a constant answer": (data["constant"], RED)}.items():
        ranks.plot(one["mcc"], one["exact"], "o", color=colour, ms=8)
        right = one["mcc"] < 0.5
        ranks.annotate(
            name,
            (one["mcc"], one["exact"]),
            (9 if right else -9, {"ReLU": 5, "logistic": -5}.get(name, 0)),
            textcoords="offset points",
            va="center",
            ha="left" if right else "right",
            fontsize=9.5,
            color=INK,
        )
    ranks.set(xlim=(-0.06, 1.06), ylim=(0, 1.02))
    label(ranks, "all columns: robust and of no use", "Matthews correlation, clean", "robust accuracy")
    return figure
