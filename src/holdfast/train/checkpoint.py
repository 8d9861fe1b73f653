"""A training run on disk, whole at any moment."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from holdfast.errors import RunError
from holdfast.files import check_file, write_whole
from holdfast.words import one_line

__all__ = ["CURE", "has_checkpoint", "load_checkpoint", "save_checkpoint", "write_tensors"]

CURE = "the last state that was saved is kept, free some room and resume"
"""What to do when a file of a run cannot be written."""


def save_checkpoint(path: Path, groups: Mapping[str, Mapping[str, Tensor]], notes: Mapping[str, Any]) -> None:
    """Write tensors under ``GROUP/NAME``, and plain notes, to one safetensors file; a kill leaves the one before.

    Raises
    ------
    RunError
        When the disk is full or the folder cannot be written.
    """
    # Two names may share one tensor (tied weights), which the format refuses.
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    write_tensors(path, tensors, CURE, {"notes": json.dumps(notes)})


def has_checkpoint(path: Path) -> bool:
    """Whether there is something at the place of a checkpoint.

    Raises
    ------
    RunError
        When there can be none.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {getattr(error, 'strerror', None) or error}; give another folder") from error
    return True


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The groups and the notes of :func:`save_checkpoint`.

    Raises
    ------
    RunError
        When the file cannot be read.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    check_file(path, RunError)
    try:
        # Read by ourselves: the library's own reader of files takes only names in UTF-8.
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        notes = dict(json.loads(header["__metadata__"]["notes"]))
        for key, tensor in load(content).items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor
    except Exception as error:  # of the readers, and what torch says of a shape or a type that it does not know
        raise RunError(
            f"{path} is no checkpoint of a training run ({one_line(error)[:120]}): delete it to begin anew"
        ) from error
    return groups, notes


def write_tensors(path: Path, tensors: dict[str, Tensor], cure: str, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    Raises
    ------
    RunError
        When that fails, with the ``cure``; what stood there before stays.
    """

    def write(part: Path) -> None:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:  # a full disk among others
            raise OSError(str(error)) from error

    write_whole(path, write, cure)
