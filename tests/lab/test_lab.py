"""The lab confirms what is true, and refutes it as soon as the code is wrong."""

import json
import math
import sys

import pytest
import torch
from typer.testing import CliRunner

from holdfast.attacks import grid
from holdfast.certify import Gaussian
from holdfast.cli.main import app
from holdfast.errors import SettingError
from holdfast.games import gradient
from holdfast.lab import EXPERIMENTS, Experiment, Finding, between, gallery, load, near
from holdfast.tasks import objectives
from holdfast.threats import Patch, l2, linf
from holdfast.threats.table.layout import Layout
from holdfast.train import guard, trades

# As small as they can be and still tell.
SMALL = {
    "holder": {"samples": 3000},
    "linear-attack": {"seeds": 8},
    "eps-min": {"points": 20, "dimension": 6},
    "robust-svm": {"planes": 50},
    "tsipras": {"samples": 4000, "learned_from": 4000},
    "dimension": {"dimensions": (4, 16, 64), "samples": 4000, "networks": 5},
    "regions": {"units": 6, "width": 3, "depth": 4, "inputs": 2, "epochs": 3},
    "curvature": {"points": 40, "examples": 200, "epochs": 10, "looked_at": 40},
    "saturation": {"points": 40, "examples": 200, "looked_at": 60, "doublings": 9},
    "gradient-penalty": {"examples": 40, "updates": 5, "halvings": 3},
    "games": {"curvatures": 3, "games": 2},
    "catastrophic-overfitting": {"seeds": 1, "epochs": 24, "images": 50},
    "trade-off": {"betas": (0, 1, 8), "seeds": 1, "epochs": 12},
    "distillation": {"temperatures": (1, 100), "examples": 60, "learned_from": 300, "epochs": 10, "budgets": 2},
    "smoothing": {"points": 20, "votes": 2000, "examples": 20, "ballots": 200, "learned_from": 400, "epochs": 8},
    "transfer": {"samples": 200, "angles": 3, "examples": 80, "learned_from": 300},
    "patch": {"sizes": (1,), "examples": 30},
    "fairness": {"samples": 10_000},
    "spatial": {"epochs": 20, "images": 80, "proved": 4, "angles": 201},
    "table": {"rows": 60, "models": ("logistic", "boosting")},
}


def scaled(module, name, factor):
    exact = getattr(module, name)
    return module, name, lambda *values: factor * exact(*values)


