"""Reading VNN-LIB: the set of unsafe points is what the text describes, and a fault is reported with its line."""

import gzip
import random
import time

import numpy as np
import pytest

from helpers.shared import SHARED, needs_shared
from helpers.vnnlib import text
from holdfast import DataError
from holdfast.certify.vnnlib import parse_vnnlib, read_vnnlib

HEAD = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= X_1 -1))(assert (<= X_1 1))\n"


def unsafe(prop, x, y) -> bool:
    return any(
        ((box.lower <= x) & (x <= box.upper)).all()
        and any(
            np.where(c.strict, c.matrix @ y < c.bound, c.matrix @ y <= c.bound).all() for c in box.unsafe
        )
        for box in prop.sets
    )  # fmt: skip


def random_formula(rng: random.Random, depth: int):
    """A formula as text, and as a function of a point."""
    kind = rng.choice(["and", "or"]) if depth else "compare"
    if kind == "compare":
        number = round(rng.uniform(-1, 1), 2)
        relation = rng.choice(["<=", ">=", "<", ">"])
        left, right = rng.choice(
            [("Y_0", "Y_1"), ("Y_1", number), (number, "Y_0"), ("X_0", number), (number, "X_1"), ("X_1", number)]
        )
        compare = {"<=": np.less_equal, ">=": np.greater_equal, "<": np.less, ">": np.greater}[relation]
        return f"({relation} {left} {right})", lambda p: bool(compare(p.get(left, left), p.get(right, right)))
    parts = [random_formula(rng, rng.randrange(depth)) for _ in range(rng.randint(1, 3))]
    join = all if kind == "and" else any
    separator = rng.choice([" ", "\n", " ; a remark\n  "])
    return f"({kind} {separator.join(t for t, _ in parts)})", lambda p: join(f(p) for _, f in parts)


def test_random_formulas_describe_the_points_they_say():
    rng, both = random.Random(0), [0, 0]
    for _ in range(300):
        formulas = [random_formula(rng, 3) for _ in range(rng.randint(1, 2))]
        prop = parse_vnnlib(HEAD + BOX + "".join(f"(assert {t})" for t, _ in formulas))
        for _ in range(30):
            # On a grid that holds the numbers of the formulas, so that equality happens.
            x, y = (np.array([rng.randint(-100, 100) / 100 for _ in range(2)]) for _ in range(2))
            point = {"X_0": x[0], "X_1": x[1], "Y_0": y[0], "Y_1": y[1]}
            truth = bool(0 <= x[0] <= 1) and all(f(point) for _, f in formulas)
            assert unsafe(prop, x, y) == truth, (formulas[0][0], point)
            both[truth] += 1
    assert min(both) > 500


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
        (BOX + "(assert (= Y_0 0))", 6, "'='"),
        (BOX + "(assert (or\n(<= Y_0 0)\n(not (<= Y_0 0))))", 8, "'not'"),
        (BOX + "(assert (or))", 6, "empty 'or'"),
        (BOX + "(assert)", 6, "one expression"),
        (BOX + "(assert (<= X_0 X_1))", 6, "X_0"),
        (BOX + "(assert (<= X_0 Y_1))", 6, "X_0"),
        (BOX + "(assert (<= (* Y_0 Y_1) 0))", 6, "product"),
        (BOX + "(assert (<= 0 1))", 6, "two numbers"),
        (BOX + "(minimize Y_0)", 6, "'minimize'"),
        (BOX + "(declare-const Y_0 Real)", 6, "twice"),
        (BOX + "(declare-const Z_0 Real)", 6, "declaration"),
        (BOX + "(declare-const Y_3 Real)", 1, "Y_2 is not"),
        ("(assert (<= X_0 0))(assert (>= X_0 0))(assert (<= X_1 0))", 2, "X_1 has no lower bound"),
        (BOX + "(assert " + "(and " * 100 + "(<= Y_0 0)" + ")" * 101, 6, "nested"),
        (BOX + "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 20, 1, "combinations"),
    ],
)
def test_faults_name_their_line(body, line, part):
    with pytest.raises(DataError) as caught:
        parse_vnnlib(HEAD + body, "file.vnnlib")
    message = str(caught.value)
    assert message.startswith(f"file.vnnlib, line {line}: ")
    assert part in message
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path):
    whole = gzip.compress((HEAD + BOX + "(assert (<= Y_0 0))").encode())
    (tmp_path / "cut.vnnlib.gz").write_bytes(whole[:-20])
    (tmp_path / "net.vnnlib").write_bytes(b"\x08\xff\xfe")
    (tmp_path / "good.vnnlib").write_bytes(whole)
    for name in ("none.vnnlib", "cut.vnnlib.gz", "net.vnnlib", ""):
        with pytest.raises(DataError, match=r"cannot be read|neither text") as caught:
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
