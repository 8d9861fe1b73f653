"""Untrained networks by name: the house's own, and those of libraries that are installed."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from holdfast.errors import ModelError
from holdfast.models.networks import NETWORKS, Shape
from holdfast.words import reason

__all__ = ["is_network", "make_network"]


def is_network(name: str) -> bool:
    """Whether ``name`` is one that :func:`make_network` knows."""
    return name in NETWORKS or name.partition(":")[0] in _LIBRARIES


def make_network(name: str, shape: Shape, classes: int) -> nn.Module:
    """A network with random weights for inputs of ``shape`` in ``classes`` classes.

    Parameters
    ----------
    name : str
        ``"conv-small"``, ``"lenet5"``, ``"mlp"``, ``"preact-resnet18"``, ``"wide-resnet-28-10"``; or
        ``"timm:NAME"``, ``"torchvision:NAME"``, ``"hf:NAME"`` (a Hugging Face image classifier, with its pretrained
        weights) where those libraries are installed.
    shape : tuple of int
        Of one input.
    classes : int

    Raises
    ------
    ModelError
        When there is no such network, its library is missing, or it does not take such inputs.
    """
    if name in NETWORKS:
        return NETWORKS[name](shape, classes)
    library, _, member = name.partition(":")
    if library not in _LIBRARIES or not member:
        known = ", ".join([*NETWORKS, *(f"{library}:NAME" for library in _LIBRARIES)])
        raise ModelError(f"{name}: no such network; choose one of {known}")
    package, make = _LIBRARIES[library]
    try:
        return make(import_module(package), member, shape, classes)
    except ImportError as error:
        raise ModelError(f"{name}: needs the library {package} ({error}); install it") from error
    except Exception as error:  # a library's factory may raise anything
        raise ModelError(f"{name}: {reason(error)}") from error


def _from_timm(timm: Any, name: str, shape: Shape, classes: int) -> nn.Module:
    network: nn.Module = timm.create_model(name, num_classes=classes, in_chans=shape[0])
    return network


def _from_torchvision(torchvision: Any, name: str, shape: Shape, classes: int) -> nn.Module:
    network: nn.Module = torchvision.models.get_model(name, num_classes=classes)
    return network


class _Logits(nn.Module):
    """A Hugging Face classifier that returns its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x).logits
        return logits


def _from_transformers(transformers: Any, name: str, shape: Shape, classes: int) -> nn.Module:
    load = transformers.AutoModelForImageClassification.from_pretrained
    return _Logits(load(name, num_labels=classes, ignore_mismatched_sizes=True))


_LIBRARIES: Mapping[str, tuple[str, Callable[[Any, str, Shape, int], nn.Module]]] = {
    "timm": ("timm", _from_timm),
    "torchvision": ("torchvision", _from_torchvision),
    "hf": ("transformers", _from_transformers),
}
