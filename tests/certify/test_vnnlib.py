"""Reading VNN-LIB: the set of unsafe points is what the text describes, and a fault is reported with its line."""

import gzip
import os
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.shared import SHARED, needs_shared
from helpers.vnnlib import meant, said, text
from holdfast import DataError
from holdfast.certify.vnnlib import parse_vnnlib, read_vnnlib

HEAD = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= X_1 -1))(assert (<= X_1 1))\n"


def unsafe(prop, x, y) -> bool:
    v = np.concatenate([y, x[list(prop.read)]])
    return any(
        ((box.lower <= x) & (x <= box.upper)).all()
        and any(
            np.where(c.strict, c.matrix @ v < c.bound, c.matrix @ v <= c.bound).all() for c in box.unsafe
        )
        for box in prop.sets
    )  # fmt: skip


# Numbers that float64 holds, in all the ways of writing them: what is said of them can be evaluated exactly.
EIGHTHS = [Fraction(k, 8) for k in range(-16, 17)]
NAMES = ("X_0", "X_1", "Y_0", "Y_1")


@st.composite
def numbers(draw):
    value = draw(st.sampled_from(EIGHTHS))
    size, sign = str(float(abs(value))), value < 0
    written = draw(
        st.sampled_from(
            [size, f"{float(abs(value)) * 1000!r}e-3", ("/", str(abs(value.numerator)), str(value.denominator))]
        )
    )
    if not sign:
        return written
    return ("-", written) if isinstance(written, tuple) or draw(st.booleans()) else f"-{written}"


def linear(names=NAMES):
    names = st.sampled_from(names)
    factors = st.sampled_from(["2", "-0.5", "3", ("-", "1"), ("/", "3", "4"), "0"])
    term = names | st.tuples(st.just("*"), factors, names) | st.tuples(st.just("*"), names, factors)
    term |= st.tuples(st.just("/"), names, st.sampled_from(["2", "-4"]))
    return st.recursive(
        term | numbers(),
        lambda inner: (
            st.tuples(st.just("+"), inner, inner, inner)
            | st.tuples(st.just("-"), inner)
            | st.tuples(st.just("-"), inner, inner)
            | st.tuples(st.just("*"), numbers(), inner)
        ),
        max_leaves=4,
    )


def formulas(names=NAMES):
    relations = st.sampled_from(["<=", ">=", "<", ">", "=", "==", "!="])
    compared = linear(names)
    simple = st.tuples(relations, st.sampled_from(names), numbers()) | st.tuples(relations, numbers(), compared)
    return st.recursive(
        simple | st.tuples(relations, compared, compared) | st.sampled_from(["true", "false"]),
        lambda inner: (
            st.tuples(st.just("and"), inner, inner)
            | st.tuples(st.just("or"), inner, inner, inner)
            | st.tuples(st.just("=>"), inner, inner)
            | st.tuples(st.just("=>"), inner, inner, inner)
            | st.tuples(st.just("not"), inner)
        ),
        max_leaves=6,
    )


POINTS = st.lists(st.tuples(*[st.sampled_from(EIGHTHS)] * 4), min_size=10, max_size=10)


@settings(max_examples=300, deadline=None)
@given(st.lists(formulas(), min_size=1, max_size=2), POINTS)
def test_formulas_describe_the_points_they_say(asserted, points):
    prop = parse_vnnlib(HEAD + BOX + "".join(f"(assert {said(formula)})\n" for formula in asserted))
    for point in points:
        values = dict(zip(NAMES, map(float, point), strict=True))
        x, y = np.array(point[:2], float), np.array(point[2:], float)
        truth = 0 <= x[0] <= 1 and -1 <= x[1] <= 1 and all(meant(formula, values) for formula in asserted)
        assert unsafe(prop, x, y) == truth


TENSORS = ("In[0,0]", "In[0,1]", "Out[0]", "Out[1]")
SECOND = "(vnnlib-version <2.0>)\n(declare-network f (declare-input In Real [1,2])\n (declare-output Out Real [2]))\n"
SECOND_BOX = "(assert (and (>= In[0,0] 0) (<= In [0, 0] 1) (>= In[ 0,1] -1) (<= In[0,1] 1)))\n"


