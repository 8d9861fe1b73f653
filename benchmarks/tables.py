"""Spam, phishing and intrusions under realistic rules: what attacks break beside what is exactly so.

Four kinds of classifiers of scikit-learn are trained on each data set and audited under the rules in `examples/rules`.
See README.md beside this file.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from holdfast.audit import AuditResult, Certification, audit

HERE = Path(__file__).resolve().parent
# Words of the three columns of NSL-KDD that name something.
CATEGORIES = {1: 3, 2: 67, 3: 11}

MODELS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
    "ReLU 16": lambda: make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=200, random_state=0)),
    "forest": lambda: RandomForestClassifier(30, max_depth=6, random_state=0),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=30, random_state=0),
}
HEAD = (
    f"{'data':14}{'model':12}{'rows':>5}{'clean':>8}{'left by attacks':>17}{'left':>8}{'proved':>8}{'open':>6}"
    f"{'CPU s':>8}"
)


@dataclass(frozen=True)
class Table:
    """Rows to learn from and rows to audit."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def spread(x: np.ndarray) -> np.ndarray:
    """Rows of NSL-KDD with a column for each word."""
    columns = [
        np.eye(CATEGORIES[i])[x[:, i].astype(int)] if i in CATEGORIES else x[:, i : i + 1] for i in range(x.shape[1])
    ]
    return np.concatenate(columns, 1)


def read(name: str, shared: Path) -> Table:
    stored = np.load(shared / "data" / "tabular" / f"{name}.npz")
    random = np.random.default_rng(0)
    if name == "nsl_kdd":
        order = random.permutation(len(stored["x_test"]))
        test, labels = spread(stored["x_test"].astype(float))[order], stored["y_test"][order]
        return Table(spread(stored["x_train"].astype(float)), stored["y_train"], test, labels)
    order = random.permutation(len(stored["x"]))
    x, y, cut = stored["x"][order].astype(float), stored["y"][order], 2 * len(order) // 3
    return Table(x[:cut], y[:cut], x[cut:], y[cut:])


def found(name: str, shared: Path, rows: int, seconds: float, only: str) -> Iterator[tuple[str, AuditResult, float]]:
    table, rules = read(name, shared), HERE.parent / "examples" / "rules" / f"{name}.toml"
    for kind, make in MODELS.items():
        if only and only != kind:
            continue
        model = make().fit(table.x, table.y)
        began = time.process_time()
        result = audit(
            model,
            (torch.from_numpy(table.x_test[:rows]), torch.from_numpy(table.y_test[:rows]).long()),
            f"table:{rules}",
            protocol="standard",
            certify=Certification("complete", seconds=seconds),
        )
        yield kind, result, time.process_time() - began


def line(name: str, kind: str, result: AuditResult, cpu: float) -> str:
    attacked = result.stages[-1].robust_accuracy
    search = [stage for stage in result.stages if stage.name == "branch and bound"]
    before = attacked + sum(stage.broken for stage in search) / result.examples
    lower, upper = result.bracket
    still = 0 if result.certification is None else result.certification.open
    return (
        f"{name:14}{kind:12}{result.examples:5}{100 * result.clean_accuracy:8.1f}{100 * before:17.1f}{100 * upper:8.1f}"
        f"{100 * lower:8.1f}{still:6}{cpu:8.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", default=["spambase", "url_phishing", "nsl_kdd"])
    parser.add_argument("--model", default="", help="one of the kinds alone")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0, help="for the proof of a row")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    shared = Path(os.environ.get("HOLDFAST_SHARED", HERE.parents[1] / "shared"))
    if not shared.is_dir():
        sys.exit(f"{shared} is not there: set HOLDFAST_SHARED to the folder with the data")
    about = machine()
    print(f"{about['cpu']}, 1 thread, torch {about['torch']}, {about['date']}, load {about['load']}")
    print(f"protocol standard; shares in percent, {options.rows} rows, {options.seconds:g} s for a proof\n")
    print(HEAD)
    for name in options.data:
        for kind, result, cpu in found(name, shared, options.rows, options.seconds, options.model):
            print(line(name, kind, result, cpu), flush=True)


if __name__ == "__main__":
    main()
