"""Text in parentheses, as SMT-LIB has it: a lexer and a parser that take one pass and refuse what is out of bounds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Expression", "FaultError", "Group", "commands", "head_of", "shown"]

# A word may have indices or a shape behind it, X[0,1] or float32 [1,2]. The last alternative is any character that fits
# nowhere: it becomes a word that no reader knows.
_TOKEN = re.compile(r'[()]|;[^\n]*+|"[^"]*+"|\|[^|]*+\||[^\s()\[\];"|]++(?:\s*+\[[^\[\]();]*+\])?|\S')

# More words than the largest files of the competition have three times over, and deeper than anybody writes.
_MOST_WORDS = 1 << 23
_DEEPEST = 200
_LONGEST_SHOWN = 40


class FaultError(Exception):
    """What is wrong, and where in the text."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class Group(NamedTuple):
    """What stands in a pair of parentheses, and where they open."""

    parts: list[Expression]
    offset: int


Expression = Group | str


def commands(text: str) -> Iterator[Group]:
    """The groups of the top level, one after the other: no more than one of them is held.

    Raises
    ------
    FaultError
        Where parentheses do not match, words stand outside them, or there are too many of either.
    """
    stack: list[Group] = []
    words: dict[str, str] = {}
    for count, token in enumerate(_TOKEN.finditer(text)):
        word, offset = token[0], token.start()
        if count == _MOST_WORDS:
            raise FaultError(f"more than {_MOST_WORDS} words and parentheses; split the property", offset)
        if word == "(":
            stack.append(Group([], offset))
            if len(stack) > _DEEPEST:
                raise FaultError(f"parentheses nested more than {_DEEPEST} deep; flatten the formula", offset)
        elif word == ")":
            if not stack:
                raise FaultError("a ')' that closes nothing", offset)
            done = stack.pop()
            if stack:
                stack[-1].parts.append(done)
            else:
                yield done
        elif word[0] != ";":
            if not stack:
                raise FaultError(f"'{shown(word)}' stands outside parentheses", offset)
            word = "".join(word.split()) if word[-1] == "]" else word
            # The same word is the same object, however often it stands there.
            stack[-1].parts.append(words.setdefault(word, word))
    if stack:
        raise FaultError("a '(' that is never closed", stack[0].offset)


def head_of(expression: Expression) -> str:
    """The first word of a group; empty if it has none, or is a word itself."""
    first = expression.parts[0] if isinstance(expression, Group) and expression.parts else ""
    return first if isinstance(first, str) else ""


def shown(word: str) -> str:
    """A word as a message can hold it: printable, and not long."""
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in word[:_LONGEST_SHOWN])
    return clean if len(word) <= _LONGEST_SHOWN else f"{clean}..."
