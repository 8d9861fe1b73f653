"""Estimators in files: ``.skops``, which runs no code when it is read, and never pickles."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import ModelError
from holdfast.limits import check_bytes
from holdfast.models.files import existing_file
from holdfast.words import reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PICKLES", "load_skops", "refuse_pickle"]

PICKLES = (".joblib", ".pkl", ".pickle", ".joblib.gz", ".pkl.gz", ".sav")
"""Endings of files in which estimators are usually pickled."""

# Nodes of a tree point at each other by number, and nothing of scikit-learn looks whether they can: we do.
_TREE = "sklearn.tree._tree.Tree"


def refuse_pickle(path: str) -> ModelError:
    """Why a pickle is not read, and what to do."""
    return ModelError(
        f"{path}: a pickle, which runs whatever code is in it when it is read; load it yourself where you trust it and "
        "give the estimator from Python, or save it anew by skops.io.dump(model, 'model.skops')"
    )


def load_skops(path: str | Path, *, trust: bool = False) -> Any:
    """Read an estimator that ``skops.io.dump`` has written; needs skops (``holdfast[skops]``).

    Parameters
    ----------
    path : path
        The file.
    trust : bool
        That types may be made which skops does not know to be harmless.

    Returns
    -------
    estimator

    Raises
    ------
    ModelError
        Where skops is missing, or the file is broken, too large, or holds other types or a tree that is none.
    """
    path = existing_file(path)
    try:
        from skops.io import get_untrusted_types, load
    except ImportError as error:
        raise ModelError(f"{path}: needs skops; install it with: pip install 'holdfast[skops]'") from error
    try:
        with zipfile.ZipFile(path) as archive:
            check_bytes(sum(member.file_size for member in archive.infolist()), str(path))
        unknown = [name for name in get_untrusted_types(file=path) if name != _TREE]
        if unknown and not trust:
            types = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
            raise ModelError(
                f"{path}: holds {types}, which skops does not know to be harmless; if you trust this file, say so with "
                "--trust (from Python: trust=True)"
            )
        estimator = load(path, trusted=[_TREE, *unknown])
    except ModelError:
        raise
    except Exception as error:  # whatever may be wrong with a file that somebody else made
        raise ModelError(f"{path}: not an estimator as skops saves it ({reason(error)})") from error
    for tree in _trees(estimator, set()):
        if fault := _fault(tree):
            raise ModelError(f"{path}: holds a tree {fault}: it is damaged, or made to deceive")
    return estimator


def _trees(value: Any, seen: set[int]) -> Iterator[Any]:
    """All trees in an estimator and in what it is made of."""
    if id(value) in seen or isinstance(value, str | bytes | int | float):
        return
    seen.add(id(value))
    if type(value).__name__ == "Tree" and hasattr(value, "children_left"):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _trees(part, seen)
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        for part in np.ravel(value) if isinstance(value, np.ndarray) else value:
            yield from _trees(part, seen)
    elif hasattr(value, "__dict__"):
        yield from _trees(vars(value), seen)


def _fault(tree: Any) -> str | None:
    """What no tree can be: below every node there are nodes that come after it, and it asks for a feature there is."""
    left, right, feature = tree.children_left, tree.children_right, tree.feature
    count, place = len(left), np.arange(len(left))
    inner = left != -1
    if not count or not np.array_equal(inner, right != -1):
        return "without leaves"
    for below in (left[inner], right[inner]):
        if ((below <= place[inner]) | (below >= count)).any():
            return "whose nodes lead nowhere"
    if ((feature[inner] < 0) | (feature[inner] >= tree.n_features)).any():
        return "that asks for a feature which there is not"
    return None if len(tree.value) == count else "with leaves that say nothing"
