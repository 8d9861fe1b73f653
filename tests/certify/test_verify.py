"""Properties of networks decided end to end: the truth from mixed-integer programs, and from the competition."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from helpers.onnx_graphs import node, save
from helpers.shared import SHARED, needs_shared
from helpers.vnnlib import least_excess, relu_network, text
from holdfast import DataError, ModelError, RunError, SettingError
from holdfast.certify.provers import prove, prove_by_neurons
from holdfast.certify.split import Outcome
from holdfast.certify.verify import verify
from holdfast.certify.vnnlib import parse_vnnlib, read_vnnlib
from holdfast.certify.witness import is_counterexample
from holdfast.cli.verify import decide

BROKEN = "(<= Y_0 -1)"
HOLDS = "(<= Y_0 -3)"


def shifted() -> nn.Module:
    """``relu(x_0) + relu(x_1) - 2``, which is at least -2."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        for layer, bias in ((model[0], 0.0), (model[2], -2.0)):
            layer.weight.copy_(torch.eye(2)[: len(layer.weight)] if bias == 0 else torch.ones(1, 2))
            layer.bias.fill_(bias)
    return model


def of(formula: str):
    return parse_vnnlib(text([-1, -1], [1, 1], formula, 1))


@pytest.mark.parametrize("prover", [prove, prove_by_neurons])
@pytest.mark.parametrize(
    ("formula", "matrix"),
    [
        ("(<= (- Y_0 Y_1) {0})", [[1, -1, 0]]),
        ("(and (<= (- Y_0 Y_1) {0}) (<= (- Y_0 Y_2) {0}) (<= Y_0 {0}))", [[1, -1, 0], [1, 0, -1], [1, 0, 0]]),
    ],
)
def test_verdicts_are_those_of_a_mixed_integer_program(prover, formula, matrix):
    proved = 0
    for seed in range(4):
        model = relu_network((3, 8, 8, 3), seed)
        lower, upper = [-0.2] * 3, [0.4] * 3
        middle = least_excess(model, lower, upper, matrix, [0] * len(matrix))
        for shift in (-0.02, 0.02):
            prop = parse_vnnlib(text(lower, upper, formula.format(f"{middle + shift:.9f}"), 3))
            found = verify(model, prop, seconds=10, prover=prover)
            assert found.word != ("unsat" if shift > 0 else "sat")
            if found.word == "sat":
                assert is_counterexample(prop, found.x, model(found.x[None]).detach().flatten())
            if found.word == "unsat":
                assert 0 <= found.bound <= 0.02 + 1e-5
                proved += 1
            if shift > 0 or prover is prove:
                assert found.word in {"sat", "unsat"}
    assert proved >= 2


def test_alternatives_and_boxes_together_by_neurons():
    either = "(or (and (>= X_0 0) (<= X_0 0.5)) (and (>= X_0 0.75) (<= X_0 1)))"
    for limit, word in ((-1.1, "sat"), (-2.1, "unsat")):
        formula = f"(or (<= Y_0 {limit}) (and (>= Y_0 0.3) (<= Y_0 -0.3)))"
        prop = parse_vnnlib(text([-1, -1], [1, 1], formula, 1) + f"(assert {either})")
        assert verify(shifted(), prop, prover=lambda task: prove_by_neurons(task)).word == word


def test_a_prover_is_asked_only_what_the_attack_left_open():
    asked = []

    def prover(task):
        asked.append(task)
        return Outcome(True, None, 1.0)

    assert verify(shifted(), of(BROKEN), prover=prover).word == "sat"
    assert asked == []
    assert verify(shifted(), of(HOLDS), prover=prover).word == "unsat"
    assert len(asked) == 1


@pytest.mark.parametrize(("note", "word"), [("", "timeout"), ("out of ideas", "unknown")])
def test_no_proof_is_no_verdict(note, word):
    found = verify(shifted(), of(HOLDS), prover=lambda task: Outcome(False, None, -0.5, note))
    assert (found.word, found.bound, found.note) == (word, -0.5, note)


def test_an_error_is_never_a_proof():
    def unable(task):
        raise ModelError("node 'sort_1': no bound is known")

    found = verify(shifted(), of(HOLDS), prover=unable)
    assert (found.word, found.note) == ("unknown", "node 'sort_1': no bound is known")

    def faulty(task):
        raise AssertionError("a fault of the prover")

    with pytest.raises(AssertionError):
        verify(shifted(), of(HOLDS), prover=faulty)


class Sorted(nn.Module):
    def forward(self, x):
        return x.sort(dim=1).values.cumsum(1)[:, :1]


