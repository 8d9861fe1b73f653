"""The audit from end to end on real handwriting, against its own store and against plain forwards."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from helpers.audits import audit
from helpers.networks import ordinary_digits
from holdfast import DataError, Linf, ModelError, RunError, SettingError
from holdfast.audit import AuditResult, single, store
from holdfast.data import load_data

COLUMNS = "idx, label, clean_prediction, verdict, stage, distance, forwards, backwards, certified"


def rows(folder: Path) -> list[tuple]:
    if not (folder / "run.sqlite").exists():
        return []
    with sqlite3.connect(folder / "run.sqlite") as db:
        return db.execute(f"SELECT {COLUMNS} FROM examples ORDER BY idx").fetchall()


def run(folder: Path | None, examples: str = "0:150", threat="linf:0.1", **options) -> AuditResult:
    return audit(ordinary_digits(), "digits", threat, examples=examples, run=folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, AuditResult]:
    folder = tmp_path_factory.mktemp("audit") / "run"
    return folder, run(folder, save_inputs=True)


def test_the_result_is_what_the_store_says(whole):
    folder, result = whole
    table = rows(folder)
    assert [row[0] for row in table] == list(range(150))
    count = {verdict: sum(row[3] == verdict for row in table) for verdict in result.verdicts}
    assert count == result.verdicts
    assert min(count["robust"], count["broken"], count["misclassified"]) > 0
    assert result.clean_accuracy == 1 - count["misclassified"] / 150
    assert result.robust_accuracy == count["robust"] / 150
    assert result.bracket == (0.0, result.robust_accuracy)
    assert result.certified_accuracy is None
    assert result.robust_interval[0] < result.robust_accuracy < result.robust_interval[1]
    assert result.cost.forwards == sum(row[6] for row in table)
    assert result.cost.backwards == sum(row[7] for row in table)
    assert result.median_distance == pytest.approx(np.median([row[5] for row in table if row[3] == "broken"]))
    for entry in result.per_class:
        mine = [row for row in table if row[1] == entry.label]
        assert entry.examples == len(mine)
        assert entry.robust_accuracy == sum(row[3] == "robust" for row in mine) / len(mine)
        assert entry.clean_accuracy == sum(row[2] == row[1] for row in mine) / len(mine)
    worst = min(entry.robust_accuracy for entry in result.per_class)
    assert next(e for e in result.per_class if e.label == result.worst_class).robust_accuracy == worst
    assert sum(stage.broken for stage in result.stages) == count["broken"]
    assert result.stages[0].attacked == 150 - count["misclassified"]
    assert result.stages[-1].robust_accuracy == result.robust_accuracy


def test_the_file_is_the_result(whole):
    folder, result = whole
    assert AuditResult.model_validate_json((folder / "audit.json").read_text()) == result
    document = json.loads((folder / "audit.json").read_text())
    assert document["schema_version"] == 1
    assert document["certified_accuracy"] is None
    assert document["threat"] == {"name": "linf:0.1", "norm": "linf", "eps": 0.1, "box": [0.0, 1.0]}


def test_saved_inputs_hold_up_outside(whole):
    folder, _ = whole
    saved = np.load(folder / "adversarial.npz")
    clean = next(iter(load_data("digits").batches(150)))
    x = torch.from_numpy(saved["x"])
    assert np.array_equal(saved["index"], clean.index.numpy())
    assert np.array_equal(saved["y"], clean.y.numpy())
    assert (x - clean.x).abs().max() <= 0.1 + 1e-6
    assert x.min() >= 0
    assert x.max() <= 1
    with torch.no_grad():
        wrong = ordinary_digits()(x).argmax(1) != clean.y
    assert np.array_equal(wrong.numpy(), saved["success"])
    verdicts = [row[3] for row in rows(folder)]
    assert [v in ("broken", "misclassified") for v in verdicts] == saved["success"].tolist()
    # And they read back as data.
    again = next(iter(load_data(f"npz:{folder / 'adversarial.npz'}").batches(150)))
    assert torch.equal(again.x, x)


def test_any_split_over_runs_gives_the_same_rows(whole, tmp_path):
    parts = []
    for number, examples in enumerate(("0:1", "1:64", "64:150")):
        run(tmp_path / str(number), examples)
        parts += rows(tmp_path / str(number))
    assert parts == rows(whole[0])


def test_any_order_gives_the_same_rows(whole, tmp_path):
    class Backwards:
        name, shape, classes = "digits test[0:150]", (1, 8, 8), None

        def __len__(self):
            return 150

        def batches(self, size, start=0, stop=None):
            for batch in reversed(list(load_data("digits", examples="0:150").batches(size))):
                order = torch.arange(len(batch) - 1, -1, -1)
                yield type(batch)(batch.index[order], batch.x[order], batch.y[order])

    holdfast.audit(ordinary_digits(), Backwards(), "linf:0.1", run=tmp_path)
    assert rows(tmp_path) == rows(whole[0])


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_at_most_a_rounding(whole, tmp_path, batch_size):
    examples = "0:40" if batch_size == 1 else "0:150"
    run(tmp_path, examples, batch_size=batch_size)
    mine, theirs = rows(tmp_path), rows(whole[0])
    assert sum(a[3] != b[3] for a, b in zip(mine, theirs, strict=False)) <= 1


def test_another_seed_draws_otherwise(whole, tmp_path):
    run(tmp_path, seed=1)
    assert [row[6] for row in rows(tmp_path)] != [row[6] for row in rows(whole[0])]


@pytest.mark.parametrize("moment", [1, 5, 30, 80, 200])
def test_interrupted_and_resumed_ends_the_same(whole, tmp_path, moment):
    steps = 0

    def stop(progress):
        nonlocal steps
        steps += 1
        if steps == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_progress=stop, save_inputs=True)
    decided = len(rows(tmp_path))
    seen = []
    result = run(tmp_path, on_progress=lambda progress: seen.append(progress.decided), save_inputs=True)
    assert seen[0] >= decided
    assert rows(tmp_path) == rows(whole[0])
    assert result.model_copy(update={"cost": None}) == whole[1].model_copy(update={"cost": None})


SLOW_AUDIT = """
import sys, time
import torch
from helpers.networks import ordinary_digits
import holdfast
torch.set_num_threads(1)
holdfast.audit(ordinary_digits(), "digits", "linf:0.1", examples="0:150", run=sys.argv[1], save_inputs=True,
               on_progress=lambda progress: time.sleep(float(sys.argv[2])))
