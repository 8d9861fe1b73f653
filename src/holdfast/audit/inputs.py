"""Adversarial inputs from a run's store to a file that any tool reads."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from holdfast.audit.store import RunStore
from holdfast.files import write_whole

__all__ = ["write_inputs"]


def write_inputs(store: RunStore, path: Path, shape: tuple[int, ...]) -> None:
    """Write ``x``, ``y``, ``index`` and ``success`` of all examples to an ``.npz`` file, a row at a time.

    ``x`` holds the adversarial input where one was found, else the best that was tried (float32); ``success`` says
    which. The file reads back as data, ``npz:FILE``.

    Raises
    ------
    RunError
        When the file cannot be written.
    """
    ((count,),) = store.select("SELECT count(*) FROM examples JOIN inputs USING (idx)")
    columns = {
        "y": ("label", np.dtype(np.int64), ()),
        "index": ("idx", np.dtype(np.int64), ()),
        "success": ("verdict IN ('broken', 'misclassified')", np.dtype(np.bool_), ()),
        "x": ("x", np.dtype(np.float32), shape),
    }

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, (column, dtype, tail) in columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *tail)}
                    npy.write_array_header_1_0(member, header)
                    for value in _values(store, column):
                        member.write(value if isinstance(value, bytes) else dtype.type(value).tobytes())

    write_whole(path, write, "the inputs are kept: repeat the command")


def _values(store: RunStore, column: str) -> Iterator[object]:
    return (value for (value,) in store.select(f"SELECT {column} FROM examples JOIN inputs USING (idx) ORDER BY idx"))
