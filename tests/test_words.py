"""Foreign words, printed: nothing that a terminal obeys, and never more than a line."""

import io
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from helpers.words import HOSTILE, obeyed
from holdfast.cli.terminal import Terminal
from holdfast.errors import DataError, HoldfastError
from holdfast.words import plain, reason


@pytest.mark.parametrize("words", HOSTILE)
def test_nothing_is_left_that_is_obeyed(words):
    assert not obeyed(plain(words))
    assert "\n" not in plain(words)
    assert plain(plain(words)) == plain(words)


def test_known_escapes():
    assert plain("a\x1b[31m\r\n\x9b\u202e\u2028\x7f") == "a\\x1b[31m\\r\\n\\x9b\\u202e\\u2028\\x7f"
    # A byte that is no UTF-8, as the operating system's names may hold.
    assert plain(b"net\xff.pt".decode("utf-8", "surrogateescape")) == "net\\xff.pt"
    assert plain("naïve 数字 [red] C:\\x") == "naïve 数字 [red] C:\\x"


@given(st.text())
def test_any_text(words):
    assert not {unicodedata.category(c) for c in plain(words)} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    kept = "".join(c for c in words if unicodedata.category(c)[0] in "LMNPS")
    assert not kept or plain(kept) == kept


@pytest.mark.parametrize("words", HOSTILE)
def test_errors_are_one_plain_line(words):
    error = DataError(f"{words}: is not there")
    assert not obeyed(str(error))
    assert "\n" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_error_keeps_both_ends_of_what_is_too_long():
    message = str(HoldfastError(f"{'a' * 10**6}: no such file"))
    assert len(message) < 2100
    assert message.endswith("a: no such file")


@pytest.mark.parametrize("words", HOSTILE)
@pytest.mark.parametrize("shape", [str, Text, lambda words: _table(words)], ids=["text", "Text", "table"])
def test_the_terminal_obeys_nothing_that_is_shown(words, shape, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = Terminal()
    console.file = io.StringIO()
    console.print(shape(words))
    shown = console.file.getvalue()
    assert not obeyed(shown.replace("\n", ""))
    if "[red]" in words:
        assert "[red]" in shown


def _table(words: str) -> Table:
    table = Table(title=words)
    table.add_row(words)
    return table


def test_what_cannot_be_encoded_is_escaped(monkeypatch):
    monkeypatch.setattr(Console, "encoding", "ascii")
    console = Terminal()
    console.file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console.print("0.5 ≤ x")
    console.file.flush()
    assert console.file.buffer.getvalue() == b"0.5 \\u2264 x\n"


def test_what_an_exception_says_in_a_line():
    assert reason(ValueError("two\n  lines,\tand a tab")) == "ValueError: two lines, and a tab"
    assert reason(KeyError()) == "KeyError:"
    assert len(reason(RuntimeError("word " * 1000))) <= 300
