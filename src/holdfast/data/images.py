"""A folder of image files, one sub-folder a class."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.data.rows import RowSource
from holdfast.errors import DataError
from holdfast.files import check_file, is_folder, writable_name
from holdfast.words import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image

    from holdfast.data.source import Source

__all__ = ["FORMATS", "load_images"]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""The formats that are read, in Pillow's names: those whose decoders start no other program, as that of EPS does."""

_SPLITS = ("train", "val", "test")
_PIXELS = 2**26  # of an image: 8192 x 8192
_ONE_PICTURE = ("MPO",)  # a camera's JPEG file with previews after the picture
_BITS_PER_SAMPLE = 258  # a tag of TIFF


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
        which the other files are converted. Pixels are as stored: alpha is left out, colour profiles and the
        orientation that a camera noted are not applied.

    Raises
    ------
    DataError
        Pillow is missing, a folder is missing or empty, or a file is no image of :data:`FORMATS`, broken, of another
        size than the first, of several frames, or of more than 8 bits a channel.
    """
    root = _split_folder(folder, split)
    folders = _names(root, folders=True)
    found = [(f"{name}/{file}", label) for label, name in enumerate(folders) for file in _names(root / name)]
    if not found:
        raise DataError(f"{root}: no images; images:DIR takes a folder that holds one folder of images a class")
    files, labels = zip(*found, strict=True)
    first = _open(root / files[0], None, None)
    mode = "L" if first.ndim == 2 else "RGB"
    shape = (1, *first.shape) if first.ndim == 2 else (3, *first.shape[:2])
    name = writable_name(folder.resolve().name) + ("" if root == folder else f" {split}")
    classes = tuple(map(writable_name, folders))
    return RowSource(name, shape, classes, len(files), partial(_read, _Folder(root, files, labels, mode, shape)))


def _names(folder: Path, *, folders: bool = False) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() == folders and not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}); check its rights") from error


def _split_folder(folder: Path, split: str) -> Path:
    if not is_folder(folder):
        raise DataError(f"{folder}: no such folder; images:DIR takes a folder that holds one folder of images a class")
    # A class may be called "train" as well; a split holds folders, a class files.
    splits = [name for name in _names(folder, folders=True) if name in _SPLITS and _names(folder / name, folders=True)]
    if splits and split not in splits:
        raise DataError(f'{folder}: no split "{split}"; it has {", ".join(splits)}')
    return folder / split if splits else folder


def _open(path: Path, mode: str | None, size: tuple[int, int] | None) -> NDArray[Any]:
    """Pixels as ``(H, W)`` or ``(H, W, 3)`` uint8, in the given mode or, without one, greyscale as found or RGB.

    ``size``, a height and a width, is what the file must have.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images:DIR needs Pillow; install it with: pip install 'holdfast[images]'") from error
    check_file(path, DataError)
    try:
        # Pillow warns of sizes and of damage; what of that matters here is an error or has a defined result.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            if fault := _unfit(image, size):
                raise DataError(f"{path}: {fault}")
            return np.asarray(image.convert(mode or ("L" if image.mode == "L" else "RGB")))
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise DataError(f"{path}: not a readable image (none of {known}); mend or remove it") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, which its decoders check on their own
        raise DataError(f"{path}: more than the {_PIXELS} pixels that an example may have; resize it") from error
    except Exception as error:  # the decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(
            f"{path}: not a readable image ({one_line(error) or type(error).__name__}); mend or remove it"
        ) from error


def _unfit(image: Image.Image, size: tuple[int, int] | None) -> str | None:
    """What keeps an image from being one example, told from its header: nothing is decoded, nor allocated, yet."""
    width, height = image.size
    if size is not None and (height, width) != size:
        return f"{height} x {width} pixels where the first is {size[0]} x {size[1]}; resize it"
    if width * height > _PIXELS:
        return f"{height} x {width} pixels, more than the {_PIXELS} that an example may have; resize it"
    if image.format not in _ONE_PICTURE and getattr(image, "is_animated", False):
        return "several frames; save the one that is meant"
    if _is_deep(image):  # the conversion would clip or round what 8 bits do not hold
        return "more than 8 bits a channel; save it with 8, or the data as npz"
    return None


def _is_deep(image: Image.Image) -> bool:
    """Whether a file holds more than 8 bits a channel, also where Pillow has no mode for them and would round them."""
    if image.mode == "F" or image.mode.startswith("I"):
        return True
    if image.format == "TIFF":
        bits: tuple[int, ...] = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        return max(bits) > 8
    layout = image.tile[0][3] if image.tile else ""  # how the pixels lie in the file
    if image.format == "PNG":
        return ";16" in str(layout)
    # After the mode comes the largest value, where it is not 255.
    return image.format == "PPM" and isinstance(layout, tuple) and int(layout[1]) > 255


def _read(folder: _Folder, size: int, start: int, stop: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    channels, height, width = folder.shape
    for first in range(start, stop, size):
        chosen = slice(first, min(first + size, stop))
        x = np.empty((chosen.stop - first, height, width, channels), np.uint8)
        for row, file in zip(x, folder.files[chosen], strict=True):
            row[:] = _open(folder.root / file, folder.mode, (height, width)).reshape(row.shape)
        yield np.moveaxis(x, 3, 1), np.array(folder.labels[chosen])
