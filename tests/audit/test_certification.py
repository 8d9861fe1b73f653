"""Certification in an audit: against closed forms, against the attacks, and through interruptions."""

import contextlib
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from helpers.audits import audit
from helpers.networks import ordinary_digits
from helpers.shared import SHARED, needs_shared
from helpers.zoo import random_linear, uniform
from holdfast import L0, L2, Linf, ProofError, RunError, SettingError
from holdfast.attacks import FAB, Outcome
from holdfast.audit import AuditResult
from holdfast.audit.smoothing import SmoothingPlan
from holdfast.audit.store import RunStore
from holdfast.audit.tables import Expected
from holdfast.certify import Certificate
from holdfast.certify.certifier import Certifier
from holdfast.certify.smoothing.smoothing import Smoothed
from holdfast.data import load_data

COLUMNS = "idx, verdict, stage, certified, bound, note"


def rows(folder: Path, columns: str = COLUMNS) -> list[tuple]:
    with sqlite3.connect(folder / "run.sqlite") as db:
        return db.execute(f"SELECT {columns} FROM examples ORDER BY idx").fetchall()


def run(folder: Path | None, threat="linf:0.06", certify="crown", model=None, **options) -> AuditResult:
    model = ordinary_digits() if model is None else model
    return audit(model, "digits", threat, examples="0:60", run=folder, certify=certify, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    run(folder, certify="none")
    return folder


@pytest.fixture(scope="module")
def crown(tmp_path_factory) -> tuple[Path, AuditResult]:
    folder = tmp_path_factory.mktemp("crown") / "run"
    return folder, run(folder, certify_budgets=("0.02", 0.04))


def linear_truth(model: nn.Module, x: torch.Tensor, y: torch.Tensor, threat) -> torch.Tensor:
    """The worst margin of a linear model over a ball and the box: each other class on its own, in closed form."""
    weight = model[1].weight
    margins = []
    for k in range(len(weight)):
        direction = (weight[k] - weight[y]).view_as(x)
        logits = model(x + threat.maximize(direction, x))
        margins.append(torch.where(y == k, math.inf, logits.gather(1, y[:, None])[:, 0] - logits[:, k]))
    return torch.stack(margins).amin(0)


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.2), Linf(torch.linspace(0, 0.1, 80))], ids=str)
def test_the_bracket_of_a_linear_model_closes_on_the_closed_form(threat, tmp_path):
    model = random_linear(12, 4)
    x = uniform(80, 12, seed=3)
    y = torch.where(torch.arange(80) < 75, model(x.double()).argmax(1), 0)
    worst = linear_truth(model, x.double(), y, threat)
    result = holdfast.audit(model, (x, y), threat, certify="crown", run=tmp_path, protocol="quick")
    robust = (worst > 0).double().mean().item()
    assert 0 < robust < 1
    assert result.bracket == (robust, robust)
    for index, verdict, _, certified, bound, _ in rows(tmp_path):
        assert (certified is not None) == (worst[index] > 0)
        if verdict != "misclassified":
            assert bound <= worst[index] + 1e-9
            if certified == "crown" or certified is None:
                assert bound == pytest.approx(worst[index].item(), abs=1e-6)


def test_certified_examples_are_spared_and_the_others_fare_as_without(plain, crown):
    folder, result = crown
    proved, without = rows(folder), rows(plain)
    kinds = {row[3] for row in proved}
    assert None in kinds
    assert "crown" in kinds
    for mine, theirs in zip(proved, without, strict=True):
        if mine[3] is None:
            assert mine[1:3] == theirs[1:3]
        else:
            assert mine[1] == theirs[1] == "robust"
            assert mine[4] > 0
    spared = [row for row in rows(folder, "certified, forwards, backwards") if row[0] is not None]
    # The clean pass, and the check of the prover: 8 looks, then two runs of 5 steps.
    assert {row[1:] for row in spared} == {(1 + 1 + 8 + 2 * 6, 2 * 5)}
    assert result.certification.checked == len(spared)
    certified = sum(row[3] is not None for row in proved)
    assert result.certified_accuracy == result.bracket[0] == certified / 60
    assert result.certification.methods == {
        kind: sum(row[3] == kind for row in proved) for kind in sorted(kinds - {None})
    }
    assert sum(entry.certified_accuracy * entry.examples for entry in result.per_class) == pytest.approx(certified)
    low, high = result.bracket_interval
    assert low < result.bracket[0] <= result.bracket[1] < high
    assert result.stages[0].attacked == 60 - result.verdicts["misclassified"] - certified