@settings(max_examples=100, deadline=None)
@given(formulas(TENSORS), POINTS)
def test_formulas_of_version_2(formula, points):
    prop = parse_vnnlib(SECOND + SECOND_BOX + f"(assert {said(formula)})")
    assert [t.shape for t in prop.tensors] == [(1, 2), (2,)]
    for point in points:
        x, y = np.array(point[:2], float), np.array(point[2:], float)
        truth = 0 <= x[0] <= 1 and -1 <= x[1] <= 1
        assert unsafe(prop, x, y) == (truth and meant(formula, dict(zip(TENSORS, map(float, point), strict=True))))


def test_layouts_and_numbers():
    plain = parse_vnnlib(HEAD + BOX + "(assert (<= Y_0 0.001))")
    odd = parse_vnnlib(
        "; remark (assert\n(set-logic QF_LRA)" + HEAD.replace("\n", "") + BOX.replace("(", "\n ( ") +
        "(assert\r\n\t(>= 1e-3 ; (\n Y_0))(check-sat)"
    )  # fmt: skip
    for prop in (plain, odd):
        (box,) = prop.sets
        np.testing.assert_array_equal(box.lower, [0, -1])
        np.testing.assert_array_equal(box.upper, [1, 1])
        np.testing.assert_array_equal(box.unsafe[0].matrix, [[1, 0]])
        np.testing.assert_array_equal(box.unsafe[0].bound, [1e-3])
    assert parse_vnnlib(HEAD + BOX + "(assert (<= Y_0 -.5E+2))").sets[0].unsafe[0].bound[0] == -50


def test_linear_expressions():
    (box,) = parse_vnnlib(HEAD + BOX + "(assert (<= (+ (* 2 Y_0) (- Y_1) 1) (- (* Y_1 3) 4 Y_0)))").sets
    np.testing.assert_array_equal(box.unsafe[0].matrix, [[3, -4]])
    np.testing.assert_array_equal(box.unsafe[0].bound, [-5])


def test_several_boxes_share_their_conjunctions():
    either = "(assert (or (and (<= X_0 0.25)) (and (>= X_0 0.75) (<= X_1 0))))"
    (left, right) = parse_vnnlib(HEAD + BOX + either + "(assert (or (<= Y_0 0) (and (<= Y_1 0) (<= Y_0 Y_1))))").sets
    np.testing.assert_array_equal([left.lower, left.upper], [[0, -1], [0.25, 1]])
    np.testing.assert_array_equal([right.lower, right.upper], [[0.75, -1], [1, 0]])
    for box in (left, right):
        assert [len(c.bound) for c in box.unsafe] == [1, 2]


def test_an_empty_box_is_no_set():
    assert parse_vnnlib(HEAD + BOX + "(assert (<= X_0 -0.1))(assert (<= Y_0 0))").sets == ()
    either = "(assert (or (<= X_0 -0.1) (>= X_0 0.9)))"
    assert len(parse_vnnlib(HEAD + BOX + either + "(assert (<= Y_0 0))").sets) == 1


def test_a_strict_bound_of_an_input_excludes_its_number_and_no_other():
    (box,) = parse_vnnlib(HEAD + BOX + "(assert (< X_0 0.5))(assert (< -1 X_1))(assert (<= Y_0 0))").sets
    assert box.upper[0] == np.nextafter(0.5, 0)
    assert box.lower[1] == np.nextafter(-1, 0)


