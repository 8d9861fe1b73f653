"""A trained model from the words a person would use for it: a file, a factory, a module."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from holdfast.arguments import shown, yes_or_no
from holdfast.errors import ModelError, SettingError
from holdfast.files import is_file, read_text
from holdfast.limits import check_bytes
from holdfast.models.architectures import is_network, make_network
from holdfast.models.estimators.estimator import as_classifier, is_estimator
from holdfast.models.estimators.files import PICKLES, load_skops, refuse_pickle
from holdfast.models.exported import load_exported
from holdfast.models.factory import call_factory
from holdfast.models.networks import NETWORKS, Shape
from holdfast.models.onnx import load_onnx
from holdfast.models.states import renamed
from holdfast.models.weights import fit_weights, load_weights
from holdfast.threats.numbers import type_of
from holdfast.words import one_line, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_NETWORKS: Mapping[str, Callable[[Path, bool, Mapping[str, int] | None], nn.Module]] = {
    ".onnx": lambda path, trust, sizes: load_onnx(path, sizes),
    ".onnx.gz": lambda path, trust, sizes: load_onnx(path, sizes),
    ".pt2": lambda path, trust, sizes: load_exported(path, trust=trust),
}
_WEIGHTS = (".pt", ".pth", ".safetensors", ".ckpt", ".bin")
# A list of torch's complaints; names may hold anything, line breaks too.
_NAMES = r'{} key\(s\) in state_dict: (".*?")\. ?(?:\n\t|$)'
TRAINED = "train.json"
_FETCHED = "hf:"  # networks by name whose code and weights lie elsewhere
_FEWEST = 2  # classes that a network is made for before its weights are seen
_SKOPS = ".skops"
_FORMS = (
    "a folder of holdfast train, file.py:factory, package.module:factory, net.onnx, net.pt2, model.skops, or the name "
    f"of a network ({', '.join(NETWORKS)})"
)


@torch.inference_mode(False)
def load_model(
    spec: Any,
    weights: str | Path | None = None,
    *,
    weights_key: str | None = None,
    trust: bool = False,
    shape: Shape | None = None,
    sizes: Mapping[str, int] | None = None,
    columns: Sequence[str] | None = None,
) -> nn.Module:
    """Build a model and load its weights.

    Parameters
    ----------
    spec
        What the model is:

        - an ``nn.Module``, which is returned itself;
        - a fitted classifier or pipeline of scikit-learn, see
          :func:`~holdfast.models.estimators.estimator.as_classifier`;
        - ``"path/to/file.py:factory"`` or ``"package.module:factory"``, a function without arguments (or a class) that
          makes one, or a classifier of scikit-learn. The folder of the Python file is importable while it runs;
        - ``"net.onnx"`` (or ``"net.onnx.gz"``), see :func:`~holdfast.models.load_onnx`;
        - ``"model.skops"``, such a classifier saved by ``skops.io.dump``;
        - ``"net.pt2"``, a program saved by ``torch.export.save`` with its batch dimension left free; needs ``trust``;
        - ``"DIR"``, the folder of a run of :func:`holdfast.train`, which holds the network's weights too; needs
          ``trust`` where a factory or the Hugging Face Hub makes the network;
        - ``"mlp"``, ``"timm:NAME"`` or another name that :func:`~holdfast.models.architectures.make_network` knows,
          with weights, which tell how many classes it has.
    weights
        A file of weights for a module, a factory's module or a network by name, see
        :func:`~holdfast.models.load_weights`. They go through the module's own ``load_state_dict``.
    weights_key
        The key of that file under which the weights lie, where it holds several state dicts that fit.
    trust
        That code may run which a file carries or names. Only a ``.pt2`` file and the record of a training run can:
        reading one that somebody else made is running a program of theirs.
    shape
        Of one input, which a network by name is made for; others know it themselves.
    sizes
        The sizes of dimensions that an ONNX file leaves free, see :func:`~holdfast.models.load_onnx`.
    columns
        What the data call the features of an input, where a classifier of scikit-learn is to be held against them.

    Returns
    -------
    nn.Module
        The model on the device and in the mode in which its maker left it.

    Raises
    ------
    ModelError
        If the model cannot be found or made, or the weights do not fit. The message is one line.
    """
    if weights_key is not None and weights is None:
        raise ModelError(f"weights_key: {weights_key} names a part of a file of weights; give the file as weights")
    if sizes is not None and not isinstance(sizes, Mapping):
        raise SettingError(f"sizes: give a dict from names of dimensions to sizes, not {shown(sizes)}")
    yes_or_no("trust", trust)
    if sizes and (isinstance(spec, nn.Module) or not str(spec).lower().endswith((".onnx", ".onnx.gz"))):
        raise SettingError("sizes are those of free dimensions of an ONNX file; leave them out")
    if isinstance(spec, nn.Module):
        return spec if weights is None else _with_weights(spec, weights, weights_key)
    if is_estimator(spec):
        return _classifier(spec, type_of(spec), weights, columns)
    if not isinstance(spec, str | Path):
        raise ModelError(f"model: a {type(spec).__name__} is no kind of model that is known; give {_FORMS}")
    text = str(spec)
    if is_file(Path(text) / TRAINED):
        return _trained(Path(text), weights, weights_key, trust=trust)
    if is_network(text):
        return _named(text, weights, weights_key, shape)
    source, colon, factory = text.rpartition(":")
    if colon and factory.isidentifier():
        made = call_factory(source, factory)
        if not isinstance(made, nn.Module):
            return _classifier(made, text, weights, columns)
        return made if weights is None else _with_weights(made, weights, weights_key)
    if text.lower().endswith(_SKOPS):
        return _classifier(load_skops(text, trust=trust), text, weights, columns)
    if text.lower().endswith(PICKLES):
        raise refuse_pickle(text)
    for suffix, load in _NETWORKS.items():
        if text.lower().endswith(suffix):
            if weights is not None:
                raise ModelError(
                    f"{text}: carries its own weights, so {weights} cannot be loaded into it; leave it out"
                )
            return load(Path(text), trust, sizes)
    if text.lower().endswith(".py"):
        raise ModelError(f"{text}: which function makes the model? write {text}:NAME")
    if text.lower().endswith(_WEIGHTS):
        raise ModelError(
            f"{text}: a file of weights says nothing about the network; give the network as file.py:factory and this "
            "file as its weights"
        )
    raise ModelError(f"{text}: not a kind of model that is known; give {_FORMS}")


def _classifier(estimator: Any, text: str, weights: str | Path | None, columns: Sequence[str] | None) -> nn.Module:
    if weights is not None:
        raise ModelError(f"{text}: a fitted classifier has no use for {weights}; leave it out")
    return as_classifier(estimator, columns)


def _named(name: str, weights: str | Path | None, weights_key: str | None, shape: Shape | None) -> nn.Module:
    """A network by name with weights for however many classes."""
    if weights is None:
        raise ModelError(
            f"{name}: a network by name comes without weights; give a file of them, such as holdfast train makes"
        )
    if shape is None:
        raise ModelError(
            f"{name}: a network by name is made for a shape of inputs, which is not known here; give shape=(...) from "
            "Python, or the model in another form (a folder of holdfast train, file.py:factory)"
        )
    state = load_weights(weights, weights_key)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        network = make_network(name, shape, _FEWEST)
        classes = _classes(network.state_dict(), state)
        if classes != _FEWEST:
            network = make_network(name, shape, classes)
    return _with_state(network, state, weights)


def _classes(ours: Mapping[str, Tensor], state: dict[str, Tensor]) -> int:
    """For how many classes weights are that fit a network but for its last layer, made for the fewest."""
    found = {
        len(theirs)
        for key, theirs in (renamed(state, ours) or state).items()
        if key in ours
        and ours[key].shape != theirs.shape
        and ours[key].shape[:1] == (_FEWEST,)
        and ours[key].shape[1:] == theirs.shape[1:]
    }
    return found.pop() if len(found) == 1 else _FEWEST


def needs_trust(name: str) -> bool:
    """Whether the network of a training run is made by code that the run's record only names."""
    return not is_network(name) or name.startswith(_FETCHED)