def test_an_operation_without_bounds_is_named():
    found = verify(Sorted(), of(HOLDS))
    assert found.word == "unknown"
    assert "sort" in found.note
    assert "\n" not in found.note
    # What needs no bound is decided all the same.
    assert verify(Sorted(), of("(<= Y_0 0)")).word == "sat"


@pytest.mark.parametrize("formula", [BROKEN, HOLDS])
def test_without_time_there_is_no_verdict(formula):
    assert verify(shifted(), of(formula), seconds=0).word == "timeout"


def test_an_empty_set_needs_no_proof():
    prop = parse_vnnlib(text([1, 0], [0, 1], BROKEN, 1))
    assert verify(shifted(), prop, prover=lambda task: Outcome(False, None, 0.0)).word == "unsat"


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="the property's 3 inputs"):
        verify(onnx_like(), parse_vnnlib(text([0] * 3, [1] * 3, BROKEN, 1)))
    with pytest.raises(DataError, match="2 outputs, the network 1"):
        verify(shifted(), parse_vnnlib(text([0] * 2, [1] * 2, BROKEN, 2)))
    with pytest.raises(SettingError, match="time limit"):
        verify(shifted(), of(HOLDS), seconds=-1)
    with pytest.raises(ModelError, match=r"none\.onnx"):
        verify("none.onnx", of(HOLDS))


@pytest.fixture
def files(tmp_path):
    nodes = [node("Relu", "x", "r"), node("ReduceSum", "r axes", "s", keepdims=0), node("Sub", "s two", "y")]
    constants = {"axes": torch.tensor([1, 2]).numpy(), "two": torch.tensor([2.0]).numpy()}
    net = save(tmp_path / "net.onnx", nodes, (1, 1, 2), **constants)
    for name, formula in (("broken", BROKEN), ("holds", HOLDS)):
        (tmp_path / f"{name}.vnnlib").write_text(text([-1, -1], [1, 1], formula, 1))
    return net, tmp_path


def command(net, prop, out=None, seconds=60.0):
    said, aside = io.StringIO(), io.StringIO()
    decide(str(net), None, prop, seconds, 0, out, Console(file=said, width=30), Console(file=aside, width=30))
    return said.getvalue(), aside.getvalue()


def test_the_command_says_the_word_first_and_writes_the_counterexample(files):
    net, folder = files
    assert command(net, folder / "holds.vnnlib")[0].split() == ["unsat"]
    said, aside = command(net, folder / "broken.vnnlib", folder / "result.txt")
    assert (folder / "result.txt").read_text() == said
    assert aside == ""
    word, *rest = said.replace("(", " ").replace(")", " ").split()
    assert word == "sat"
    values = {name: float(value) for name, value in zip(rest[::2], rest[1::2], strict=True)}
    assert set(values) == {"X_0", "X_1", "Y_0"}
    assert values["Y_0"] <= -1
    total = sum(max(values[f"X_{i}"], 0) for i in range(2)) - 2
    assert values["Y_0"] == pytest.approx(total, abs=1e-6)


def test_a_result_that_cannot_be_written_is_known_at_once(files):
    net, folder = files
    with pytest.raises(RunError, match="cannot be written"):
        command(net, folder / "holds.vnnlib", folder)


def onnx_like():
    return nn.Sequential(nn.Flatten(), shifted())


KNOWN = [
    ("acasxu", "ACASXU_run2a_1_1_batch_2000.onnx", "prop_3.vnnlib", "unsat"),
    ("acasxu", "ACASXU_run2a_4_5_batch_2000.onnx", "prop_10.vnnlib", "unsat"),
    ("acasxu", "ACASXU_run2a_2_1_batch_2000.onnx", "prop_2.vnnlib", "sat"),
    ("rl_benchmarks", "dubinsrejoin.onnx.gz", "dubinsrejoin_case_unsafe_11.vnnlib.gz", None),
    ("rl_benchmarks", "lunarlander.onnx.gz", "lunarlander_case_safe_1.vnnlib.gz", None),
]


@needs_shared
@pytest.mark.parametrize(("folder", "network", "prop", "word"), KNOWN)
def test_published_instances(folder, network, prop, word):
    root = SHARED / "vnncomp"
    if word is None:
        lines = (root / "expected.csv").read_text().splitlines()
        (word,) = {line.split(",")[3] for line in lines if line.startswith(f"{folder},{network},{prop},")}
    found = verify(root / folder / network, root / folder / prop, seconds=60)
    assert found.word == word
    if word == "sat":
        assert is_counterexample(read_vnnlib(root / folder / prop), found.x.flatten(), found.y)
