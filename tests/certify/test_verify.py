"""Properties of networks decided end to end: the truth from mixed-integer programs, and from the competition."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto
from rich.console import Console
from torch import nn

from helpers.onnx_graphs import node, save
from helpers.shared import SHARED, needs_shared
from helpers.vnnlib import least_excess, relu_network, text
from holdfast import DataError, ModelError, RunError, SettingError
from holdfast.certify.provers import prove, prove_by_neurons
from holdfast.certify.search.split import Outcome
from holdfast.certify.search.witness import is_counterexample
from holdfast.certify.verify import verify
from holdfast.certify.vnnlib import parse_vnnlib, read_vnnlib
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
    ("formula", "matrix", "reads"),
    [
        ("(<= (- Y_0 Y_1) {0})", [[1, -1, 0]], None),
        ("(and (<= (- Y_0 Y_1) {0}) (<= (- Y_0 Y_2) {0}) (<= Y_0 {0}))", [[1, -1, 0], [1, 0, -1], [1, 0, 0]], None),
        ("(not (or (> (- Y_0 (* 2 X_0)) {0}) (< {0} (- Y_1 X_2))))", [[1, 0, 0], [0, 1, 0]], [[-2, 0, 0], [0, 0, -1]]),
        ("(and (<= (- X_0 X_1) {0}) (<= Y_0 (+ X_1 {0})))", [[0, 0, 0], [1, 0, 0]], [[1, -1, 0], [0, -1, 0]]),
    ],
)
def test_verdicts_are_those_of_a_mixed_integer_program(prover, formula, matrix, reads):
    proved = 0
    for seed in range(4):
        model = relu_network((3, 8, 8, 3), seed)
        lower, upper = [-0.2] * 3, [0.4] * 3
        middle = least_excess(model, lower, upper, matrix, [0] * len(matrix), reads)
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


NAMES = "(declare-const X_0 Real)(declare-const Y_0 Real)"


def identity(formula: str, model: nn.Module | None = None, names: str = NAMES):
    return verify(model or nn.Identity(), parse_vnnlib(f"{names}(assert {formula})"), seconds=2)


# Neighbours among float32 numbers, around 0.1.
BELOW, ABOVE = 0.09999999403953552, 0.10000000149011612


@pytest.mark.parametrize(
    ("formula", "word", "x"),
    [
        # A bound of the file, in decimal, that no float32 meets: the nearest one is the input.
        ("(and (= X_0 0.1) (> Y_0 0.1))", "sat", ABOVE),
        ("(and (= X_0 0.1) (< Y_0 0.1))", "unsat", None),
        ("(and (>= X_0 0.1) (<= X_0 0.1000000001) (>= Y_0 0.1))", "sat", ABOVE),
        ("(and (>= X_0 0.1) (<= X_0 0.1000000001) (>= Y_0 0.100001))", "unsat", None),
        # Between the same neighbours, but nearer to one with one end, to the other with the other.
        ("(and (>= X_0 0.0999999976) (<= X_0 0.0999999979) (<= Y_0 0.0999999949))", "sat", BELOW),
        ("(and (>= X_0 0.0999999976) (<= X_0 0.0999999979) (>= Y_0 0.1))", "sat", ABOVE),
        ("(and (>= X_0 1e-50) (<= X_0 1e-49) (<= Y_0 0))", "sat", 0.0),
        # A box with float32 numbers inside has those and no other.
        ("(and (>= X_0 0.1) (<= X_0 0.2) (<= Y_0 0.1))", None, None),
        # Edges: an equality holds at them, a strict inequality does not.
        ("(and (>= X_0 1) (<= X_0 2) (<= Y_0 1))", "sat", 1.0),
        ("(and (>= X_0 1) (<= X_0 2) (< Y_0 1))", None, None),
        ("(and (> X_0 1) (<= X_0 2) (<= Y_0 1))", None, None),
        ("(and (>= X_0 1) (<= X_0 1) (>= Y_0 1) (= Y_0 X_0))", "sat", 1.0),
        ("(and (>= X_0 1) (<= X_0 2) (!= Y_0 X_0))", None, None),
        # No input, no way of being unsafe, and nothing else than being an input.
        ("(and (>= X_0 2) (<= X_0 1))", "unsat", None),
        ("(and (>= X_0 1) (<= X_0 2) (<= 1 0))", "unsat", None),
        ("(and (>= X_0 1) (<= X_0 2) false)", "unsat", None),
        ("(and (= X_0 1) (<= 0 1))", "sat", 1.0),
        ("(= X_0 1)", "sat", 1.0),
    ],
)
def test_words_at_the_edges(formula, word, x):
    found = identity(formula)
    # Where no word is given, neither may be claimed falsely: there is no such float32, but a real number is as near.
    assert found.word == word if word else found.word != "sat"
    assert (found.x.item() if found.x is not None else None) == x
    if word:
        rounded = any(number in formula for number in ("0.1", "0.09", "1e-50"))
        assert found.note == (
            "no float32 lies between the bounds of input 0; the nearest one is the input" if rounded else ""
        )


def test_the_note_counts_the_inputs_that_were_rounded():
    names = "".join(f"(declare-const X_{i} Real)" for i in range(3)) + "(declare-const Y_0 Real)"
    found = identity("(and (= X_0 1) (= X_1 0.1) (= X_2 0.2) (<= Y_0 9))", nn.Linear(3, 1), names)
    assert found.note == "no float32 lies between the bounds of input 1 and of 1 more; the nearest one is the input"


def test_the_precision_is_the_networks():
    assert identity("(and (= X_0 0.1) (<= Y_0 9))", nn.Linear(1, 1).double()).x.item() == 0.1
    with pytest.raises(DataError, match="beyond what a float32 holds"):
        identity("(and (>= X_0 1e39) (<= X_0 1e40))")


def test_relations_of_many_inputs_by_neurons():
    model = relu_network((20, 6, 2), 0)
    bounds = text([-1] * 20, [1] * 20, "(and (<= (+ X_0 X_1) -1.5) (>= X_2 (* 2 X_3)))", 2)
    worst = least_excess(
        model, [-1] * 20, [1] * 20, [[1, -1], [0, 0], [0, 0]], [0, 0, 0],
        [[0] * 20, [1e6, 1e6] + [0] * 18, [0, 0, -1e6, 2e6] + [0] * 16],
    )  # fmt: skip
    free = least_excess(model, [-1] * 20, [1] * 20, [[1, -1]], [0])
    assert free <= worst
    found = verify(model, parse_vnnlib(bounds + f"(assert (<= (- Y_0 Y_1) {free - 0.05}))"), seconds=20)
    assert found.word == "unsat"
    found = verify(model, parse_vnnlib(bounds + "(assert (<= (- Y_0 Y_1) 9))"), seconds=20)
    assert found.word == "sat"
    assert found.x[0] + found.x[1] <= -1.5
    assert found.x[2] >= 2 * found.x[3]


VERSION_2 = """(vnnlib-version <2.0>)
(declare-network net (declare-input In {0} [1,2]) (declare-output Out {0} [1,1]))
(assert (and (>= In[0,0] -1) (<= In[0,0] 1) (= In[0,1] In[0,0])))
(assert (<= Out[0,0] {1}))"""


def test_version_2_end_to_end():
    found = verify(shifted(), parse_vnnlib(VERSION_2.format("float32", -1.9)), seconds=20)
    assert found.word == "sat"
    assert found.x[0] == found.x[1]
    word, *lines = found.written().splitlines()
    assert (word, lines[0], lines[3]) == ("sat", "In float32 [1,2]", "Out float32 [1,1]")
    assert [float(line) for line in (*lines[1:3], lines[4])] == [*found.x.tolist(), *found.y.tolist()]
    assert verify(shifted(), parse_vnnlib(VERSION_2.format("real", -2.1))).word == "unsat"
    with pytest.raises(DataError, match=r"In as float64, the network computes in torch\.float32"):
        verify(shifted(), parse_vnnlib(VERSION_2.format("float64", 0)))


def test_a_shape_that_is_another_is_refused(tmp_path):
    net = save(tmp_path / "net.onnx", [node("Flatten", "x", "y")], (1, 2, 3))
    head = "(vnnlib-version <2.0>)(declare-network f (declare-input X real [{}])(declare-output Y real [6]))"
    body = "".join("(assert (= X[{}] 1))".format(",".join(map(str, index))) for index in np.ndindex(1, 2, 3))
    assert verify(net, parse_vnnlib(head.format("1,2,3") + body)).word == "sat"
    with pytest.raises(DataError, match=r"shape \(1, 3, 2\), the network takes \(2, 3\)"):
        verify(net, parse_vnnlib(head.format("1,3,2") + "".join(
            "(assert (= X[{}] 1))".format(",".join(map(str, index))) for index in np.ndindex(1, 3, 2)
        )))  # fmt: skip


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="the property's 3 inputs"):
        verify(onnx_like(), parse_vnnlib(text([0] * 3, [1] * 3, BROKEN, 1)))
    with pytest.raises(DataError, match="2 outputs, the network 1"):
        verify(shifted(), parse_vnnlib(text([0] * 2, [1] * 2, BROKEN, 2)))
    with pytest.raises(SettingError, match=r"^seconds: the time limit"):
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
    network = {"weights": None, "weights_key": None, "trust": False, "sizes": None}
    decide(str(net), network, prop, seconds, 0, out, Console(file=said, width=30), Console(file=aside, width=30))
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


def test_a_result_is_there_whole_or_not_at_all(files, monkeypatch):
    net, folder = files
    result, link = folder / "result.txt", folder / "link.txt"
    result.write_text("sat\nof another run")
    link.symlink_to(result)
    seen = []

    class KilledError(Exception):
        pass

    def killed(*_, **__):
        seen.append(result.exists())
        raise KilledError

    with monkeypatch.context() as context:
        context.setattr("holdfast.cli.verify.verify", killed)
        with pytest.raises(KilledError):
            command(net, folder / "holds.vnnlib", link)
    assert seen == [False]
    replace = Path.replace

    def watched(part, place):
        # What is moved into place is complete, and nothing was there before.
        seen.append((part.read_text(), place.exists()))
        return replace(part, place)

    monkeypatch.setattr(Path, "replace", watched)
    command(net, folder / "holds.vnnlib", link)
    assert seen[-1] == ("unsat\n", False)
    assert result.read_text() == "unsat\n"
    assert link.is_symlink()
    assert sorted(file.name for file in folder.iterdir()) == [
        "broken.vnnlib",
        "holds.vnnlib",
        "link.txt",
        "net.onnx",
        "result.txt",
    ]
    command(net, folder / "holds.vnnlib", Path(os.devnull))


def test_a_result_that_cannot_be_written_is_known_at_once(files):
    net, folder = files
    (folder / "loop").symlink_to("loop")
    for name in (".", "loop", "n" * 5000, "net.onnx/result"):
        with pytest.raises(RunError) as error:
            command(net, folder / "holds.vnnlib", folder / name)
        assert "\n" not in str(error.value)


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


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16])
def test_casts_are_part_of_the_network(tmp_path, kind):
    """All inputs from 1.1 to 1.9 lose so much that they become 1, or 0 in half precision once they are made tiny."""
    nodes = [node("Mul", "x s", "u"), node("Cast", "u", "c", to=kind), node("Cast", "c", to=TensorProto.FLOAT)]
    scale = 1e-9 if kind == TensorProto.FLOAT16 else 1.0
    net = save(tmp_path / "net.onnx", nodes, (1, 1), s=np.float32(scale))
    lower, upper = ("(assert (>= X_0 1.1))", "(assert (<= X_0 1.9))")
    for y, found in (("(assert (<= Y_0 1.05))", True), ("(assert (>= Y_0 1.05))", False)):
        prop = parse_vnnlib(f"(declare-const X_0 Real)(declare-const Y_0 Real){lower}{upper}{y}")
        assert (verify(net, prop, seconds=60).word == "sat") == found


def test_names_of_nodes_are_those_of_the_network(tmp_path):
    path = save(tmp_path / "net.onnx", [node("Relu")], (1, 1))
    body = "(assert (and (<= X[0,0] 1) (>= X[0,0] 0.5)))(assert (<= Y[0,0] 0))"

    def named(x: str, y: str):
        head = f'(declare-network f (declare-input X float32 [1,1] "{x}") (declare-output Y float32 [1,1] "{y}"))'
        return parse_vnnlib(f"(vnnlib-version <2.0>){head}{body}")

    assert verify(path, named("x", "y"), seconds=5).word == "unsat"
    for names, part in ((("z", "y"), "calls X 'z'"), (("x", "z"), "calls Y 'z'")):
        with pytest.raises(DataError, match=part):
            verify(path, named(*names), seconds=5)
