import pytest

from holdfast.errors import SettingError
from holdfast.threats.table import Comparison, parse_relation


def terms(text):
    relation = parse_relation(text)
    return dict(relation.comparison.terms), relation.comparison.sense, relation.comparison.bound


@pytest.mark.parametrize(
    ("text", "coefficients", "sense", "bound"),
    [
        ("dst_bytes <= 3*src_bytes + 10", {"dst_bytes": 1, "src_bytes": -3}, "<=", 10),
        ("a + b + a >= b - 2", {"a": 2}, ">=", -2),
        ("0.1*a + 0.2*a = 0.3", {"a": 0.3}, "=", 0.3),
        ("a == 1", {"a": 1}, "=", 1),
        ("-a < -1.5e2 + c/4", {"a": -1, "c": -0.25}, "<", -150),
        ("2*3*a*5 > .5", {"a": 30}, ">", 0.5),
        ("10 >= a", {"a": -1}, ">=", -10),
        ("`protocol=tcp` + `näme -> 3` <= 1", {"protocol=tcp": 1, "näme -> 3": 1}, "<=", 1),
        ("a.b_1<=étage", {"a.b_1": 1, "étage": -1}, "<=", 0),
        ("  a\t<= 1  ", {"a": 1}, "<=", 1),
    ],
)
def test_a_comparison_is_read(text, coefficients, sense, bound):
    assert terms(text) == (coefficients, sense, bound)
    assert parse_relation(text).guard is None


def test_an_implication_has_a_guard():
    relation = parse_relation("num_root > 0 -> logged_in >= 1", 12)
    assert relation.guard == Comparison((("num_root", 1.0),), ">", 0.0)
    assert relation.comparison == Comparison((("logged_in", 1.0),), ">=", 1.0)
    assert relation.columns == ("num_root", "logged_in")
    assert relation.line == 12
    assert relation == parse_relation("num_root > 0 -> logged_in >= 1")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "one comparison"),
        ("a", "one comparison"),
        ("a < b < c", "one comparison"),
        ("a <= b -> ", "one comparison"),
        ("-> a <= b", "one comparison"),
        ("a -> b -> c", "more than one arrow"),
        ("a <= ", "a term is"),
        ("a b <= 3", "joined by one"),
        ("a ++ b <= 3", "joined by one"),
        ("3 <= 4", "no column"),
        ("a - a <= 1", "no column"),
        ("a*b <= 3", "a term is"),
        ("2/a <= 3", "a term is"),
        ("a <= 3/0", "divides by 0"),
        ("a <= 1e400", "cannot hold"),
        ("1e-400*a <= 1", "cannot hold"),
        ("a <= 3; import os", "begin with '; import os'"),
        ("`` <= 3", "begin with"),
        ("`a <= 3", "begin with"),
        ("max(a, b) <= 3", "begin with"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text, why):
    with pytest.raises(SettingError, match=why) as caught:
        parse_relation(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


def test_whole_coefficients_mean_the_same():
    comparison = parse_relation("0.1*a + 0.25*b - 3*c <= 0.7").comparison.whole()
    assert comparison == Comparison((("a", 2.0), ("b", 5.0), ("c", -60.0)), "<=", 14.0)
    assert parse_relation("4*a + 6*b = 3").comparison.whole() == Comparison((("a", 2.0), ("b", 3.0)), "=", 1.5)