def test_open_examples_are_listed_with_their_bounds(crown):
    folder, result = crown
    left = [row for row in rows(folder) if row[1] == "robust" and row[3] is None]
    assert result.certification.open == len(left) > 0
    listed = result.certification.open_examples
    assert [example.index for example in listed] == [row[0] for row in sorted(left, key=lambda row: -row[4])]
    assert all(example.bound <= 0 for example in listed)
    assert {example.note for example in listed} == {"the bound is not positive"}
    assert (1 - result.bracket[0]) * 60 == pytest.approx(
        result.verdicts["misclassified"] + result.verdicts["broken"] + len(left)
    )


def test_the_certified_curve_is_what_audits_of_its_budgets_say(crown, tmp_path):
    _, result = crown
    curve = dict(result.certification.curve)
    assert list(curve) == [0.0, 0.02, 0.04, 0.06]
    assert curve[0.0] == result.clean_accuracy
    assert curve[0.06] == result.certified_accuracy
    for budget in (0.02, 0.04):
        alone = run(None, threat=f"linf:{budget}", max_forwards=0)
        assert curve[budget] == pytest.approx(alone.certified_accuracy, abs=1 / 60 + 1e-9)
        assert curve[budget] >= alone.certified_accuracy
    assert sorted(curve.values(), reverse=True) == list(curve.values())


IN_PARTS = {"certify_budgets": ("0.02", 0.04), "batch_size": 16}


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory) -> tuple[Path, AuditResult]:
    folder = tmp_path_factory.mktemp("parts") / "run"
    return folder, run(folder, **IN_PARTS)


@pytest.mark.parametrize("moment", [1, 2, 4, 9, 30])
def test_interrupted_and_resumed_ends_the_same(in_parts, tmp_path, moment):
    steps = 0

    def stop(progress):
        nonlocal steps
        steps += 1
        if steps == moment:
            raise KeyboardInterrupt

    folder, whole = in_parts
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **IN_PARTS, on_progress=stop)
    again = run(tmp_path, **IN_PARTS)
    assert rows(tmp_path, "*") == rows(folder, "*")
    assert again.model_copy(update={"cost": None}) == whole.model_copy(update={"cost": None})


def test_a_normalisation_belongs_to_the_network(tmp_path):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ordinary_digits()

        def forward(self, x):
            return self.inner((x - 0.1) / 0.8)

    run(tmp_path / "inside", model=Outer())
    run(tmp_path / "before", mean=(0.1,), std=(0.8,))
    inside, before = (rows(tmp_path / name) for name in ("inside", "before"))
    assert [row[:4] for row in inside] == [row[:4] for row in before]
    for mine, theirs in zip(inside, before, strict=True):
        assert mine[4] == pytest.approx(theirs[4], abs=1e-4)


class Sorting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = ordinary_digits()

    def forward(self, x):
        return self.inner(x.flatten(1).sort(1).values.view_as(x) * 0 + x)


def test_what_cannot_be_bounded_is_named_and_the_audit_goes_on(plain, tmp_path):
    result = run(tmp_path, model=Sorting())
    assert [row[1] for row in rows(tmp_path)] == [row[1] for row in rows(plain)]
    assert result.bracket[0] == 0.0
    assert result.certified_accuracy == 0.0
    (warning,) = [d for d in result.diagnostics if d.name == "cannot certify"]
    assert warning.verdict == "warn"
    assert "sort" in warning.message
    assert "\n" not in warning.message
    assert result.certification.open == result.verdicts["robust"]
    assert all("sort" in example.note for example in result.certification.open_examples)


