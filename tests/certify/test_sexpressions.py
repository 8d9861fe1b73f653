"""Text in parentheses: every word in its place, and a fault where there is one."""

import pytest

from holdfast.certify.sexpressions import FaultError, Group, commands, head_of, shown


def plain(expression):
    return [plain(part) for part in expression.parts] if isinstance(expression, Group) else expression


def test_words_groups_and_what_is_between_them():
    text = '(a (b "in ( quotes ;" c)) ; (d\n(e |two\nlines)| X [ 0,\n1 ] float32[] ())'
    assert [plain(group) for group in commands(text)] == [
        ["a", ["b", '"in ( quotes ;"', "c"]],
        ["e", "|two\nlines)|", "X[0,1]", "float32[]", []],
    ]


def test_groups_come_one_by_one_and_know_where_they_open():
    found = commands("(a)\n  (b (c)) (")
    assert next(found).offset == 0
    second = next(found)
    assert (second.offset, second.parts[1].offset, head_of(second), head_of(second.parts[1])) == (6, 9, "b", "c")
    with pytest.raises(FaultError, match="never closed") as caught:
        next(found)
    assert caught.value.offset == 14


@pytest.mark.parametrize("expression", ["a", Group([], 0), Group([Group(["a"], 1)], 0)])
def test_no_head(expression):
    assert head_of(expression) == ""


def test_words_are_shown_on_one_short_printable_line():
    assert shown("X_0") == "X_0"
    assert shown("a\x1b[31m\n\u202e") == "a\ufffd[31m\ufffd\ufffd"
    assert shown("a" * 100) == "a" * 40 + "..."
