"""From what a user names to a :class:`Source`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from holdfast.data.csv import load_csv
from holdfast.data.dataset import from_dataset, from_tensors
from holdfast.data.digits import load_digits
from holdfast.data.frames import from_frame, is_frame
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
    spec : str, Source, Dataset or pair
        ``"digits"``: scikit-learn's bundled handwritten digits.
        ``"mnist:DIR"``: IDX files, gzipped or not.
        ``"npz:FILE"``: arrays ``x`` and ``y``, or ``x_SPLIT`` and ``y_SPLIT``; add ``?x=NAME&y=NAME`` for other names
        and ``?layout=nhwc`` (``nchw``, ``nhw``) where the file does not tell.
        ``"csv:FILE?label=COLUMN"``: a table, gzipped or not; add ``&use=A,B`` or ``&drop=A,B`` for the columns that
        are features, or are none, ``&group=COLUMN`` for one by which results are told apart, ``&like=FILE`` for the
        words and classes of the training examples, ``&header=none`` where the first line is an example. What has a
        meaning of its own in there is written as in web addresses, ``%26`` for ``&``.
        ``"images:DIR"``: a folder of image files a class, under one folder a split or without splits.
        From Python also a map-style torch data set, a pair ``(x, y)`` of tensors or arrays, a pair of a pandas frame
        and the name of its label column (or a series of labels), or a source.
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
    if is_frame(spec):
        raise DataError("data: a table alone has no labels; give a pair (frame, 'COLUMN')")
    if isinstance(spec, tuple) and len(spec) == 2 and is_frame(spec[0]):
        return from_frame(*spec)
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
    if spec.endswith((".csv", ".csv.gz")) and is_file(path):
        return f"did you mean csv:{spec}?label=COLUMN? "
    return f"did you mean npz:{spec}? " if is_file(path) and path.suffix == ".npz" else ""


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):  # nobody has that name, or can have it
        return Path(text)


def _npz(rest: str, split: str) -> Source:
    path, options = _options("npz", rest, ("x", "y", "layout"), "x=NAME, y=NAME or layout=nhwc")
    return load_npz(path, split, **options)


def _csv(rest: str, split: str) -> Source:
    path, options = _options("csv", rest, _OF_CSV, f"{', '.join(_OF_CSV[:-1])} or header")
    if "label" not in options:
        raise DataError(f"csv:{rest}: which column is the label? write csv:{rest.partition('?')[0]}?label=COLUMN")
    if options.setdefault("header", "names") not in ("names", "none"):
        raise DataError(f"csv:{rest}: header={options['header']} is not known; say header=none where there is none")
    return load_csv(
        path,
        unquote(options["label"]),
        use=_columns(options.get("use")),
        drop=_columns(options.get("drop")),
        group=unquote(options["group"]) if "group" in options else None,
        header=options["header"] == "names",
        like=_path(unquote(options["like"])) if "like" in options else None,
    )


def _columns(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(map(unquote, text.split(",")))


def _options(scheme: str, rest: str, known: tuple[str, ...], cure: str) -> tuple[Path, dict[str, str]]:
    """The path and what is said of it behind a question mark."""
    path, _, query = rest.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    for key, value in options.items():
        if key not in known or not value:
            raise DataError(f'{scheme}:{rest}: option "{key}={value}" is not known; use {cure}')
    return _path(path), options


_OF_CSV = ("label", "use", "drop", "group", "like", "header")
_WITH_PATH: dict[str, Callable[[str, str], Source]] = {
    "mnist": lambda rest, split: load_idx(_path(rest), split),
    "npz": _npz,
    "csv": _csv,
    "images": lambda rest, split: load_images(_path(rest), split),
}
_KNOWN = "digits, mnist:DIR, npz:FILE, csv:FILE, images:DIR"
