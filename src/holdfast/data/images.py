"""A folder of image files, one sub-folder a class."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.data.rows import RowSource
from holdfast.data.source import Source
from holdfast.errors import DataError

__all__ = ["load_images"]

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class _Folder:
    """The files of a split; only their names are held. ``mode`` is Pillow's, ``shape`` channels first."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    mode: str
    shape: tuple[int, ...]


def load_images(folder: Path, split: str) -> Source:
    """Open image files in one folder a class, each read when its turn comes; needs Pillow (``holdfast[images]``).

    Parameters
    ----------
    folder : Path
        Holds a folder a class, or the splits (``train``, ``val``, ``test``) with a folder a class in each. Classes
        are in the order of their names, files within a class too; names that begin with a dot are left out.
    split : str
        Which of the splits; a folder without splits is the same for every split.

    Returns
    -------
    Source
        Inputs in ``[0, 1]``: ``(1, H, W)`` where the first file is greyscale, otherwise ``(3, H, W)`` in RGB, to
        which the other files are converted.

    Raises
    ------
    DataError
        Pillow is missing, a folder is missing or empty, or a file is no image, broken, of another size than the
        first, or of more than 8 bits a channel.
    """
    root = _split_folder(folder, split)
    classes = tuple(_names(root, folders=True))
    found = [(f"{name}/{file}", label) for label, name in enumerate(classes) for file in _names(root / name)]
    if not found:
        raise DataError(f"{root}: no images; images:DIR takes a folder that holds one folder of images a class")
    files, labels = zip(*found, strict=True)
    first = _open(root / files[0], None)
    mode = "L" if first.ndim == 2 else "RGB"
    shape = (1, *first.shape) if first.ndim == 2 else (3, *first.shape[:2])
    name = folder.resolve().name + ("" if root == folder else f" {split}")
    return RowSource(name, shape, classes, len(files), partial(_read, _Folder(root, files, labels, mode, shape)))


def _names(folder: Path, *, folders: bool = False) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() == folders and not p.name.startswith("."))


def _split_folder(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; images:DIR takes a folder that holds one folder of images a class")
    # A class may be called "train" as well; a split holds folders, a class files.
    splits = [name for name in _names(folder, folders=True) if name in _SPLITS and _names(folder / name, folders=True)]
    if splits and split not in splits:
        raise DataError(f'{folder}: no split "{split}"; it has {", ".join(splits)}')
    return folder / split if splits else folder


def _open(path: Path, mode: str | None) -> NDArray[Any]:
    """Pixels as ``(H, W)`` or ``(H, W, 3)`` uint8, in the given mode or, without one, greyscale as found or RGB."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images:DIR needs Pillow; install it with: pip install 'holdfast[images]'") from error
    try:
        with Image.open(path) as image:
            deep = image.mode == "F" or image.mode.startswith("I")
            pixels = np.asarray(image.convert(mode or ("L" if image.mode == "L" else "RGB")))
    except Exception as error:  # the decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"{path}: not a readable image ({error}); mend or remove it") from error
    if deep:  # the conversion would clip what is brighter than 255
        raise DataError(f"{path}: more than 8 bits a channel; save it with 8, or the data as npz")
    return pixels


def _read(folder: _Folder, size: int, start: int, stop: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    channels, height, width = folder.shape
    for first in range(start, stop, size):
        chosen = slice(first, min(first + size, stop))
        x = np.empty((chosen.stop - first, height, width, channels), np.uint8)
        for row, file in zip(x, folder.files[chosen], strict=True):
            pixels = _open(folder.root / file, folder.mode)
            if pixels.shape[:2] != (height, width):
                found = f"{pixels.shape[0]} x {pixels.shape[1]}"
                raise DataError(
                    f"{folder.root / file}: {found} pixels where the first is {height} x {width}; resize it"
                )
            row[:] = pixels.reshape(row.shape)
        yield np.moveaxis(x, 3, 1), np.array(folder.labels[chosen])
