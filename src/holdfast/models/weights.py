"""Read a file of weights without running any code that it may carry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from holdfast.errors import ModelError
from holdfast.models.files import existing_file, one_line

if TYPE_CHECKING:
    from pathlib import Path

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PARALLEL = "module."


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Load a state dict from a file, on the CPU.

    ``.safetensors`` files are read by safetensors, everything else by ``torch.load(weights_only=True)``, which rebuilds
    tensors and plain containers and nothing else. The state dict may be the file's whole content, or lie under the key
    ``state_dict``, ``model_state_dict`` or ``model``, or in a list of one, to any depth. The prefix ``module.`` which
    ``DataParallel`` puts before every key is taken off.

    Parameters
    ----------
    path
        The file of weights.

    Returns
    -------
    dict of str to Tensor
        The weights by name, in the dtype in which they were saved.

    Raises
    ------
    ModelError
        If the file is missing, empty, damaged, a Git LFS pointer or an HTML page; if it could only be read by running
        code from it; or if it holds no state dict.
    """
    path = existing_file(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _find_state(content, path)
    if all(key.startswith(_PARALLEL) for key in state):
        state = {key.removeprefix(_PARALLEL): value for key, value in state.items()}
    return state


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file ({one_line(error)}); get it again") from error


def _read_torch(path: Path) -> object:
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader stumble over anything
        raise ModelError(f"{path}: {_why_unreadable(error)}") from error
    return content


def _why_unreadable(error: Exception) -> str:
    message = one_line(error)
    if "TorchScript" in message:
        return "a TorchScript program, not weights; save `model.state_dict()` of the loaded program instead"
    if found := re.search(r"(?:GLOBAL|unrecognized function) (<[^>]*>|[\w.]+)", message):
        return (
            f"reading it would run code ({found[1]}), which a file of weights from elsewhere may abuse; if you trust "
            "it, load it with torch.load(..., weights_only=False) yourself and save only `model.state_dict()`"
        )
    return f"not a file that torch.save wrote, or cut short ({type(error).__name__}: {message[:120]}); get it again"


def _find_state(content: object, path: Path) -> dict[str, Tensor]:
    """Unwrap ``content`` until it is a mapping of names to tensors."""
    if isinstance(content, list | tuple) and len(content) == 1:
        return _find_state(content[0], path)
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: holds a {type(content).__name__}, not a state dict; save `model.state_dict()`")
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping | list | tuple):
            return _find_state(content[key], path)
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if strange:
        raise ModelError(
            f"{path}: holds no state dict: {', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''} "
            f"{'is not a tensor' if len(strange) == 1 else 'are not tensors'}; save `model.state_dict()`"
        )
    if not content:
        raise ModelError(f"{path}: the state dict is empty; save `model.state_dict()` of the trained model")
    return dict(content)
