"""From what a user names to a :class:`Source`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from holdfast.data.dataset import from_dataset, from_tensors
from holdfast.data.digits import load_digits
from holdfast.data.idx import is_idx_folder, load_idx
from holdfast.data.images import load_images
from holdfast.data.npz import load_npz
from holdfast.data.slices import parse_examples, take
from holdfast.data.source import Source
from holdfast.errors import DataError
from holdfast.files import is_file, is_folder

__all__ = ["load_data"]

Array = Tensor | NDArray[Any]


def load_data(
    spec: str | Source | Dataset[Any] | tuple[Array, Array],
    *,
    split: str = "test",
    examples: str | slice | range | None = None,
) -> Source:
    """Open a data set for reading batch by batch.

    Parameters
    ----------
    spec : str, Source, Dataset or pair of arrays
        ``"digits"``: scikit-learn's bundled handwritten digits.
        ``"mnist:DIR"``: IDX files, gzipped or not.
        ``"npz:FILE"``: arrays ``x`` and ``y``, or ``x_SPLIT`` and ``y_SPLIT``; add ``?x=NAME&y=NAME`` for other names
        and ``?layout=nhwc`` (``nchw``, ``nhw``) where the file does not tell.
        ``"images:DIR"``: a folder of image files a class, under one folder a split or without splits.
        From Python also a map-style torch data set, a pair ``(x, y)`` of tensors or arrays, or a source.
    split : str
        Which split of a string that has several. What is given from Python is a split already.
    examples : str, slice or range, optional
        ``"START:STOP"`` reads the examples at those positions of the split (either side may be empty; beyond the end
        is left out). They keep their positions in ``Batch.index``, so their random draws stay the same.

    Returns
    -------
    Source
        Holds a batch at a time, never the whole, unless the user gave the whole in memory.

    Raises
    ------
    DataError
        No such data set, one that cannot be read, or no example selected.
    SettingError
        ``examples`` of another form.
    """
    source = _open(spec, split)
    return source if examples is None else take(source, *parse_examples(examples))


def _open(spec: str | Source | Dataset[Any] | tuple[Array, Array], split: str) -> Source:
    if isinstance(spec, str):
        return _from_string(spec, split)
    if isinstance(spec, Tensor):
        raise DataError("data: a tensor alone has no labels; give a pair (x, y)")
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, Dataset):
        return from_dataset(spec)
    if isinstance(spec, tuple) and len(spec) == 2:
        return from_tensors(*spec)
    raise DataError(f"data given as {type(spec).__name__}; give a string ({_KNOWN}), a torch Dataset or a pair (x, y)")


def _from_string(spec: str, split: str) -> Source:
    scheme, _, rest = spec.partition(":")
    if spec == "digits":
        return load_digits(split)
    if scheme in _WITH_PATH and rest:
        return _WITH_PATH[scheme](rest, split)
    raise DataError(f'unknown data "{spec}"; {_suggestion(spec)}known are {_KNOWN}')


def _suggestion(spec: str) -> str:
    path = _path(spec)
    if spec and is_folder(path):  # the empty path would be the current folder
        return f"did you mean {'mnist' if is_idx_folder(path) else 'images'}:{spec}? "
    return f"did you mean npz:{spec}? " if is_file(path) and path.suffix == ".npz" else ""


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):  # nobody has that name, or can have it
        return Path(text)


def _npz(rest: str, split: str) -> Source:
    path, _, query = rest.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    for key, value in options.items():
        if key not in ("x", "y", "layout") or not value:
            raise DataError(f'npz:{rest}: option "{key}={value}" is not known; use x=NAME, y=NAME or layout=nhwc')
    return load_npz(_path(path), split, **options)


_WITH_PATH: dict[str, Callable[[str, str], Source]] = {
    "mnist": lambda rest, split: load_idx(_path(rest), split),
    "npz": _npz,
    "images": lambda rest, split: load_images(_path(rest), split),
}
_KNOWN = "digits, mnist:DIR, npz:FILE, images:DIR"
