"""IDX files, the form in which MNIST and its successors are published."""

import gzip
import io
import struct
from functools import partial
from pathlib import Path

import numpy as np

from holdfast.data.rows import RowSource
from holdfast.data.source import Source
from holdfast.data.stored import INFLATES, StoredArray, check_row, naming, read_pairs
from holdfast.errors import DataError
from holdfast.files import is_file, writable_name

__all__ = ["is_idx_folder", "load_idx"]

_PREFIX = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTES = 0x800  # the magic number is this plus the number of dimensions


def load_idx(folder: Path, split: str) -> Source:
    """Open a folder of IDX files named as MNIST's are, gzipped (``.gz``) or not.

    Parameters
    ----------
    folder : Path
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, or those of them that the split needs.
    split : {"train", "test"}
        Which pair of files.

    Returns
    -------
    Source
        Inputs ``(1, H, W)`` in ``[0, 1]``; for MNIST ``(1, 28, 28)``.

    Raises
    ------
    DataError
        A file is missing, is not of the right kind, is cut or too long, or images and labels differ in number.
    """
    if split not in _PREFIX:
        raise DataError(f'mnist: no split "{split}"; use {" or ".join(_PREFIX)}')
    images = _stored(_find(folder, f"{_PREFIX[split]}-images-idx3-ubyte"), dimensions=3)
    labels = _stored(_find(folder, f"{_PREFIX[split]}-labels-idx1-ubyte"), dimensions=1)
    count, height, width = images.shape
    if labels.shape[0] != count:
        raise DataError(f"{images.where} has {count} images, {labels.where} {labels.shape[0]} labels; take a pair")
    shape = (1, height, width)
    x = StoredArray(images.where, images.open, images.offset, images.dtype, (count, *shape))
    return RowSource(
        f"{writable_name(folder.resolve().name)} {split}", shape, None, count, partial(read_pairs, x, labels)
    )


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder looks as if :func:`load_idx` could read it."""
    return any(folder.glob("*-images-idx3-ubyte*"))


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):  # the plain file first: it need not be read from the start
        if is_file(path):
            return path
    raise DataError(f"{folder}: no file {name} or {name}.gz; mnist:DIR takes the folder that holds the IDX files")


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _stored(path: Path, dimensions: int) -> StoredArray:
    offset = 4 + 4 * dimensions
    with naming(str(path)), _open(path) as stream:
        header = stream.read(offset)
    if len(header) < offset:
        raise DataError(f"{path}: truncated in its header; get the file again")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
    if magic != _UNSIGNED_BYTES + dimensions:
        raise DataError(f"{path}: magic number {magic} is not {_UNSIGNED_BYTES + dimensions}; is it the file it says?")
    array = StoredArray(str(path), partial(_open, path), offset, np.dtype(np.uint8), tuple(shape))
    # A compressed file shows its length only when it is read through; until then a header that cannot be true, for
    # whose rows there would be no memory, shows in that deflate shrinks nothing more than that.
    size = path.stat().st_size
    fits = array.total_bytes <= INFLATES * size if path.suffix == ".gz" else array.total_bytes == size
    if not fits:
        raise DataError(f"{path}: {size} bytes, but its header says {array.total_bytes}; get the file again")
    check_row(array)
    return array
