"""A prover that lies: the audit stops, keeps what it has, and a later session believes none of the lies."""

import importlib
import sqlite3
from contextlib import closing

import pytest
import torch
from typer.testing import CliRunner

import holdfast
from helpers.audits import audit
from helpers.networks import ordinary_digits
from helpers.processes import together
from holdfast import Linf, ProofError
from holdfast.certify import Certificate, certify
from holdfast.certify.bounds.margins import Margins, crown_margins
from holdfast.certify.certifier import BOUNDS, Certifier
from holdfast.certify.doubt import CHECK, Doubt
from holdfast.cli.main import app
from holdfast.data import load_data

OPTIONS = {"examples": "0:60", "batch_size": 16, "certify": "crown", "protocol": "quick"}
THREAT = Linf(0.1)
# An example of the third batch that can be broken.
LIED_ABOUT = 40


def lie(graph, region, y, memory):
    """CROWN's bounds, but for one example, of which they say that nothing can be wrong."""
    told = crown_margins(graph, region, y, memory=memory)
    (example,) = load_data("digits", examples=f"{LIED_ABOUT}:{LIED_ABOUT + 1}").batches(1)
    there = (region.center == example.x.to(region.center)).flatten(1).all(1)
    return Margins(told.lower.masked_fill(there, 1e6), told.lost)


def run(folder, **options):
    return audit(ordinary_digits(), "digits", THREAT, run=folder, **OPTIONS | options)


def rows(folder, columns="*"):
    with closing(sqlite3.connect(folder / "run.sqlite")) as db:
        return db.execute(f"SELECT {columns} FROM examples ORDER BY idx").fetchall()


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("honest") / "run"
    return folder, run(folder)


def test_the_example_can_be_broken(honest):
    assert dict(rows(honest[0], "idx, verdict"))[LIED_ABOUT] == "broken"


def test_a_false_proof_stops_the_audit_and_is_never_believed(monkeypatch, tmp_path, honest):
    with monkeypatch.context() as patch:
        patch.setitem(BOUNDS, "crown", lie)
        messages = []
        for _ in range(2):  # the second session makes the same proof again, and finds it false again
            with pytest.raises(ProofError, match=rf"example {LIED_ABOUT}: .* by crown, .* distrust") as caught:
                run(tmp_path)
            messages.append(str(caught.value))
            kept = rows(tmp_path, "idx, verdict")
            assert len(kept) >= 8  # decided before it, proofs among them
            assert LIED_ABOUT not in dict(kept)
        assert messages[0] == messages[1]
        assert not (tmp_path / "audit.json").exists()
    # With the prover mended, all is as if there had been no lie, but for the note.
    folder, expected = honest
    found = run(tmp_path)
    assert rows(tmp_path) == rows(folder)
    assert found.certification == expected.certification
    (note,) = [d for d in found.diagnostics if d.name == "proof refuted before"]
    assert messages[0] in note.message
    assert "\n" not in note.message
    assert found.bracket == expected.bracket
    # What has been proved since stays.
    monkeypatch.setattr(Doubt, "attack", lambda *_: pytest.fail("attacked again"))
    assert run(tmp_path).bracket == expected.bracket


