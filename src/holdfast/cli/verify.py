"""``holdfast verify``: whether a network has a property, in the words of the verification competition."""

from pathlib import Path

from rich.console import Console

from holdfast.certify.verify import verify
from holdfast.errors import RunError
from holdfast.models import load_model

__all__ = ["decide"]


def decide(
    model: str,
    weights: Path | None,
    prop: Path,
    seconds: float,
    seed: int,
    file: Path | None,
    out: Console,
    err: Console,
) -> None:
    """Print the verdict, and the counterexample where there is one; ``file`` is for the same.

    Raises
    ------
    RunError
        When the file cannot be written.
    """
    if file is not None:
        # Before the work: an hour later is too late to hear of it.
        _write(file, "")
    # An ONNX file is left to verify, which has onnxruntime replay what it finds.
    found = verify(model if weights is None else load_model(model, weights), prop, seconds=seconds, seed=seed)
    if file is not None:
        _write(file, found.written())
    out.print(found.written().rstrip(), markup=False, soft_wrap=True)
    if found.note:
        err.print(f"holdfast: {found.note}", markup=False, soft_wrap=True)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise RunError(f"{file}: cannot be written: {error.strerror or error}") from error
