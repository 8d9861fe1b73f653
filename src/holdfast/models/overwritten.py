"""Gradients of models that overwrite numbers which their gradients need."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch.autograd.graph import allow_mutation_on_saved_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["differentiated"]

T = TypeVar("T")

# What autograd says where it finds a number overwritten that it had kept.
_OVERWRITTEN = "modified by an inplace operation"


def differentiated(ask: Callable[[], T]) -> T:
    """What a function answers that runs a model and takes gradients, whatever the model overwrites.

    Autograd refuses gradients of, say, ``h[:, 0].relu_(); h[:, 1].relu_()``, since the second call changes the tensor
    that the first one's slope is read from. Then the function is asked again, with copies of what is overwritten.
    """
    try:
        return ask()
    except RuntimeError as error:
        if _OVERWRITTEN not in str(error):
            raise
    with allow_mutation_on_saved_tensors():
        return ask()