def _trained(folder: Path, weights: str | Path | None, weights_key: str | None, *, trust: bool) -> nn.Module:
    """The network of a training run, as its record describes it."""
    path = folder / TRAINED
    try:
        about = json.loads(read_text(path, ModelError))["network"]
        name, shape, classes = str(about["name"]), tuple(map(int, about["shape"])), int(about["classes"])
        if classes < 1:
            raise ValueError(f"{classes} classes")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path}: not the record of a training run ({one_line(error)}); train again") from error
    weights = weights or folder / "weights.safetensors"
    if not needs_trust(name):
        return _with_weights(_sized(path, name, shape, classes), weights, weights_key)
    if not trust:
        raise ModelError(
            f"{path}: has its network made by {name}, which may run any code; if you trust this folder, say so with "
            f"--trust (from Python: trust=True), or name the code yourself: --model {name} --weights {weights}"
        )
    try:
        network = make_network(name, shape, classes) if is_network(name) else load_model(name, trust=True)
    except RecursionError:
        raise ModelError(f"{path}: names a folder whose record leads back to this one; train again") from None
    return _with_weights(network, weights, weights_key)


def _sized(path: Path, name: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Make a network by name, of a size that a file says."""
    try:
        with torch.device("meta"):
            tensors = make_network(name, shape, classes).state_dict().values()
        check_bytes(sum(tensor.nbytes for tensor in tensors), str(path))
        return make_network(name, shape, classes)
    except ModelError:
        raise
    except Exception as error:  # torch's layers raise many kinds for sizes that make no sense
        raise ModelError(f"{path}: not the record of a training run ({one_line(error)}); train again") from error


def _with_weights(module: nn.Module, weights: str | Path, weights_key: str | None) -> nn.Module:
    return _with_state(module, fit_weights(weights, module, weights_key), weights)


def _with_state(module: nn.Module, state: dict[str, Tensor], weights: str | Path) -> nn.Module:
    try:
        try:
            module.load_state_dict(state)  # which may know other names than the module's
        except Exception:
            if (same := renamed(state, module.state_dict())) is None:
                raise
            module.load_state_dict(same)
    except Exception as error:  # a module's own load_state_dict may raise anything
        raise ModelError(
            f"{weights}: does not fit {type(module).__name__}: {one_line(_misfit(error, state))}"
        ) from error
    return module


def _misfit(error: Exception, state: Mapping[str, Tensor]) -> str:
    """Put torch's page of complaints into one line; what is said in another form stays as it is."""
    message = str(error)
    lists = {what: re.search(_NAMES.format(what), message, re.DOTALL) for what in ("Missing", "Unexpected")}
    names = {what: re.findall(r'"(.*?)"(?:, |$)', found[1], re.DOTALL) for what, found in lists.items() if found}
    parts = [_first(what.lower(), found) for what, found in names.items()]
    shapes = re.findall(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", message)
    if shapes:
        parts.append(_first("of another shape", [f"{key} is {theirs}, not {ours}" for key, theirs, ours in shapes]))
    if not parts:
        return reason(error)
    return "; ".join(parts) + f" (of {len(state)} in the file); build the network that these weights were trained in"


def _first(what: str, entries: list[str], shown: int = 3) -> str:
    return f"{len(entries)} {what}: {', '.join(entries[:shown])}{', ...' if len(entries) > shown else ''}"
