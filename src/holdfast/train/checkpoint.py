"""A training run on disk, whole at any moment."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast.errors import RunError
from holdfast.files import check_file, writable_name

__all__ = ["has_checkpoint", "load_checkpoint", "save_checkpoint", "write_whole"]


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


def has_checkpoint(path: Path) -> bool:
    """Whether there is something at the place of a checkpoint.

    Raises
    ------
    RunError
        When there can be none.
    """
    if writable_name(str(path)) != str(path):
        raise RunError(f"{path}: safetensors takes only names in UTF-8; give a folder of such a name")
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
        with safe_open(path, framework="pt") as file:
            notes = dict(json.loads(file.metadata()["notes"]))
        for key, tensor in load_file(path).items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = tensor
    except Exception as error:  # of the two readers, and what torch says of a shape or a type that it does not know
        reason = " ".join(str(error).split())[:120]
        raise RunError(f"{path} is no checkpoint of a training run ({reason}): delete it to begin anew") from error
    return groups, notes


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path`` and put it in its place when it is complete.

    Raises
    ------
    RunError
        When that fails; what stood there before stays.
    """
    part = path.with_name(path.name + ".part")
    if part.is_symlink() or (part.exists() and not part.is_file()):
        raise RunError(f"{part} is no file, and one is to be written there; delete it and resume")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunError(f"{path}: {reason}; the last state that was saved is kept, free some room and resume") from error
