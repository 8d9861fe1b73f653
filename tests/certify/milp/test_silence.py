"""Silence, tried with what C prints."""

import ctypes
import os
import threading

import pytest

from holdfast.certify.milp.silence import silence

pytestmark = pytest.mark.skipif(os.name != "posix", reason="prints by way of libc")


def test_only_what_is_printed_inside_is_dropped(capfd):
    c = ctypes.CDLL(None)
    c.puts(b"before")
    with silence():
        c.puts(b"inside")
        os.write(1, b"below\n")
        with silence():
            c.puts(b"deeper")
        c.puts(b"still inside")
    c.puts(b"after")
    with pytest.raises(ValueError, match="raised"), silence():
        raise ValueError("raised")
    c.puts(b"at last")
    c.fflush(None)
    assert capfd.readouterr().out.splitlines() == ["before", "after", "at last"]


def test_threads_leave_the_output_open(capfd):
    first, second = threading.Event(), threading.Event()

    def work():
        with silence():
            first.set()
            second.wait(10)

    thread = threading.Thread(target=work)
    with silence():
        thread.start()
        first.wait(10)
    os.write(1, b"the other is still inside\n")
    second.set()
    thread.join()
    os.write(1, b"open\n")
    assert capfd.readouterr().out == "open\n"


def test_where_there_is_no_output():
    kept = os.dup(1)
    os.close(1)
    try:
        with silence():
            pass
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(1)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