# One wrong constant, or one norm for another, in what the experiment is about.
BREAKS = {
    "holder": scaled(linf, "maximize", 0.99),
    "linear-attack": scaled(linf, "maximize", 0.9),
    "eps-min": scaled(linf, "dual", 1.01),
    "robust-svm": (linf, "dual", lambda g: g.flatten(1).norm(dim=1)),
    "tsipras": scaled(linf, "maximize", 0.9),
    "dimension": (linf, "dual", lambda g: g.flatten(1).norm(dim=1)),
    "regions": scaled(l2, "to_plane", 1.01),
    "curvature": scaled(linf, "dual", 1.01),
    "saturation": scaled(linf, "dual", 1.01),
    "gradient-penalty": scaled(linf, "dual", 1.05),
    "games": (gradient, "along", lambda strategy, slopes, lr: (strategy[0] - 1.01 * lr * slopes[0],)),
    "catastrophic-overfitting": (guard, "_GAP", 2.0),
    "trade-off": (trades, "kl_divergence", lambda *logits, **clean: 0.01 * objectives.kl_divergence(*logits, **clean)),
    "distillation": (objectives, "_UNTARGETED", dict.fromkeys(("ce", "margin", "dlr"), objectives.cross_entropy)),
    "smoothing": scaled(Gaussian, "radius", 1.02),
    "transfer": scaled(l2, "steepest", 0.95),
    "patch": scaled(Patch, "extreme", 0.5),
    "fairness": (linf, "dual", lambda g: g.flatten(1).norm(dim=1)),
    "spatial": (grid, "_outside_in", lambda points: 0 * points),
    "table": (Layout, "satisfied", lambda layout, rows: rows.new_ones(len(rows), len(layout.relations)).bool()),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(name):
    return load(name).run(**SMALL[name])


def test_every_experiment_is_tried():
    assert list(SMALL) == list(BREAKS) == list(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_is_confirmed_and_drawn(name, tmp_path):
    state = torch.get_rng_state()
    finding, experiment = run(name), load(name)
    assert [claim for claim in finding.claims if claim.verdict != "confirmed"] == []
    assert torch.equal(torch.get_rng_state(), state)
    figure, data = experiment.save(finding, tmp_path)
    assert figure.read_bytes().startswith(b"\x89PNG")
    written = json.loads(data.read_text())
    assert len(written["claims"]) == len(finding.claims) >= 5
    # The figure can be drawn again from what was written.
    experiment.draw(written["data"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_wrong_code_is_refuted(name, monkeypatch):
    monkeypatch.setattr(*BREAKS[name])
    assert run(name).refuted > 0


def test_experiments_find_the_same_every_time():
    for name in ("holder", "gradient-penalty"):
        assert run(name) == run(name)


def test_verdicts_are_computed():
    assert near("", "", 1.05, 1.0, 0.1).verdict == "confirmed"
    assert near("", "", 1.15, 1.0, 0.1).verdict == "refuted"
    assert between("", "", 3.0, 3.0, 4.0).verdict == "confirmed"
    assert between("", "", 2.9, 3.0).verdict == "refuted"
    assert between("", "", math.nan).verdict == "refuted"
    assert [near("", "", 0, 0.5, 0.1).expected, near("", "", 0, 3, 0).expected] == ["0.5 ± 0.1", "3"]
    assert between("", "", 0, 1, 2).expected == "1 to 2"
    assert [between("", "", 0, 1).expected, between("", "", 0, high=2).expected] == ["at least 1", "at most 2"]


@pytest.fixture
def toy(monkeypatch):
    """A gallery of two experiments, of which one is wrong."""

    def toys(name):
        from matplotlib.figure import Figure

        two = 2 if name == "good" else 3
        claims = (near("one is 1", "arithmetic", 1, 1, 0), near("and two", "arithmetic", two, 2, 0))
        return Experiment(name, "a toy", lambda: Finding(claims, {"values": [1, 2]}), lambda data: Figure())

    lab = sys.modules["holdfast.lab"]
    monkeypatch.setattr(lab, "EXPERIMENTS", {"good": "a toy", "bad": "a toy"})
    monkeypatch.setattr(lab, "load", toys)


def holdfast(*arguments):
    return CliRunner().invoke(app, ["lab", *map(str, arguments)])


def test_the_command_exits_with_0_only_when_all_is_confirmed(toy, tmp_path):
    good = holdfast("good", "--out", tmp_path / "new")
    assert good.exit_code == 0
    for words in ("one is 1", "arithmetic", "confirmed"):
        assert words in good.output
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"good.png", "good.json", "index.md"}
    bad = holdfast("all")
    assert bad.exit_code == 1
    assert "refuted" in bad.output
    assert "claims refuted: 1 of bad" in bad.output


def test_the_command_lists_experiments_and_refuses_others():
    listed = holdfast()
    assert listed.exit_code == 0
    assert all(name in listed.output for name in EXPERIMENTS)
    unknown = holdfast("alchemy")
    assert unknown.exit_code == 2
    assert "alchemy" in unknown.output


def test_what_cannot_be_kept_is_told(toy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert holdfast("good", "--out", tmp_path / "file").exit_code == 5
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    experiment = gallery.load("holder")
    with pytest.raises(SettingError, match="holdfast\\[figures\\]"):
        experiment.save(Finding((), {"samples": 1, "norms": {}}), tmp_path)
    assert (tmp_path / "holder.json").exists()