"""


@pytest.mark.slow
def test_killed_at_any_moment_ends_the_same(whole, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    for enough in (1, 30):
        with subprocess.Popen([sys.executable, "-c", SLOW_AUDIT, str(tmp_path), "0.04"], env=environment) as process:
            while process.poll() is None and len(rows(tmp_path)) < enough:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        assert enough <= len(rows(tmp_path)) < 150
        assert not (tmp_path / "audit.json").exists()
    subprocess.run([sys.executable, "-c", SLOW_AUDIT, str(tmp_path), "0"], env=environment, check=True)
    assert rows(tmp_path) == rows(whole[0])


def test_a_finished_run_is_read_and_not_repeated(whole):
    folder, result = whole
    asked = []
    again = run(folder, save_inputs=True, on_progress=lambda progress: asked.append(progress.forwards))
    assert len(asked) == 1
    assert again.verdicts == result.verdicts


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"threat": "linf:0.2"}, "threat"),
        ({"threat": Linf(0.1, box=(-1, 1))}, "threat"),
        ({"examples": "0:149"}, "data"),
        ({"batch_size": 32}, "batch_size"),
        ({"max_forwards": 9}, "max_forwards"),
        ({"mean": (0.5,)}, "normalisation"),
    ],
)
def test_the_folder_of_another_audit_is_refused(whole, change, key):
    with pytest.raises(RunError, match=rf"holds another audit: {key}\S* was") as caught:
        run(whole[0], **({"save_inputs": True} | change))
    assert "\n" not in str(caught.value)
    assert len(rows(whole[0])) == 150


def test_another_model_is_another_audit(whole):
    network = ordinary_digits()
    with torch.no_grad():
        network[0].bias[0] += 1e-6
    with pytest.raises(RunError, match="model was"):
        holdfast.audit(network, "digits", "linf:0.1", examples="0:150", run=whole[0], save_inputs=True)


def test_other_layers_with_the_same_weights_are_another_model(tmp_path):
    first, second = (nn.Sequential(ordinary_digits(), last) for last in (nn.Identity(), nn.Tanh()))
    holdfast.audit(first, "digits", "linf:0.1", examples="0:20", run=tmp_path)
    with pytest.raises(RunError, match="model was"):
        holdfast.audit(second, "digits", "linf:0.1", examples="0:20", run=tmp_path)


def test_an_attempt_that_came_to_nothing_claims_no_folder(tmp_path):
    with pytest.raises(SettingError, match="use pgd there"):
        run(tmp_path, "0:20", "l1:1", protocol=single("apgd", {}))
    assert run(tmp_path, "0:20", "l1:1", protocol=single("pgd", {"steps": "5"})).examples == 20


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="give a --run folder"):
        run(tmp_path / "file" / "run")
    (tmp_path / "run.sqlite").write_text("no database, and longer than a header of sqlite would be" * 40)
    with pytest.raises(RunError, match="not a database"):
        run(tmp_path)


def test_a_full_disk_loses_nothing(whole, tmp_path, monkeypatch):
    connect = sqlite3.connect

    def small(path, pages):
        db = connect(path)
        db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    monkeypatch.setattr(store, "_COMMIT_SECONDS", 0)
    monkeypatch.setattr(sqlite3, "connect", lambda path: small(path, 16))
    with pytest.raises(RunError, match="full; free some space and repeat the command"):
        run(tmp_path, save_inputs=True)
    monkeypatch.undo()
    kept = rows(tmp_path)
    assert 0 < len(kept) < 150
    run(tmp_path, save_inputs=True)
    assert rows(tmp_path) == rows(whole[0])


def test_budgets_of_queries():
    clean = run(None, max_forwards=0)
    assert clean.robust_accuracy == clean.clean_accuracy
    assert clean.cost.forwards == 150
    assert [stage.attacked for stage in clean.stages] == [0, 0, 0, 0]
    assert clean.verdicts["undecided"] == 150 - clean.verdicts["misclassified"]
    assert "undecided" in {d.name for d in clean.diagnostics}


def test_no_example_overruns_its_budget(tmp_path):
    run(tmp_path, max_forwards=7)
    result = AuditResult.model_validate_json((tmp_path / "audit.json").read_text())
    correct = 150 - result.verdicts["misclassified"]
    # FGSM takes 2 forwards, so its survivors all reach PGD, and there their budget ends.
    assert [stage.attacked for stage in result.stages] == [correct, correct - result.stages[0].broken, 0, 0]
    spent = [row[6] - 1 - (row[3] == "broken") for row in rows(tmp_path)]
    assert max(spent) == 7


@pytest.mark.parametrize("threat", ["l2:0.8", "l1:3", "l0:4"])
def test_other_norms(threat, tmp_path):
    result = run(tmp_path, "0:40", threat, save_inputs=True)
    saved = np.load(tmp_path / "adversarial.npz")
    clean = next(iter(load_data("digits", examples="0:40").batches(40)))
    d = (torch.from_numpy(saved["x"]) - clean.x).flatten(1)
    length = {"l2": d.norm(dim=1), "l1": d.abs().sum(1), "l0": (d != 0).sum(1).float()}[threat[:2]]
    assert length.max() <= float(threat[3:]) * (1 + 1e-6)
    assert result.verdicts["broken"] > 0
    assert result.robust_accuracy < result.clean_accuracy


def test_the_model_is_given_back_as_it_was():
    network = ordinary_digits().train()
    network[0].weight.grad = torch.ones_like(network[0].weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    holdfast.audit(network, "digits", "linf:0.1", examples="0:20")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(network[0].weight.grad, torch.ones_like(network[0].weight))
    assert network[0].bias.grad is None
    assert torch.equal(state, torch.get_rng_state())


class Answer(nn.Module):
    """A model that answers with a function of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.inner = ordinary_digits()

    def forward(self, x):
        return self.function(self.inner, x)