@pytest.mark.parametrize(
    ("body", "line", "part"),
    [
        (BOX + "(assert (<= Y_2 0))", 6, "'Y_2'"),
        (BOX + "(assert (<= Y_0 one))", 6, "'one'"),
        (BOX + "(assert (<= Y_0 nan))", 6, "'nan'"),
        (BOX + "(assert (<= Y_0 1e999))", 6, "too large"),
        (BOX + "\n\n(assert (<= Y_0 0)", 8, "never closed"),
        (BOX + "(assert (<= Y_0 0)))", 6, "closes nothing"),
        (BOX + "Y_0", 6, "outside"),
        (BOX + "(assert (<= Y_0 0 1))", 6, "two things"),
        (BOX + "(assert (<= Y_0 -1e-400))", 6, "too small"),
        (BOX + "(assert (<= (* 1e-200 1e-200 Y_0) 0))", 6, "too small"),
        (BOX + "(assert (<= (* 1e200 1e200 Y_0) 0))", 6, "too large"),
        (BOX + "(assert (<= Y_0 1" + "0" * 5000 + "))", 6, "5001 characters"),
        (BOX + "(assert (<= Y_0 " + "a" * 1_000_000 + "))", 6, "'aaaaaaaaaa"),
        (BOX + "(assert (<= Y_0 \x1b\x07))", 6, "neither"),
        (BOX + "(assert (<= Y_0 (/ Y_1 0)))", 6, "other than 0"),
        (BOX + "(assert (<= Y_0 (/ 1 Y_1)))", 6, "other than 0"),
        (BOX + "(assert (<= Y_0 (/ 1 (- 2 2))))", 6, "other than 0"),
        (BOX + "(assert (<= Y_0 ()))", 6, "'()'"),
        (BOX + "(assert ())", 6, "'()'"),
        (BOX + "(assert maybe)", 6, "'maybe'"),
        (BOX + "(assert (or\n(<= Y_0 0)\n(not (<= Y_0 0) (<= Y_1 0))))", 8, "'not'"),
        (BOX + "(assert (=> (<= Y_0 0)))", 6, "two formulas"),
        (BOX + "(assert (ite (<= Y_0 0) (<= Y_0 0) (<= Y_1 0)))", 6, "'ite'"),
        (BOX + "(assert (let ((a 1)) (<= Y_0 a)))", 6, "'let'"),
        (BOX + "(assert (distinct Y_0 0))", 6, "'distinct'"),
        (BOX + "(assert (<= Y_0 (ite (<= Y_0 0) 1 2)))", 6, "'ite'"),
        (BOX + "(assert (= (<= Y_0 0) (<= Y_1 0)))", 6, "'<='"),
        (BOX + "(assert (or))", 6, "empty 'or'"),
        (BOX + "(assert)", 6, "one expression"),
        (BOX + "(assert (<= (* Y_0 Y_1) 0))", 6, "product"),
        (BOX + "(assert (<= (* X_0 X_0) 0))", 6, "product"),
        (BOX + '"unclosed (', 6, "outside"),
        (BOX + "\x00\x01", 6, "outside"),
        ("(declare-const X_2147483648 Real)", 5, "declaration"),
        ("(declare-const X_01 Real)", 5, "declaration"),
        ("(declare-network f (declare-input X real [1]) (declare-output Y real [1]))", 5, "beside constants"),
        (BOX + "(minimize Y_0)", 6, "'minimize'"),
        (BOX + "(declare-const Y_0 Real)", 6, "twice"),
        (BOX + "(declare-const Z_0 Real)", 6, "declaration"),
        (BOX + "(declare-const Y_3 Real)", 1, "Y_2 is not"),
        ("(assert (<= X_0 0))(assert (>= X_0 0))(assert (<= X_1 0))", 2, "X_1 has no lower bound"),
        ("(assert (and (>= X_0 0) (<= X_0 1) (<= X_1 X_0)))", 2, "X_1 has no lower bound"),
        (BOX + "(assert " + "(and " * 1_000_000 + "(<= Y_0 0)" + ")" * 1_000_001, 6, "nested"),
        (BOX + "(" * 1_000_000, 6, "nested"),
        (BOX + "(assert (<= Y_0 " + "(- " * 1000 + "Y_1" + ")" * 1002, 6, "nested"),
    ],
)
def test_faults_name_their_line(body, line, part):
    with pytest.raises(DataError) as caught:
        parse_vnnlib(HEAD + body, "file.vnnlib")
    message = str(caught.value)
    assert message.startswith(f"file.vnnlib, line {line}: ")
    assert part in message
    assert message.isprintable()
    assert len(message) < 200


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ('(declare-input X float32 [2]) (declare-hidden H float32 [2] "h") (declare-output Y float32 [1])', "hidden"),
        ("(declare-input X float32 [2]) (declare-input Z float32 [1]) (declare-output Y float32 [1])", "one input"),
        ("(declare-input X float32 [2])", "one output"),
        ("(declare-input X float32 [2]) (declare-output X float32 [1])", "twice"),
        ("(declare-input X int8 [2]) (declare-output Y float32 [1])", "int8"),
        ("(declare-input X float32 [0,2]) (declare-output Y float32 [1])", "empty"),
        ("(declare-input X float32 [100000,100000]) (declare-output Y float32 [1])", "more than"),
        ("(declare-input X float32 [99999999999999999999]) (declare-output Y float32 [1])", "too large"),
        ("(declare-input X float32 [-1]) (declare-output Y float32 [1])", "declared as"),
        ("(declare-input X float32) (declare-output Y float32 [1])", "declared as"),
        ("(declare-input X float32 [1] initialized) (declare-output Y float32 [1])", "declared as"),
        ('(declare-input X float32 [1] "a" "b") (declare-output Y float32 [1])', "declared as"),
        ('(declare-input X float32 [1] "") (declare-output Y float32 [1])', "declared as"),
        ("(equal-to g) (declare-input X float32 [1]) (declare-output Y float32 [1])", "'equal-to'"),
        ("(declare-input X real [2]) (declare-output Y real []))(declare-network g", "second network"),
        ("(declare-input X real [2]) (declare-output Y real []))(assert (<= X[2] 0)", "no entry"),
        ("(declare-input X real [2]) (declare-output Y real []))(assert (<= X[0,0] 0)", "no entry"),
        ("(declare-input X real [2]) (declare-output Y real []))(assert (<= X 0)", "no entry"),
        ("(declare-input X real [2]) (declare-output Y real []))(assert (<= Y[] 0)", "X[0] has no"),
        ("(declare-input X real [2]) (declare-output Y real []))(assert (<= X_0 0)", "'X_0'"),
        ("(declare-input X real [2]) (declare-output Y real []))(declare-const X_0 Real", "beside a network"),
        ("(declare-input X real [2,3]) (declare-output Y real []))(assert (<= X[0,0] 0)", "X[0,0] has no lower"),
    ],
)
def test_faults_of_version_2(body, part):
    with pytest.raises(DataError, match=r"^property, line 2: ") as caught:
        parse_vnnlib(f"(vnnlib-version <2.0>)\n(declare-network f {body})")
    assert part in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("version", ["", "<3.0>", "<1.0>", "2.0", "(2.0)", "<2.0> <2.0>"])