def test_after_a_false_proof_every_proof_is_attacked(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(BOUNDS, "crown", lie)
        module = importlib.import_module("holdfast.certify.doubt")  # the package's name is also that of a function
        patch.setattr(module, "chosen", lambda seed, index, share: index == LIED_ABOUT)
        with pytest.raises(ProofError):
            run(tmp_path, certify_checks=1)
    found = run(tmp_path, certify_checks=1)
    assert found.certification.checked == sum(found.certification.methods.values()) > 1


def test_what_no_check_looks_at_is_what_is_not_seen(monkeypatch):
    monkeypatch.setitem(BOUNDS, "crown", lie)
    found = run(None, certify_checks=0)
    assert found.certification.checked == 0


def test_a_false_proof_of_the_search(monkeypatch, tmp_path):
    """After an attack of one step, much is left that can be broken."""

    def every(self, x, y, threat):
        for place in range(len(x)):
            yield place, Certificate("certified", "branch and bound", 1.0, None, 0.0)

    monkeypatch.setattr(Certifier, "prove", every)
    with pytest.raises(ProofError, match=r"by branch and bound, .* distrust branch and bound"):
        run(tmp_path, certify="complete", protocol=[holdfast.attacks.NES(steps=1)])
    assert len(rows(tmp_path)) == 60  # every verdict of the attacks


def test_a_false_proof_on_the_curve(monkeypatch, tmp_path):
    def wide(graph, region, y, memory):
        told = crown_margins(graph, region, y, memory=memory)
        lying = region.eps < 0.19
        return Margins(told.lower.masked_fill(lying, 1e6), told.lost)

    monkeypatch.setitem(BOUNDS, "crown", wide)
    with pytest.raises(ProofError, match=r"robust under linf:0.18 by crown, but misclassified at 0\.1"):
        audit(ordinary_digits(), "digits", Linf(0.2), run=tmp_path, certify_budgets=(0.18,), max_forwards=0, **OPTIONS)
    assert len(rows(tmp_path)) == 60


def test_the_curve_counts_what_its_checks_cost(tmp_path):
    plain = run(None)
    found = run(tmp_path, certify_budgets=(0.02, 0.05))
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as db:
        ((reached,),) = db.execute("SELECT count(*) FROM curve WHERE eps > 0")
    assert reached > 0
    assert found.cost.forwards - plain.cost.forwards == reached * 21
    assert found.cost.backwards - plain.cost.backwards == reached * 10


def test_what_rounding_breaks_is_told_as_its_own_stage(monkeypatch, tmp_path):
    """Stood in for by a check that breaks the first proved example of every batch."""
    honest = Doubt.attack

    def breaking(self, batch, certificates, threat):
        found = honest(self, batch, certificates, threat)
        for index, outcome in list(found.items())[:1]:
            told = {"verdict": "broken", "stage": CHECK, "attacked_wrong": 1.0}
            found[index] = holdfast.attacks.Outcome(**{**vars(outcome), **told})
        return found

    monkeypatch.setattr(Doubt, "attack", breaking)
    found = run(tmp_path, save_inputs=True)
    (stage,) = [stage for stage in found.stages if stage.name == CHECK]
    assert stage.broken == sum(row[1] == CHECK for row in rows(tmp_path, "verdict, stage")) > 0
    assert sum(stage.broken for stage in found.stages) == found.verdicts["broken"]
    assert stage.attacked == found.certification.checked + stage.broken
    assert found.bracket[0] <= found.bracket[1] == found.robust_accuracy


def test_the_command_ends_with_its_code_and_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(BOUNDS, "crown", lie)
    torch.save(ordinary_digits().state_dict(), tmp_path / "net.pt")
    model = ["--model", "holdfast.models.networks:digits_conv", "--weights", str(tmp_path / "net.pt")]
    common = [*model, "--data", "digits", "--threat", "linf:0.1", "--examples", "0:60"]
    for command in (["audit", "--certify", "crown"], ["certify", "--method", "crown"]):
        found = CliRunner().invoke(app, [*command, *common])
        assert found.exit_code == 6
        (line,) = found.stderr.strip().splitlines()
        assert line.startswith(f"holdfast: example {LIED_ABOUT}: proved robust under linf:0.1 by crown, but")
        spared = CliRunner().invoke(app, [*command, *common, "--certify-checks", "0"])
        assert spared.exit_code == 0


def lying(processes, folder):
    BOUNDS["crown"] = lie
    return run(folder, processes=processes)


def truthful(processes, folder):
    return run(folder, processes=processes)


def test_what_one_process_finds_stops_all(tmp_path, honest):
    found = together(lying, tmp_path)
    assert [type(error) for error in found] == [ProofError, ProofError]
    assert str(found[0]) == str(found[1])
    folder, expected = honest
    results = together(truthful, tmp_path)
    assert rows(tmp_path) == rows(folder)
    assert results[0].certification == expected.certification
    assert {d.name for d in results[0].diagnostics} >= {"proof refuted before"}


def test_certify_from_python(monkeypatch):
    monkeypatch.setitem(BOUNDS, "crown", lie)
    batch = next(iter(load_data("digits", examples="0:60").batches(60)))
    with pytest.raises(ProofError, match=f"example {LIED_ABOUT}: "):
        certify(ordinary_digits(), batch.x, batch.y, THREAT, method="crown")
