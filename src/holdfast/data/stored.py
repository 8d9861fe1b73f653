"""Arrays that lie in a file as a header and rows of bytes, read a batch of rows at a time."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import DataError
from holdfast.limits import check_bytes

__all__ = ["INFLATES", "StoredArray", "check_row", "naming", "read_pairs"]

INFLATES = 1032
"""How many bytes deflate makes of one at most."""

# What gzip, zipfile and the operating system raise for a broken file (RuntimeError: an encrypted or unknown member;
# ValueError and struct.error: directories and names that make no sense).
_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, ValueError, struct.error)
_PIECE = 2**20  # bytes; zipfile reads and seeks by holding as much at once as it is asked for


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies and how to read it.

    Parameters
    ----------
    where : str
        The file, and the member if it has several, for errors.
    open : callable
        Opens the bytes, uncompressed, at their beginning.
    offset : int
        Bytes before the first row.
    dtype : numpy.dtype
        Of one number.
    shape : tuple of int
        The first number counts the rows, which lie one after the other in C order.
    """

    where: str
    open: Callable[[], AbstractContextManager[IO[bytes] | io.BufferedIOBase]]
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        """Bytes of the header and all rows."""
        return self.offset + self.shape[0] * self.row_bytes


def check_row(array: StoredArray) -> None:
    """Refuse an array of which one row, taken for float32 at least, is more than a file may ask for.

    Raises
    ------
    DataError
        Such an array.
    """
    numbers = math.prod(max(size, 1) for size in array.shape[1:])
    check_bytes(numbers * max(array.dtype.itemsize, 4), array.where, DataError)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Turn what a broken file raises into a :class:`DataError` that names it."""
    try:
        yield
    except _BROKEN as error:
        reason = getattr(error, "strerror", None) or error  # without the path, which is named already
        raise DataError(f"{where}: cannot be read ({reason}); check the path or get the file again") from error


def read_pairs(
    x: StoredArray, y: StoredArray, size: int, start: int, stop: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Read the rows ``[start, stop)`` of inputs and labels side by side, ``size`` at a time.

    Raises
    ------
    DataError
        A file that ends early, goes on after its last row, or is broken.
    """
    yield from zip(_read(x, size, start, stop), _read(y, size, start, stop), strict=True)


def _read(array: StoredArray, size: int, start: int, stop: int) -> Iterator[NDArray[Any]]:
    check_bytes(min(size, stop - start) * array.row_bytes, f"{array.where}, {size} rows at once", DataError)
    with naming(array.where), array.open() as stream:
        stream.read(array.offset)  # read, not skipped: zipfile checks no checksum after a seek
        skip = start * array.row_bytes
        for done in range(0, skip, _PIECE):
            stream.seek(min(_PIECE, skip - done), io.SEEK_CUR)
        for first in range(start, stop, size):
            count = min(size, stop - first)
            data = bytearray(count * array.row_bytes)
            if (read := _fill(data, stream)) < len(data):
                row = first + read // array.row_bytes
                raise DataError(f"{array.where}: truncated in row {row} of {array.shape[0]}; get the file again")
            yield np.frombuffer(data, array.dtype).reshape(count, *array.shape[1:])
        # Asking for more at the end also has gzip verify its checksum (zipfile does with the last byte).
        if stop == array.shape[0] and stream.read(1):
            raise DataError(f"{array.where}: goes on after its {stop} rows; get the file again")


def _fill(data: bytearray, stream: IO[bytes] | io.BufferedIOBase) -> int:
    """Read until ``data`` is full or the stream ends, in pieces: of a large one zipfile copies again and again."""
    done, view = 0, memoryview(data)
    while count := stream.readinto(view[done : done + _PIECE]):  # type: ignore[union-attr]
        done += count
    return done
