import math

import pytest

from holdfast.errors import SettingError
from holdfast.threats.table import Column, Group, Rules, Table, parse_relation

A, B = Column("a", move="both"), Column("b")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Column("a", kind="whole"), "column 'a': unknown kind 'whole': write one of real, integer"),
        (lambda: Column("a", move="sideways"), "unknown move 'sideways'"),
        (lambda: Column("a", lower=2, upper=1), "the lower bound 2 is above the upper bound 1"),
        (lambda: Column("a", lower=math.nan), "lower must be a number"),
        (lambda: Column("a", unit="3"), "unit must be a number"),
        (lambda: Column("a", unit=0), "its unit must be a positive number"),
        (lambda: Column("a", unit=math.inf), "its unit must be a positive number"),
        (lambda: Column("a", most=-1), "at least 0"),
        (lambda: Column("a", cost=-1), "cost must be a number of at least 0"),
        (lambda: Column("a", cost=True), "cost must be a number"),
        (lambda: Column("a", upper=10**400), "upper is more than double precision can hold"),
        (lambda: Column("a", kind="integer", lower=0.2, upper=0.8), "no whole number between 0.2 and 0.8"),
        (lambda: Group("g", ("a",)), "two or more columns"),
        (lambda: Group("g", ("a", "a")), "each named once"),
        (lambda: Group("g", ("a", "b"), distance=0), "its distance must be a positive number"),
        (lambda: Group("g", ("a", "b"), cost=-1), "its cost must be a number of at least 0"),
        (lambda: Group("g", ("a", "b"), transitions=(("a", ("c",)),)), "'c', which is none of its columns"),
        (lambda: Rules((A, A)), "two columns 'a'"),
        (lambda: Rules((B,)), "no column may move"),
        (lambda: Rules((A, B), (Group("g", ("b", "c")),)), "group 'g': there is no column 'c'"),
        (lambda: Rules((A, B), (Group("g", ("a", "b")),)), "column 'a' is of a group: set nothing for it"),
        (lambda: Rules((B, Column("c"), Column("d")), (Group("g", ("b", "c")), Group("h", ("c", "d")))), "'g' and 'h'"),
        (lambda: Rules((A,), (), (parse_relation("a <= c"),)), "relation 'a <= c': there is no column 'c'"),
        (lambda: Table(Rules((A,)), "l3", 1), "unknown norm 'l3'"),
        (lambda: Table(Rules((A,)), "l2", -1), "at least 0"),
        (lambda: Table(Rules((A,)), "l2", math.inf), "eps must be finite"),
        (lambda: Table(Rules((A,)), "l0", 1.5), "whole numbers"),
        (lambda: Table(Rules((A,)), "l0", 1), "nothing limits how far column 'a' may move"),
        (
            lambda: Table(Rules((Column("a", move="up", cost=0, lower=0),)), "cost", 1),
            "nothing limits how far column 'a'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make, words):
    with pytest.raises(SettingError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_bounded_on_the_side_it_moves_to_may_have_any_budget():
    assert Table(Rules((Column("a", move="up", upper=3),)), "l0", 1)
    assert Table(Rules((Column("a", move="both", most=3),)), "l0", 1)


def test_lines_are_no_part_of_a_rule():
    assert Rules((Column("a", move="up", line=3),), source="x.toml") == Rules((Column("a", move="up"),))


def test_rules_as_plain_values_say_all():
    group = Group("g", ("c", "d"), transitions=(("c", ("d",)),))
    rules = Rules((A, B, Column("c"), Column("d")), (group,), (parse_relation("a <= 3*b"),))
    said = rules.to_dict()
    assert said["relations"] == ["a <= 3*b"]
    assert said["groups"][0]["transitions"] == {"c": ["d"]}
    assert said["columns"][0]["move"] == "both"
    assert said["columns"][0]["upper"] is None
    assert "line" not in said["columns"][0]
