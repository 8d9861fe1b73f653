"""A trained model from the words a person would use for it: a file, a factory, a module."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from holdfast.errors import ModelError
from holdfast.models.architectures import is_network, make_network
from holdfast.models.exported import load_exported
from holdfast.models.factory import call_factory
from holdfast.models.files import one_line
from holdfast.models.onnx import load_onnx
from holdfast.models.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

_NETWORKS: Mapping[str, Callable[[Path], nn.Module]] = {
    ".onnx": load_onnx,
    ".onnx.gz": load_onnx,
    ".pt2": load_exported,
}
_WEIGHTS = (".pt", ".pth", ".safetensors", ".ckpt", ".bin")
TRAINED = "train.json"
_FORMS = "a folder of holdfast train, file.py:factory, package.module:factory, net.onnx or net.pt2"


@torch.inference_mode(False)
def load_model(spec: nn.Module | str | Path, weights: str | Path | None = None) -> nn.Module:
    """Build a model and load its weights.

    Parameters
    ----------
    spec
        What the model is:

        - an ``nn.Module``, which is returned itself;
        - ``"path/to/file.py:factory"`` or ``"package.module:factory"``, a function without arguments (or a class) that
          makes one. The folder of the Python file is importable while it runs;
        - ``"net.onnx"`` (or ``"net.onnx.gz"``), see :func:`~holdfast.models.load_onnx`;
        - ``"net.pt2"``, a program saved by ``torch.export.save`` with its batch dimension left free;
        - ``"DIR"``, the folder of a run of :func:`holdfast.train`, which holds the network's weights too.
    weights
        A file of weights for a module or a factory's module, see :func:`~holdfast.models.load_weights`. They go through
        the module's own ``load_state_dict``.

    Returns
    -------
    nn.Module
        The model on the device and in the mode in which its maker left it.

    Raises
    ------
    ModelError
        If the model cannot be found or made, or the weights do not fit. The message is one line.
    """
    if isinstance(spec, nn.Module):
        return spec if weights is None else _with_weights(spec, weights)
    text = str(spec)
    if (Path(text) / TRAINED).is_file():
        return _trained(Path(text), weights)
    source, colon, factory = text.rpartition(":")
    if colon and factory.isidentifier():
        module = call_factory(source, factory)
        return module if weights is None else _with_weights(module, weights)
    for suffix, load in _NETWORKS.items():
        if text.lower().endswith(suffix):
            if weights is not None:
                raise ModelError(
                    f"{text}: carries its own weights, so {weights} cannot be loaded into it; leave it out"
                )
            return load(Path(text))
    if text.lower().endswith(".py"):
        raise ModelError(f"{text}: which function makes the model? write {text}:NAME")
    if text.lower().endswith(_WEIGHTS):
        raise ModelError(
            f"{text}: a file of weights says nothing about the network; give the network as file.py:factory and this "
            "file as its weights"
        )
    raise ModelError(f"{text}: not a kind of model that is known; give {_FORMS}")


def _trained(folder: Path, weights: str | Path | None) -> nn.Module:
    """The network of a training run, as its record describes it."""
    path = folder / TRAINED
    try:
        about = json.loads(path.read_text(encoding="utf-8"))["network"]
        name, shape, classes = str(about["name"]), tuple(about["shape"]), int(about["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not the record of a training run ({one_line(error)}); train again") from error
    network = make_network(name, shape, classes) if is_network(name) else load_model(name)
    return _with_weights(network, weights or folder / "weights.safetensors")


def _with_weights(module: nn.Module, weights: str | Path) -> nn.Module:
    state = load_weights(weights)
    try:
        module.load_state_dict(state)
    except Exception as error:  # a module's own load_state_dict may raise anything
        raise ModelError(f"{weights}: does not fit {type(module).__name__}: {_misfit(error, state)}") from error
    return module


def _misfit(error: Exception, state: Mapping[str, Tensor]) -> str:
    """Put torch's page of complaints into one line; what is said in another form stays as it is."""
    message = str(error)
    lists = {what: re.search(rf"{what} key\(s\) in state_dict: (.*)", message) for what in ("Missing", "Unexpected")}
    parts = [_first(what.lower(), re.findall(r'"([^"]+)"', found[1])) for what, found in lists.items() if found]
    shapes = re.findall(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", message)
    if shapes:
        parts.append(_first("of another shape", [f"{key} is {theirs}, not {ours}" for key, theirs, ours in shapes]))
    if not parts:
        return f"{type(error).__name__}: {one_line(error)[:300]}"
    return "; ".join(parts) + f" (of {len(state)} in the file); build the network that these weights were trained in"


def _first(what: str, entries: list[str], shown: int = 3) -> str:
    return f"{len(entries)} {what}: {', '.join(entries[:shown])}{', ...' if len(entries) > shown else ''}"
