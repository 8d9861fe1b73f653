"""scikit-learn's bundled handwritten digits: real data that needs no download."""

from functools import partial

from holdfast.data.rows import RowSource, read_arrays
from holdfast.data.source import Source
from holdfast.errors import DataError

__all__ = ["load_digits"]

# Neighbouring images share a writer, so the splits are contiguous: hardly a writer is in both.
_SPLITS = {"train": slice(0, 1297), "test": slice(1297, 1797)}


def load_digits(split: str) -> Source:
    """Open the digits test set of E. Alpaydin and C. Kaynak (UCI repository, 1998), 1797 images, split in two.

    Parameters
    ----------
    split : {"train", "test"}
        The first 1297 images or the last 500.

    Returns
    -------
    Source
        Inputs ``(1, 8, 8)`` in ``[0, 1]``, classes ``"0"`` to ``"9"``.

    Raises
    ------
    DataError
        Another split.
    """
    from sklearn.datasets import load_digits as bundled

    if split not in _SPLITS:
        raise DataError(f'digits: no split "{split}"; use {" or ".join(_SPLITS)}')
    digits = bundled()
    x = digits.images[_SPLITS[split], None] / 16  # ink is counted from 0 to 16
    y = digits.target[_SPLITS[split]]
    classes = tuple(str(digit) for digit in range(10))
    return RowSource(f"digits {split}", x.shape[1:], classes, len(x), partial(read_arrays, x, y))