def test_other_versions_are_refused(version):
    with pytest.raises(DataError, match="version"):
        parse_vnnlib(f"(vnnlib-version {version})" + HEAD + BOX)


def test_entries_are_in_c_order():
    body = "".join(f"(assert (== X[{i},{j}] {10 * i + j}))" for i in range(2) for j in range(3))
    head = "(vnnlib-version <2.1>)(declare-network f (declare-input X float32 [2,3]) (declare-output Y float32 [2,2]))"
    prop = parse_vnnlib(head + body + "(assert (<= Y[1,0] X[1,2]))")
    (box,) = prop.sets
    np.testing.assert_array_equal(box.lower, [0, 1, 2, 10, 11, 12])
    assert prop.read == (5,)
    np.testing.assert_array_equal(box.unsafe[0].matrix, [[0, 0, 1, 0, -1]])
    assert [t.element for t in prop.tensors] == ["float32", "float32"]


def test_tensors_may_name_nodes_of_the_network():
    declared = '(declare-input X float32 [1,2] "in (0); x") (declare-output Y float32 [1] "y")'
    body = "(assert (and (<= X[0,0] 1) (>= X[0,0] 0) (== X[0,1] 0)))(assert (<= Y[0] 0))"
    prop = parse_vnnlib(f"(vnnlib-version <2.0>)(declare-network f {declared}){body}")
    assert [tensor.node for tensor in prop.tensors] == ["in (0); x", "y"]


def test_numbers_are_gathered_before_they_are_rounded():
    rows = "(assert (<= (+ Y_0 0.1) 0.3))(assert (<= (* 3 Y_1) (/ 1 3)))(assert (<= (* 3 X_0) 1))"
    (box,) = parse_vnnlib(HEAD + BOX + rows).sets
    np.testing.assert_array_equal(box.unsafe[0].bound, [0.2, 1 / 3])
    assert box.upper[0] == 1 / 3


