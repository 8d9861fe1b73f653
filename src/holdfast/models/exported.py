"""Programs saved by ``torch.export.save``, as modules that take any number of rows."""

from __future__ import annotations

import logging
import warnings
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from holdfast.errors import ModelError
from holdfast.limits import check_bytes
from holdfast.models.files import existing_file
from holdfast.words import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MODE_FLAGS = ("train", "training")  # what the operators that behave differently in training call their flag


class ExportedModule(nn.Module):
    """An exported program of one input and one output.

    The graph is frozen in the mode in which it was exported and ``.eval()`` and ``.train()`` of the bare program raise,
    so this wrapper only remembers the mode: :func:`load_exported` has refused programs exported in training mode.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.program(x)
        return logits

    def train(self, mode: bool = True) -> Self:
        self.training = mode
        return self


def load_exported(path: str | Path, *, trust: bool = False) -> ExportedModule:
    """Load a program that ``torch.export.save`` wrote.

    Parameters
    ----------
    path
        A ``.pt2`` file. The program takes one tensor (N, ...) with N left free and returns one tensor.
    trust
        That code in the file may run. torch's reader unpickles weights, constants and example inputs without a check,
        evaluates symbolic shapes as Python, and calls whichever operators the file names: loading a program is running
        it.

    Returns
    -------
    ExportedModule

    Raises
    ------
    ModelError
        If it is not trusted; if the file is not such a program, would need too much memory, has several inputs or
        outputs, was exported for one batch size only, or was exported in training mode.
    """
    path = existing_file(path)
    if not trust:
        raise ModelError(
            f"{path}: reading a .pt2 file can run code that it carries; if you trust whoever made it, say so with "
            "--trust (from Python: trust=True), or take the model as an ONNX file or as code with weights"
        )
    try:
        with _silence(), zipfile.ZipFile(path) as archive:
            check_bytes(sum(member.file_size for member in archive.infolist()), str(path))
            return _module(path, torch.export.load(path))
    except ModelError:
        raise
    except Exception as error:  # the reader raises whatever its zip, JSON and schema parsers raise
        raise ModelError(
            f"{path}: not a program that this torch ({torch.__version__}) can read; write it again with "
            f"torch.export.save ({type(error).__name__}: {one_line(error)[:120]})"
        ) from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keep torch from logging the whole of a traceback for a file that it cannot read."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _module(path: Path, program: torch.export.ExportedProgram) -> ExportedModule:
    inputs, outputs = program.graph_signature.user_inputs, program.graph_signature.user_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"{path}: the program has {len(inputs)} inputs and {len(outputs)} outputs; "
            "export a model that takes one tensor and returns its logits"
        )
    if node := _in_training(program):
        raise ModelError(f"{path}: exported in training mode (operator {node}); call model.eval() and export it again")
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == inputs[0])
    if isinstance(value.shape[0], int):
        raise ModelError(
            f"{path}: exported for batches of exactly {value.shape[0]}; export it again with a free batch dimension, "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)"
        )
    return ExportedModule(program.module())


def _in_training(program: torch.export.ExportedProgram) -> str | None:
    """Return the name of the first operator that runs in training mode, if any does."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        arguments = schema.arguments if schema is not None else ()
        for position, argument in enumerate(arguments):
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if argument.name in _MODE_FLAGS and given is True:
                return str(node.name)
    return None
