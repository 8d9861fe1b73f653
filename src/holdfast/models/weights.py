"""Read a file of weights without running any code that it may carry."""

from __future__ import annotations

import re
import warnings
import zipfile
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from holdfast.errors import ModelError
from holdfast.files import writable_name
from holdfast.limits import check_bytes
from holdfast.models.files import existing_file
from holdfast.models.pickles import ZIP, check_pickles
from holdfast.models.states import at_key, entries, find_states, fitting, the_only
from holdfast.words import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from holdfast.models.states import State

_LONGEST_NAME = 1000


def load_weights(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Load a state dict from a file, on the CPU.

    ``.safetensors`` files are read by safetensors, everything else by ``torch.load(weights_only=True)``, which rebuilds
    tensors and plain containers and nothing else. The state dict may be the file's whole content, or lie under a key
    such as ``state_dict``, ``model`` or ``net``, or under two, or in a list of one. The prefix ``module.`` of
    ``DataParallel`` and the ``_orig_mod.`` of ``torch.compile`` are taken off the names.

    Parameters
    ----------
    path
        The file of weights.
    key
        The key under which the state dict lies, or several joined with ``/``; needed where a file has several that may
        be meant, such as weights and their average.

    Returns
    -------
    dict of str to Tensor
        The weights by name, in the dtype in which they were saved.

    Raises
    ------
    ModelError
        If the file is missing, empty, damaged, a Git LFS pointer or an HTML page; if it could only be read by running
        code from it; if it would need too much memory; or if it holds no state dict, or several that may be meant.
    """
    return the_only(read_states(path, key), str(path))


def fit_weights(path: str | Path, module: nn.Module, key: str | None = None) -> dict[str, Tensor]:
    """Load the state dict of a file that fits a module, as :func:`load_weights`.

    Raises
    ------
    ModelError
        As :func:`load_weights`; of several state dicts, only those that fit may not differ.
    """
    return fitting(read_states(path, key), module.state_dict(), str(path))


def read_states(path: str | Path, key: str | None = None) -> dict[str, State]:
    """Every state dict in a file, or every one under a key, by the keys above it.

    Raises
    ------
    ModelError
        As :func:`load_weights`, but for several state dicts.
    """
    path = existing_file(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if key is not None:
        content = at_key(content, key, str(path))
    states = find_states(content)
    if not states:
        raise ModelError(f"{path}: {_why_stateless(content)}; save `model.state_dict()`")
    for state in states.values():
        for name, value in state.items():
            if len(name) > _LONGEST_NAME:
                raise ModelError(
                    f"{path}: {one_line(name)[:40]}... is a name of {len(name)} characters; give it a short one"
                )
            if value.is_nested or value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise ModelError(
                    f"{path}: {one_line(name)} is a sparse, quantised or empty tensor; save it with all its numbers"
                )
    # A tensor can show few numbers as many, and many tensors can show the same ones.
    check_bytes(sum(value.nbytes for state in states.values() for value in state.values()), f"{path}: its tensors")
    return states


def _read_safetensors(path: Path) -> object:
    check_bytes(path.stat().st_size, str(path))
    try:
        if writable_name(str(path)) != str(path):  # its own reader of files takes only names in UTF-8
            return load(path.read_bytes())
        with safe_open(path, framework="pt") as file:
            # Copies, for what it gives is the file itself, which may be written to while the weights are in use.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict
    except Exception as error:  # SafetensorError, or what torch says of a shape or a type that it does not know
        raise ModelError(f"{path}: not a whole safetensors file ({one_line(error)[:120]}); get it again") from error


def _read_torch(path: Path) -> object:
    try:
        check_bytes(_inflated(path), str(path))
        check_pickles(path)
        with warnings.catch_warnings(action="ignore"):  # of forms that are read or refused all the same
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # a damaged file can make the reader stumble over anything
        raise ModelError(f"{path}: {_why_unreadable(error)}") from error
    return content


def _inflated(path: Path) -> int:
    """How many bytes a file has, or the members of a zip file once they are inflated."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return path.stat().st_size
        with zipfile.ZipFile(file) as archive:
            return sum(member.file_size for member in archive.infolist())


def _why_unreadable(error: Exception) -> str:
    message = one_line(error)
    if "TorchScript" in message:
        return "a TorchScript program, not weights; save `model.state_dict()` of the loaded program instead"
    if found := re.search(r"(?:GLOBAL|unrecognized function) (<[^>]*>|[\w.]+)", message):
        return (
            f"reading it would run code ({found[1]}), which a file of weights from elsewhere may abuse; if you trust "
            "it, load it with torch.load(..., weights_only=False) yourself and save only `model.state_dict()`"
        )
    if found := re.search(r"WeightsUnpickler error: (.*?)(?: Check the documentation|$)", message):
        message = found[1]
    return f"not a file that torch.save wrote, or cut short ({type(error).__name__}: {message[:120]}); get it again"


def _why_stateless(content: object) -> str:
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__}, not a state dict"
    if not content:
        return "the state dict is empty"
    strange = [
        one_line(str(key))[:80]
        for key, value in entries(content).items()
        if not isinstance(value, Tensor) or not isinstance(key, str)
    ]
    return (
        f"holds no state dict: {', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''} "
        f"{'is not a tensor' if len(strange) == 1 else 'are not tensors'}"
    )