def test_what_contradicts_itself_is_no_set():
    for body in ("false", "(and (<= Y_0 0) (>= Y_0 0.1))", "(< Y_0 Y_0)", "(and (= X_0 0.5) (!= X_0 0.5))", "(< 1 1)"):
        assert parse_vnnlib(HEAD + BOX + f"(assert {body})").sets == ()
    for body in ("true", "(<= 0 1)", "(= Y_0 Y_0)", "(=> (<= Y_0 0) (<= Y_0 1))"):
        (box,) = parse_vnnlib(HEAD + BOX + f"(assert {body})").sets
        assert [c.matrix.shape for c in box.unsafe] in ([(0, 2)], [(1, 2), (1, 2)])


def test_relations_stand_in_for_bounds():
    names = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const X_2 Real)(declare-const Y_0 Real)"
    bounds = "(assert (and (>= X_0 -1) (<= X_0 3) (= X_1 (+ (* 2 X_0) 0.1)) (<= (- X_2) X_1) (<= (* 3 X_2) X_0)))"
    (box,) = parse_vnnlib(names + bounds).sets
    assert box.lower[0] == -1
    for end, exact in ((box.lower[1], Fraction(-19, 10)), (box.upper[1], Fraction(61, 10))):
        assert abs(Fraction(end) - exact) < 1e-15
    assert -6.1 - 1e-14 < box.lower[2] <= -6.1
    assert 1 <= box.upper[2] < 1 + 1e-15


def test_choices_that_are_made_already_are_not_made_again():
    # Two to the power of 60 combinations, but no more than a few different ones.
    for clause in ("(or (<= Y_0 0) (<= Y_1 0))", "(or (and (<= Y_0 {0}) (<= Y_1 3)) (>= Y_1 {0}))"):
        body = "".join(f"(assert {clause.format(k)})" for k in range(60))
        (box,) = parse_vnnlib(HEAD + BOX + body).sets
        assert len(box.unsafe) < 70
    chain = "(<= Y_0 0)"
    for k in range(80):
        chain = f"(or (and (>= Y_0 {k}) {chain}) (<= Y_1 {k}))"
    assert len(parse_vnnlib(HEAD + BOX + f"(assert {chain})").sets) == 1


def test_thousands_of_alternatives_are_read_quickly():
    began = time.process_time()
    cases = (f"(and (>= X_0 {k / 4000}) (<= X_0 {(k + 1) / 4000}) (>= Y_0 {k}))" for k in range(4000))
    prop = parse_vnnlib(HEAD + BOX + f"(assert (or {' '.join(cases)}))(assert (or (<= Y_1 0) (>= Y_1 1)))")
    assert time.process_time() - began < 3
    assert len(prop.sets) == 4000
    assert {len(box.unsafe) for box in prop.sets} == {2}


EITHER = [f"(or (<= Y_{j} 0) (>= Y_{j} 1))" for j in range(60)]
SIXTY = HEAD + BOX + "".join(f"(declare-const Y_{j} Real)" for j in range(2, 60))
PLANES = [[f"(= (* {k} Y_0) (+ {c} (* {j} Y_1)))" for k in range(1, 400)] for j, c in ((1, 2), (5, 3))]
HALVES = [[f"(<= X_{j} {k / 400})" for k in range(1, 400)] for j in (0, 1)]
WIDE = text(np.zeros(2000), np.ones(2000), "true", 2000)


@pytest.mark.parametrize(
    "body",
    [
        SIXTY + "".join(f"(assert {clause})" for clause in EITHER),
        SIXTY + f"(assert (and {' '.join(EITHER)}))",
        SIXTY + f"(assert (not (or (not {') (not '.join(EITHER)}))))",
        HEAD + BOX + "".join(f"(assert (or {' '.join(planes)}))" for planes in PLANES),
        # A hundred thousand boxes of two thousand inputs.
        WIDE + "".join(f"(assert (or {' '.join(halves)}))" for halves in HALVES),
    ],
)
def test_what_would_fill_the_memory_is_refused(body, monkeypatch):
    monkeypatch.setattr(sys.modules["holdfast.certify.properties"], "_MOST_STEPS", 1 << 18)
    began = time.process_time()
    with pytest.raises(DataError, match=r"^property: too many combinations of alternatives"):
        parse_vnnlib(body)
    assert time.process_time() - began < 5


