"""Silence around libraries that print past Python."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["silence"]

_STDOUT = 1
_lock = threading.Lock()
_within = 0  # how many are at it, in all threads
_kept = -1  # where the process's output goes meanwhile


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what is written to the process's standard output meanwhile, below Python's own buffers.

    HiGHS has a line that no option turns off: it is printed where the solver mends a solution. Threads may be inside
    at once; the last one out opens the output again.
    """
    global _within, _kept
    with _lock:
        _within += 1
        if _within == 1:
            _kept = _closed()
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within and _kept >= 0:
                _flush()
                os.dup2(_kept, _STDOUT)
                os.close(_kept)


def _closed() -> int:
    """Send the output nowhere, and return what keeps its place; -1 where there is none."""
    _flush()
    try:
        kept = os.dup(_STDOUT)
    except OSError:
        return -1
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    os.close(nowhere)
    return kept


def _flush() -> None:
    """Write out what C has in its buffers, which is not what Python has in its own."""
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