FAULTS = [
    (lambda net, x: net(x).softmax(1), ModelError, "returns probabilities"),
    (lambda net, x: net(x) * torch.nan, ModelError, "NaN"),
    (lambda net, x: (net(x), x), ModelError, "returned a tuple"),
    (lambda net, x: net(x).argmax(1), ModelError, "logits must be"),
    (lambda net, x: net(x)[:, :5], ModelError, "returns 5 logits, but digits"),
    (lambda net, x: net(x.flatten()), ModelError, "the model failed on an input batch of shape"),
    (lambda net, x: net(x.detach()), ModelError, "no gradient reaches"),
]


@pytest.mark.parametrize(("function", "error", "message"), FAULTS, ids=[fault[2] for fault in FAULTS])
def test_models_that_misbehave_are_named(function, error, message):
    with pytest.raises(error, match=message) as caught:
        holdfast.audit(Answer(function), "digits", "linf:0.1", examples="0:10", adapt=False)
    assert "\n" not in str(caught.value)


def test_log_probabilities_are_logits():
    logged = holdfast.audit(Answer(lambda net, x: net(x).log_softmax(1)), "digits", "linf:0.1", examples="0:20")
    assert logged.clean_accuracy > 0.5


def test_data_that_do_not_fit_are_named():
    x, y = torch.rand(10, 1, 8, 8), torch.arange(10)
    with pytest.raises(DataError, match="example 3 has label 10, but the model knows classes 0 to 9"):
        holdfast.audit(ordinary_digits(), (x, torch.where(y == 3, 10, y)), "linf:0.1")
    shifted = x.clone()
    shifted[4] -= 1
    with pytest.raises(DataError, match=r"example 4 has values from .* outside the box"):
        holdfast.audit(ordinary_digits(), (shifted, y), "linf:0.1")
    with pytest.raises(DataError, match="has no budget: eps holds only 5"):
        holdfast.audit(ordinary_digits(), (x, y), Linf(torch.full((5,), 0.1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "thorough"}, "unknown protocol 'thorough'"),
        ({"threat": "l3:1"}, "unknown threat 'l3:1'"),
        ({"threat": "linf:-1"}, "at least 0"),
        ({"max_forwards": -1}, "max_forwards: a whole number from 0"),
        ({"batch_size": 0}, "at least 1 row"),
        ({"save_inputs": True}, "give a run folder"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(SettingError, match=message):
        run(None, **options)


def named(result: AuditResult) -> set[str]:
    return {diagnostic.name for diagnostic in result.diagnostics if diagnostic.verdict != "pass"}


def test_diagnostics_speak_up_and_only_then():
    healthy = run(None, "0:40")
    assert named(healthy) == {"protocol"}
    noisy = Answer(lambda net, x: net(x + 0.1 * torch.randn_like(x)))
    assert "random model" in named(holdfast.audit(noisy, "digits", "linf:0.05", examples="0:20"))
    masked = Answer(lambda net, x: net(x).detach() + 0 * net(x))
    assert "zero gradient" in named(holdfast.audit(masked, "digits", "linf:0.05", examples="0:20"))
    constant = Answer(lambda net, x: net(x) * 0 + torch.arange(10.0))
    assert {"constant model", "zero gradient"} <= named(
        holdfast.audit(constant, "digits", "linf:0.05", examples="0:40")
    )
    wrong = Answer(lambda net, x: net(x).roll(1, 1))
    assert "no better than the majority" in named(holdfast.audit(wrong, "digits", "linf:0.05", examples="0:40"))
    three = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    batch = next(iter(load_data("digits").batches(40)))
    assert "few classes" in named(holdfast.audit(three, (batch.x, batch.y % 3), "linf:0.05"))


def test_usual_mistakes_are_met_with_their_cure():
    net, x, y = nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten()), torch.rand(6, 3, 8, 8), torch.arange(6) % 2
    mistakes = [
        (x.permute(0, 2, 3, 1), y, ModelError, r"channels seem to come last: .* x.permute\(0, 3, 1, 2\)"),
        (x * 255, y, DataError, "outside the box .* divide them by 255, or set the box to 0,255"),
        (x * 2 - 1, y, DataError, "outside the box .* normalise inside the model"),
        (x, y + 1, DataError, "has label 2, but the model knows classes 0 to 1: count labels from 0"),
        (x, torch.eye(2)[y], DataError, "one-hot: take the argmax"),
    ]
    for inputs, labels, error, cure in mistakes:
        with pytest.raises(error, match=cure):
            holdfast.audit(net, (inputs, labels), "linf:0.1")
    # An ordinary failure on images with channels first is not blamed on them.
    with pytest.raises(ModelError) as caught:
        holdfast.audit(nn.Sequential(net, nn.Linear(5, 2)), (x, y), "linf:0.1")
    assert "channels" not in str(caught.value)
