"""Words that others chose (names of files, classes and nodes, texts of exceptions) as a terminal may be given them.

A terminal obeys control characters: they move its cursor, write over what stands there, change its title. Characters
that turn the direction of writing make a line read as another one. None of them reaches a reader from here.
"""

import math

__all__ = ["number_of", "one_line", "plain", "reason"]

_TRUTH = {"true": 1.0, "false": 0.0}


def plain(text: object) -> str:
    r"""Foreign words in one line of printable characters, each other character as Python writes it: ``\x1b``.

    Those are the control characters (line breaks among them), the marks that join, hide or turn what is around them,
    and what is no character at all. A byte of a file's name that is not UTF-8 becomes ``\xff``. What is plain already
    stays as it is, so nothing changes when it is done twice.
    """
    words = str(text)
    return words if words.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in words)


def _escaped(character: str) -> str:
    """One character in ASCII; where the file system's bytes were no text, Python holds them in surrogates."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: object) -> str:
    """Foreign words with line breaks and runs of spaces folded into single spaces."""
    return " ".join(str(text).split())


def reason(error: BaseException) -> str:
    """An exception of somebody else's in one short line: its kind and what it says."""
    return one_line(f"{type(error).__name__}: {error}")[:300]


def number_of(text: str) -> float | None:
    """The finite number that a text is, where it is one; ``True`` and ``False`` are 1 and 0."""
    if text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