def test_a_proof_against_a_counterexample_is_an_error(monkeypatch, tmp_path):
    proof = Certificate("certified", "crown", 1.0, None, 0.0)
    broken = Outcome(3, 0, 0, "broken", "pgd", 0.1, math.nan, 1, 1, torch.zeros(1), 0.0, 1.0)
    with (
        RunStore(tmp_path / "store", {}, Expected(range(10))) as store,
        pytest.raises(ProofError, match=r"example 3: a proof .*pgd"),
    ):
        store.add([broken], {3: proof})
    # On the curve: an attack has broken examples at distances at which a prover gone wrong certifies them.
    honest = Certifier.bound
    monkeypatch.setattr(
        Certifier, "bound", lambda self, x, y, t: [proof] * len(x) if t.eps == 0.15 else honest(self, x, y, t)
    )
    with pytest.raises(ProofError, match=r"certified at 0.15, broken by fab at 0.\d+") as caught:
        run(None, threat="linf:0.2", certify_budgets=(0.15,), protocol=[FAB()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certify": "magic"}, "unknown method 'magic'"),
        ({"certify_checks": -1}, "certify checks: a whole number from 0 to"),
        ({"certify_seconds": 0}, "certify seconds: a positive, finite number"),
        ({"certify_seconds": math.nan}, "certify seconds: a positive, finite number"),
        ({"threat": "linf:inf"}, "finite budget"),
        ({"certify_budgets": (0.06,)}, "does not lie between 0 and the threat's budget"),
        ({"certify_budgets": ("0.5x",)}, "'0.5x' is not a number"),
        ({"certify": "none", "certify_budgets": (0.01,)}, "choose ibp, crown or more"),
        ({"threat": "l0:3", "certify_budgets": (1.5,)}, "whole number"),
        ({"threat": Linf(torch.full((60,), 0.1)), "certify_budgets": (0.01,)}, "one budget for all"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(SettingError, match=message):
        run(None, **options)


def test_another_way_to_certify_is_another_audit(crown):
    with pytest.raises(RunError, match=r"certify\.method was \"crown\" and is now \"ibp\""):
        run(crown[0], certify="ibp", certify_budgets=("0.02", 0.04))


def stand_in(answers):
    """A search for proofs that answers what a test wants."""

    def prove(self, x, y, threat):
        for place in reversed(range(len(x))):
            yield place, answers(place, x[place], y[place])

    return prove


def test_what_the_search_finds_replaces_what_the_attacks_left(monkeypatch, plain, tmp_path):
    model = ordinary_digits()
    other = next(iter(load_data("digits", examples="0:60").batches(60)))
    kinds = {}

    def answer(place, x, y):
        index = int((other.x == x).flatten(1).all(1).nonzero()[0])
        kinds[index] = index % 4
        if index % 4 == 0:
            return Certificate("certified", "branch and bound", 0.5, None, 0.1)
        if index % 4 == 1:  # an input that is misclassified, but lies far outside the set
            return Certificate("broken", "branch and bound", None, 1 - x, 0.1)
        if index % 4 == 2:  # the clean input is no counterexample
            return Certificate("broken", "branch and bound", None, x, 0.1)
        return Certificate("undecided", "branch and bound", -0.25, None, 0.1, "timeout")

    nothing = Certificate("undecided", "crown", -2.0, None, 0.0)
    monkeypatch.setattr(Certifier, "bound", lambda self, x, y, threat: [nothing] * len(x))
    monkeypatch.setattr(Certifier, "prove", stand_in(answer))
    result = run(tmp_path, certify="complete", model=model)
    found = {row[0]: row for row in rows(tmp_path)}
    assert set(kinds.values()) == {0, 1, 2, 3}
    for index, kind in kinds.items():
        _, verdict, stage, certified, bound, note = found[index]
        assert (verdict, stage) == ("robust", None)
        if kind == 0:
            assert (certified, bound, note) == ("branch and bound", 0.5, None)
        elif kind == 3:
            assert (certified, bound, note) == (None, -0.25, "timeout")
        else:
            assert (certified, bound, note) == (None, -2.0, "its counterexample failed the replay")
    assert {d.name for d in result.diagnostics} >= {"proof cut off", "cannot certify"}
    assert result.stages[-1].name == "branch and bound"
    assert result.stages[-1].attacked == len(kinds)
    # Tried once, an example is not tried again.
    monkeypatch.setattr(Certifier, "prove", stand_in(lambda *_: pytest.fail("tried again")))
    assert run(tmp_path, certify="complete", model=model).verdicts == result.verdicts


def test_a_counterexample_of_the_search_breaks_the_example(monkeypatch, tmp_path):
    """FGSM alone leaves what APGD breaks: its inputs stand for those of a search."""
    model, threat = ordinary_digits(), Linf(0.1)

    def answer(place, x, y):
        attacked = holdfast.APGD(steps=50, restarts=3)(model, x[None], y[None], threat=threat)
        if bool(attacked.success):
            return Certificate("broken", "branch and bound", None, attacked.x_adv[0], 0.1)
        return Certificate("undecided", "branch and bound", None, None, 0.1, "timeout")

    monkeypatch.setattr(Certifier, "prove", stand_in(answer))
    result = run(tmp_path, threat=threat, certify="complete", protocol=[holdfast.FGSM()], save_inputs=True)
    broken = [row for row in rows(tmp_path, "idx, verdict, stage, distance") if row[2] == "branch and bound"]
    assert broken
    assert all(row[1] == "broken" and 0 < row[3] <= 0.1 + 1e-6 for row in broken)
    assert result.stages[-1].broken == len(broken)
    assert result.stages[-1].robust_accuracy == result.robust_accuracy
    assert sum(stage.broken for stage in result.stages) == result.verdicts["broken"]
    saved = next(iter(load_data(f"npz:{tmp_path / 'adversarial.npz'}").batches(60)))
    indices = torch.tensor([row[0] for row in broken])
    assert bool((model(saved.x[indices]).argmax(1) != saved.y[indices]).all())


def test_the_search_closes_the_bracket_and_survives_interruptions(plain, tmp_path):
    whole = run(tmp_path / "whole", certify="complete")
    assert whole.bracket[0] == whole.bracket[1]
    assert whole.certification.methods["branch and bound"] > 0
    assert whole.robust_accuracy <= sum(row[1] == "robust" for row in rows(plain)) / 60
    for moment in (2, 70, 72):
        steps = 0

        def stop(progress, moment=moment):
            nonlocal steps
            steps += 1
            if steps == moment:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run(tmp_path / "run", certify="complete", on_progress=stop)
    again = run(tmp_path / "run", certify="complete")
    columns = "idx, verdict, stage, certified, distance, note"
    assert rows(tmp_path / "run", columns) == rows(tmp_path / "whole", columns)
    assert again.certification.methods == whole.certification.methods


SLOW_AUDIT = """
import sys, time
import torch
from helpers.audits import audit
from helpers.networks import ordinary_digits
torch.set_num_threads(1)
audit(ordinary_digits(), "digits", "linf:0.06", examples="0:60", run=sys.argv[1], certify="complete",
      certify_budgets=(0.02,), batch_size=8, on_progress=lambda progress: time.sleep(float(sys.argv[2])))
"""


@pytest.mark.slow
def test_killed_at_any_moment_ends_the_same(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}

    def state(folder: str) -> list[tuple]:
        with contextlib.suppress(sqlite3.OperationalError):
            return rows(tmp_path / folder, "idx, verdict, stage, certified, distance, note")
        return []

    def start(folder: str, pause: float) -> subprocess.Popen:
        command = [sys.executable, "-c", SLOW_AUDIT, str(tmp_path / folder), str(pause)]
        return subprocess.Popen(command, env=environment)

    (tmp_path / "run").mkdir()
    for enough in (1, 59):
        with start("run", 0.05) as process:
            while process.poll() is None and len(state("run")) < enough:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / "run" / "audit.json").exists()
    for folder in ("run", "whole"):
        with start(folder, 0) as process:
            assert process.wait() == 0
    assert len(state("run")) == 60
    assert state("run") == state("whole")
    assert {row[3] for row in state("run")} >= {"crown", "branch and bound"}


def test_smoothing_is_stated_beside_the_bracket(plain, tmp_path):
    options = {"threat": "l2:0.25", "certify": "smoothing", "sigma": 0.25, "examples": "0:12"}
    model = ordinary_digits()
    whole = audit(model, "digits", run=tmp_path / "whole", **options)
    assert whole.bracket == (0.0, whole.robust_accuracy)
    assert whole.certification is None
    found = whole.smoothed
    assert (found.radius, found.sigma, found.alpha) == (0.25, 0.25, 0.001)
    batch = next(iter(load_data("digits", examples="0:12").batches(12)))
    direct = Smoothed(model, 0.25).certify(batch.x, batch.y, radii=(0.0, 0.25), index=batch.index)
    assert found.certified_accuracy == pytest.approx(direct.certified_accuracy(0.25))
    assert found.accuracy == pytest.approx(direct.certified_accuracy(0.0))
    assert found.abstained == int(direct.abstained.sum())
    assert found.samples == int(direct.samples.sum())
    stopped = []

    def stop(progress):
        stopped.append(progress.decided)
        if stopped.count(12) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(model, "digits", run=tmp_path / "run", batch_size=4, on_progress=stop, **options)
    again = audit(model, "digits", run=tmp_path / "run", batch_size=4, **options)
    assert again.smoothed == found


class OnlyClean(nn.Module):
    """A network that answers NaN to what is no valid image."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        valid = ((x >= 0) & (x <= 1)).flatten(1).all(1, keepdim=True)
        return torch.where(valid, self.model(x), float("nan"))


def test_votes_that_are_nan_certify_nothing(plain):
    model = OnlyClean(ordinary_digits())
    found = audit(model, "digits", threat="l2:0.25", certify="smoothing", sigma=0.25, examples="0:4").smoothed
    assert (found.accuracy, found.certified_accuracy, found.abstained) == (0, 0, 4)


@pytest.mark.parametrize(
    ("threat", "radius"),
    [("linf:0.1", 0.8), ("l2:0.5", 0.5), ("l1:0.5", 0.5), (L0(4), 2.0), (L0(4, box=(-1, 2)), 6.0)],
)
def test_the_l2_radius_holds_every_admissible_change(threat, radius):
    threat = holdfast.parse_threat(threat) if isinstance(threat, str) else threat
    plan = SmoothingPlan.of(0.25, threat, (1, 8, 8))
    assert plan.radius == pytest.approx(radius)
    if threat.norm == "linf":
        assert Fraction(plan.radius) ** 2 >= 64 * Fraction(threat.eps) ** 2
    x = uniform(500, 1, 8, 8)
    z = threat.maximize(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), x)
    assert float(z.flatten(1).norm(dim=1).max()) <= radius + 1e-6


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(
    ("factory", "weights", "data", "examples", "robust"),
    [
        ("mnist_conv_small", "convexadv_linf0.1.pth", "mnist", 200, 0.965),
        ("fashion_conv_small", "fashion_convexadv_linf0.1.pth", "fashion_mnist", 200, 0.675),
    ],
)
def test_published_networks_are_decided_exactly(factory, weights, data, examples, robust):
    result = audit(
        f"{SHARED / 'models' / 'nets.py'}:{factory}",
        f"mnist:{SHARED / 'data' / data}",
        "linf:0.1",
        weights=SHARED / "models" / weights,
        examples=f"0:{examples}",
        certify="complete",
    )
    assert result.bracket == (robust, robust)


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize(
    ("factory", "weights", "data", "threat"),
    [
        ("mnist_conv_small", "convexadv_linf0.1.pth", "mnist:mnist", "linf:0.12"),
        ("mnist_conv_small", "fast_adv_fgsm_linf0.3.pth", "mnist:mnist", "l2:0.3"),
        ("mnist_lenet5", "advertorch_lenet5_adv_linf0.3.pt", "mnist:mnist", "linf:0.01"),
        (
            "cifar_conv_small",
            "abcrown_cifar_conv_small_pgd.pth",
            "npz:cifar10/cifar10_exact_test_first1017.npz",
            "l1:0.1",
        ),
    ],
)
def test_what_is_certified_withstands_the_attacks_that_it_was_spared(factory, weights, data, threat, tmp_path):
    kind, _, place = data.partition(":")
    for certify in ("none", "crown"):
        audit(
            f"{SHARED / 'models' / 'nets.py'}:{factory}",
            f"{kind}:{SHARED / 'data' / place}",
            threat,
            weights=SHARED / "models" / weights,
            examples="0:30",
            certify=certify,
            run=tmp_path / certify,
        )
    attacked, proved = (rows(tmp_path / certify) for certify in ("none", "crown"))
    certified = [row[0] for row in proved if row[3] is not None]
    assert certified
    assert {attacked[index][1] for index in certified} == {"robust"}
    assert [row[1:3] for row in attacked if row[0] not in certified] == [row[1:3] for row in proved if row[3] is None]