def test_more_variables_than_any_network_has(monkeypatch):
    monkeypatch.setattr(sys.modules["holdfast.certify.vnnlib"], "_MOST_VARIABLES", 100)
    with pytest.raises(DataError, match="more than 100 variables"):
        parse_vnnlib("".join(f"(declare-const X_{i} Real)" for i in range(200)))
    monkeypatch.setattr(sys.modules["holdfast.certify.sexpressions"], "_MOST_WORDS", 100)
    with pytest.raises(DataError, match="more than 100 words"):
        parse_vnnlib("(set-info " + "a " * 200)


@pytest.mark.parametrize("packed", [False, True])
def test_no_more_is_unpacked_than_may_be_read(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(sys.modules["holdfast.certify.vnnlib"], "_MOST_BYTES", 1 << 20)
    content = HEAD.encode() + b" " * (1 << 20)
    path = tmp_path / "bomb.vnnlib"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match="MiB"):
        read_vnnlib(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no regular file"):
        read_vnnlib(tmp_path / "pipe")


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [*"()[];\"|<=>", " ", "assert", "declare-const", "declare-network", "and", "or", "not", "=>", "<=", "=",
             "X_0", "Y_0", "X[0]", "1e5", "-", "+", "*", "/", "true", "Real", "<2.0>", "float32 [1]", "\n", "0"]
        ),
        max_size=40,
    ).map(" ".join)
)  # fmt: skip
def test_whatever_is_read_is_a_property_or_one_line(garbage):
    for before in ("", HEAD + BOX, HEAD + BOX + "(assert "):
        fault = ""
        try:
            parse_vnnlib(before + garbage)
        except DataError as error:
            fault = str(error)
        assert fault.isprintable()


def test_files_that_cannot_be_read(tmp_path):
    whole = gzip.compress((HEAD + BOX + "(assert (<= Y_0 0))").encode())
    (tmp_path / "cut.vnnlib.gz").write_bytes(whole[:-20])
    (tmp_path / "net.vnnlib").write_bytes(b"\x08\xff\xfe")
    (tmp_path / "good.vnnlib").write_bytes(whole)
    for name in ("none.vnnlib", "cut.vnnlib.gz", "net.vnnlib", "", "nul\0.vnnlib", "x" * 300):
        with pytest.raises(DataError, match=r"cannot be read|neither text|no path") as caught:
            read_vnnlib(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert read_vnnlib(tmp_path / "good.vnnlib").inputs == 2


def test_an_image_is_read_in_well_under_a_second():
    alternatives = " ".join(f"(and (>= Y_{j} Y_0))" for j in range(1, 10))
    file = text(np.zeros(3072), np.ones(3072), f"(or {alternatives})", 10)
    began = time.process_time()
    prop = parse_vnnlib(file)
    assert time.process_time() - began < 0.8
    assert [len(box.unsafe) for box in prop.sets] == [9]


@needs_shared
def test_files_of_the_competition():
    folder = SHARED / "vnncomp" / "acasxu"
    shapes = {"prop_1": [(1, 1)], "prop_2": [(1, 4)], "prop_6": [(4, 1)] * 2, "prop_7": [(2, 3)]}
    for name, expected in shapes.items():
        prop = read_vnnlib(folder / f"{name}.vnnlib")
        assert [(len(box.unsafe), len(box.unsafe[0].bound)) for box in prop.sets] == expected


def test_nothing_to_any_power_of_ten_is_nothing():
    for zero in ("0e999999999", "-0.0E-999999999", "0"):
        (box,) = parse_vnnlib(HEAD + BOX + f"(assert (<= (* 3 Y_0) (+ (* {zero} Y_1) {zero})))").sets
        np.testing.assert_array_equal(box.unsafe[0].matrix, [[3, 0]])
