"""numpy's ``.npz`` files, read as a stream: neither inputs nor labels are ever held whole."""

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from holdfast.data.columns import feature_names
from holdfast.data.rows import RowSource
from holdfast.data.source import Source
from holdfast.data.stored import INFLATES, StoredArray, check_row, naming, read_pairs
from holdfast.errors import DataError
from holdfast.files import check_file, writable_name

__all__ = ["load_npz"]

_LAYOUTS = {"nhwc": 4, "nchw": 4, "nhw": 3}  # and the dimensions of each
_CHANNELS = (1, 3, 4)
_MAGIC = b"\x93NUMPY"
_LENGTH = {1: 2, 2: 4, 3: 4}  # bytes in which each version of the format writes the length of its header
_HEADER = 10_000  # bytes, as much as numpy reads
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>=|]?[A-Za-z]\d{0,9})['"]""")
_FORTRAN_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(((?:\d{1,18}L?,\s?)*(?:\d{1,18}L?)?)\)""")
_DIMENSIONS = 32
_NAMES = "names"  # of the array that names features
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def load_npz(
    path: Path, split: str, *, x: str | None = None, y: str | None = None, layout: str | None = None
) -> Source:
    """Open two arrays, inputs and labels, of an ``.npz`` file, compressed or not.

    Parameters
    ----------
    path : Path
        The file. Nothing in it is ever unpickled.
    split : str
        Read ``x_SPLIT`` and ``y_SPLIT`` where the file has no ``x``; a file with ``x`` is the same for every split.
    x, y : str, optional
        The names of the arrays, where they differ from that.
    layout : {"nhwc", "nchw", "nhw"}, optional
        Of the inputs. Found out for four dimensions when just one of the second and the last is 1, 3 or 4; three
        dimensions of uint8 are taken for grey images (``"nhw"``); anything else is kept as it is.

    Returns
    -------
    Source
        Images as ``(C, H, W)``, feature vectors as ``(D,)``; their ``columns`` are what an array ``names`` of ``D``
        texts says. uint8 is divided by 255; all other numbers stay in
        their own units and are rounded to float32.

    Raises
    ------
    DataError
        A broken file, an array that is not there or not of plain numbers in C order, an unclear layout, or inputs
        and labels that differ in number.
    """
    check_file(path, DataError)
    with naming(str(path)), zipfile.ZipFile(path) as archive:
        x_name, y_name = _choose(path, archive, split, x, y)
        inputs, labels = _stored(path, archive, x_name), _stored(path, archive, y_name)
        columns = _names(path, archive, inputs)
    if inputs.shape[:1] != labels.shape[:1]:
        raise DataError(f"{path}: {x_name} has shape {inputs.shape}, {y_name} {labels.shape}; take as many of each")
    layout = _layout(inputs, path) if layout is None else layout
    if layout is not None and _LAYOUTS.get(layout) != len(inputs.shape):
        raise DataError(f"{inputs.where}: layout {layout} for shape {inputs.shape}; use one of {', '.join(_LAYOUTS)}")
    # What the layout does to a row it does to no rows, which gives the shape.
    shape = _channels_first(np.empty((0, *inputs.shape[1:])), layout).shape[1:]
    stem = writable_name(path.stem)
    name = stem if x_name == "x" else f"{stem} {x or split}"
    return RowSource(name, shape, None, inputs.shape[0], partial(_read, inputs, labels, layout), columns=columns)


def _names(path: Path, archive: zipfile.ZipFile, inputs: StoredArray) -> tuple[str, ...] | None:
    """The names of the features of a table, where the file holds an array of as many texts."""
    if len(inputs.shape) != 2 or f"{_NAMES}.npy" not in archive.namelist():
        return None
    names = _stored(path, archive, _NAMES)
    if names.dtype.kind != "U" or names.shape != inputs.shape[1:]:
        return None
    ((texts, _),) = read_pairs(names, names, names.shape[0], 0, names.shape[0])
    try:
        return feature_names(map(str, texts.tolist()))
    except DataError as error:
        raise DataError(f"{names.where}: {error}") from None


def _choose(path: Path, archive: zipfile.ZipFile, split: str, x: str | None, y: str | None) -> tuple[str, str]:
    held = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    ending = "" if "x" in held or (x is not None and "y" in held) else f"_{split}"
    chosen = x or f"x{ending}", y or f"y{ending}"
    for name in chosen:
        if name not in held:
            known = " ".join(f"{', '.join(held[:8])}{', ...' if len(held) > 8 else ''}".split())
            raise DataError(f"{path}: no array {name}, only {known}; name two with npz:FILE?x=NAME&y=NAME")
    return chosen


@contextmanager
def _open(path: Path, name: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        yield stream


def _stored(path: Path, archive: zipfile.ZipFile, name: str) -> StoredArray:
    where, packed = f"{path}, array {name}", path.stat().st_size
    with naming(where), archive.open(f"{name}.npy") as stream:
        shape, fortran_order, dtype = _header(stream, where)
        array = StoredArray(where, partial(_open, path, name), stream.tell(), dtype, shape)
    if not shape:
        raise DataError(f"{where}: a single number; give one row an example")
    if fortran_order and len(shape) > 1:
        raise DataError(f"{where}: in Fortran order, which has no rows to stream; save it with numpy.ascontiguousarray")
    member = archive.getinfo(f"{name}.npy")
    if member.file_size != array.total_bytes:
        raise DataError(
            f"{where}: {member.file_size} bytes, but its header says {array.total_bytes}; get the file again"
        )
    if member.compress_type not in _METHODS or member.file_size > INFLATES * min(member.compress_size, packed):
        raise DataError(f"{where}: {member.file_size} bytes cannot lie in {packed}; save it again with numpy.savez")
    check_row(array)
    return array


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """What the header of an npy file says: shape, whether in Fortran's order, and dtype."""
    magic = stream.read(len(_MAGIC) + 2)
    width = _LENGTH.get(magic[-2], 0) if magic.startswith(_MAGIC) else 0
    length = int.from_bytes(stream.read(width), "little")
    # A Python literal, which is matched and not evaluated: one that is nested deeply brings its parser down.
    text = stream.read(min(length, _HEADER)).decode("latin-1")
    descr, fortran_order, sizes = _DESCR.search(text), _FORTRAN_ORDER.search(text), _SHAPE.search(text)
    if descr is None or fortran_order is None or sizes is None:
        raise DataError(f"{where}: not a readable npy header of plain numbers; save it again with numpy.savez")
    shape = tuple(int(number) for number in re.findall(r"\d+", sizes[1]))
    if len(shape) > _DIMENSIONS:
        raise DataError(f"{where}: has {len(shape)} dimensions; give (N, ...) with at most {_DIMENSIONS}")
    return shape, fortran_order[1] == "True", _dtype(descr[1], where)


def _dtype(descr: str, where: str) -> np.dtype[Any]:
    if descr.endswith("O"):
        raise DataError(f"{where}: holds Python objects, which are never unpickled; save it as plain numbers")
    try:
        with warnings.catch_warnings(action="ignore"):  # of spellings that are out of use
            return np.dtype(descr)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: dtype {descr} is not known; give real numbers, such as uint8 or float32") from error


def _layout(inputs: StoredArray, path: Path) -> str | None:
    if len(inputs.shape) == 3 and inputs.dtype == np.uint8:
        return "nhw"
    if len(inputs.shape) != 4:
        return None
    first, last = inputs.shape[1] in _CHANNELS, inputs.shape[3] in _CHANNELS
    if first == last:
        raise DataError(
            f"{inputs.where}: shape {inputs.shape} does not tell where the channels are; "
            f"say npz:{path}?layout=nhwc or ?layout=nchw"
        )
    return "nchw" if first else "nhwc"


def _channels_first(x: NDArray[Any], layout: str | None) -> NDArray[Any]:
    if layout == "nhwc":
        return np.moveaxis(x, 3, 1)
    return x[:, None] if layout == "nhw" else x


def _read(
    x: StoredArray, y: StoredArray, layout: str | None, size: int, start: int, stop: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for inputs, labels in read_pairs(x, y, size, start, stop):
        yield _channels_first(inputs, layout), labels
