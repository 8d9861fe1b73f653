"""A training run on disk, whole at any moment."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast.errors import RunError

__all__ = ["load_checkpoint", "save_checkpoint", "write_whole"]


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
    write_whole(path, lambda part: save_file(tensors, part, metadata={"notes": json.dumps(notes)}))


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The groups and the notes of :func:`save_checkpoint`.

    Raises
    ------
    RunError
        When the file cannot be read.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    if not path.is_file():
        raise RunError(f"{path} is no file: give another folder, or delete it to begin anew")
    try:
        with safe_open(path, framework="pt") as file:
            notes = dict(json.loads(file.metadata()["notes"]))
        for key, tensor in load_file(path).items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is no checkpoint of a training run ({error}): delete it to begin anew") from error
    return groups, notes


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path`` and put it in its place when it is complete.

    Raises
    ------
    RunError
        When that fails; what stood there before stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunError(f"{path}: {reason}; the last state that was saved is kept, free some room and resume") from error
