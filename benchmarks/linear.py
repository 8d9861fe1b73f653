"""Robust linear models: time beside scikit-learn's own and a general convex solver, and accuracy on real tables.

python benchmarks/linear.py speed       # CPU time of one thread at n = 2000, d = 200
python benchmarks/linear.py large       # n = 100,000, d = 1000 in single precision
python benchmarks/linear.py accuracy    # the tables of docs/how-to/robust-linear-models.md
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, make_classification, make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from holdfast.linear import RobustLinearSVC, RobustLogisticRegression, RobustRidge

SHARED = Path(os.environ.get("HOLDFAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
# (ours, scikit-learn's): the hinge of LinearSVC is the same loss.
PAIRS: dict[str, tuple[Any, Any]] = {
    "logistic": (RobustLogisticRegression, LogisticRegression()),
    "hinge": (RobustLinearSVC, LinearSVC(loss="hinge")),
    "squared": (RobustRidge, Ridge()),
}
BUDGETS = {np.inf: 0.02, 2: 0.1, 1: 0.4}


def seconds(works: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """The least CPU time of each, taken in turn."""
    least = [float("inf")] * len(works)
    for _ in range(rounds):
        for number, work in enumerate(works):
            start = time.process_time()
            work()
            least[number] = min(least[number], time.process_time() - start)
    return least


def data(kind: str, n: int, d: int) -> tuple[Any, Any]:
    settings = {"n_informative": d // 5, "random_state": 0}
    if kind == "squared":
        return make_regression(n, d, noise=50, **settings)
    x, y = make_classification(n, d, n_redundant=d // 10, flip_y=0.05, class_sep=0.5, **settings)
    return StandardScaler().fit_transform(x), y


def by_cvxpy(kind: str, x: Any, y: Any, eps: float, norm: float) -> Callable[[], Any]:
    import cvxpy as cp

    w, b = cp.Variable(x.shape[1]), cp.Variable()
    slack, f, sign = eps * cp.norm(w, {1: "inf", 2: 2, np.inf: 1}[norm]), x @ w + b, 2 * y - 1
    loss = {
        "logistic": lambda: cp.sum(cp.logistic(slack - cp.multiply(sign, f))) + cp.sum_squares(w) / 2,
        "hinge": lambda: cp.sum(cp.pos(1 - cp.multiply(sign, f) + slack)) + cp.sum_squares(w) / 2,
        "squared": lambda: cp.sum_squares(cp.abs(y - f) + slack) + cp.sum_squares(w),
    }[kind]()
    return lambda: cp.Problem(cp.Minimize(loss)).solve(solver=cp.CLARABEL)


def speed(rounds: int, norms: list[float]) -> None:
    print(f"{'loss':10}{'norm':>6}{'eps':>6}{'steps':>7}{'CPU s':>8}{'scikit-learn':>14}{'/':>7}{'cvxpy':>8}{'/':>7}")
    for kind, (ours, peer) in PAIRS.items():
        x, y = data(kind, 2000, 200)
        for norm in norms:
            model = ours(BUDGETS[norm], norm=norm)
            took, base = seconds([partial(model.fit, x, y), partial(peer.fit, x, y)], rounds)
            (general,) = seconds([by_cvxpy(kind, x, y, BUDGETS[norm], norm)], 2)
            print(
                f"{kind:10}{norm:>6g}{BUDGETS[norm]:>6g}{model.n_iter_:>7}{took:>8.3f}{base:>14.4f}{took / base:>7.2f}"
                f"{general:>8.2f}{general / took:>7.0f}",
                flush=True,
            )


def large() -> None:
    for kind, (ours, _) in PAIRS.items():
        x, y = data(kind, 100_000, 1000)
        model, x = ours(BUDGETS[np.inf]), x.astype(np.float32)
        (took,) = seconds([partial(model.fit, x, y)], 1)
        print(
            f"{kind:10}{model.n_iter_:>4} steps{took:>8.1f} CPU s, gap {model.gap_ / model.objective_:.1e}", flush=True
        )


def tables() -> dict[str, tuple[Any, Any]]:
    found = {"breast cancer": load_breast_cancer(return_X_y=True)}
    for name, file in (("spambase", "spambase.npz"), ("URL phishing", "url_phishing.npz")):
        if (SHARED / "data/tabular" / file).is_file():
            with np.load(SHARED / "data/tabular" / file) as stored:
                found[name] = stored["x"], stored["y"]
    return found


def accuracy() -> None:
    """Features scaled to unit variance, budgets in these units; half of the rows for testing."""
    grid = (0.0, 0.05, 0.1, 0.2, 0.3)
    for name, (x, y) in tables().items():
        train, test, y_train, y_test = train_test_split(x, y, test_size=0.5, random_state=0, stratify=y)
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
        print(
            f"\n{name}: {x.shape[0]} rows, {x.shape[1]} features\n\n| fitted by | " + " | ".join(f"{e:g}" for e in grid)
        )
        rows: list[tuple[str, Any]] = [
            ("`LogisticRegression`", LogisticRegression(max_iter=5000)),
            ("`LinearSVC`", LinearSVC(max_iter=100_000)),
        ]
        rows += [(f"`{kind.__name__}({eps:g})`", kind(eps)) for kind in PAIRS_FOR_TABLE for eps in (0.05, 0.1, 0.2)]
        for label, model in rows:
            model.fit(train, y_train)
            judge = RobustLogisticRegression()
            judge.classes_, judge.coef_, judge.intercept_ = model.classes_, model.coef_, model.intercept_
            judge.n_features_in_ = train.shape[1]
            shares = [judge.robust_score(test, y_test, eps) for eps in grid]
            print(f"| {label} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |", flush=True)


PAIRS_FOR_TABLE = (RobustLogisticRegression, RobustLinearSVC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "large", "accuracy"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--norms", type=float, nargs="*", default=list(BUDGETS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.part == "speed":
        speed(arguments.rounds, arguments.norms)
    elif arguments.part == "large":
        large()
    else:
        accuracy()


if __name__ == "__main__":
    main()
