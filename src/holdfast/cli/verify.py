"""``holdfast verify``: whether a network has a property, in the words of the verification competition."""

import stat
from pathlib import Path
from typing import Any

from rich.console import Console

from holdfast.certify.verify import verify
from holdfast.errors import RunError
from holdfast.files import is_folder, write_whole
from holdfast.models import load_model
from holdfast.words import plain

__all__ = ["decide"]

_ONNX = (".onnx", ".onnx.gz")


def decide(
    model: str,
    network: dict[str, Any],
    prop: Path,
    seconds: float,
    seed: int,
    file: Path | None,
    out: Console,
    err: Console,
) -> None:
    """Print the verdict, and the counterexample where there is one; ``file`` is for the same.

    The file is written in one go, and an older one is taken away first: what is there is the whole verdict of this run.
    ``network`` holds what else :func:`~holdfast.models.load_model` needs to load the model.

    Raises
    ------
    RunError
        When the file cannot be written.
    """
    if file is not None:
        # Before the work: an hour later is too late to hear of it.
        _clear(file)
    # An ONNX file is left to verify, which has onnxruntime replay what it finds.
    alone = model.lower().endswith(_ONNX) and network["weights"] is network["weights_key"] is None
    if alone:
        found = verify(model, prop, seconds=seconds, seed=seed, sizes=network["sizes"])
    else:
        found = verify(load_model(model, **network), prop, seconds=seconds, seed=seed)
    if file is not None:
        _write(file, found.written())
    out.print(found.written().rstrip(), soft_wrap=True)
    if found.note:
        err.print(f"holdfast: {plain(found.note)}", soft_wrap=True)


def _clear(file: Path) -> None:
    """See that a file can be written, and leave none at its place."""
    if is_folder(file):
        raise RunError(f"{file}: cannot be written: it is a folder; name a file in it")
    if not _special(file):
        _write(file, "")
        file.resolve().unlink()


def _write(file: Path, text: str) -> None:
    try:
        if _special(file):
            file.write_text(text)
        else:
            # Through links: what is at their end is written.
            write_whole(file.resolve(), lambda part: part.write_text(text), "name a file that can be written")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise RunError(f"{file}: cannot be written: {getattr(error, 'strerror', None) or error}") from error


def _special(file: Path) -> bool:
    """Whether it is a device or a pipe, which nothing can be moved to."""
    try:
        return not stat.S_ISREG(file.stat().st_mode)
    except (OSError, ValueError):  # nothing, or no name that a file can have
        return False
