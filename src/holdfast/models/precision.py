"""In which precision a model computes, and where."""

from torch import Tensor, nn

__all__ = ["first_float"]


def first_float(model: nn.Module, otherwise: Tensor) -> Tensor:
    """The first floating-point parameter of a model, or its first such buffer where it has none.

    Its type is the precision of the model, and its device the place. ``otherwise`` stands for it in a model without
    numbers of its own, which computes with what it is given.
    """
    return next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), otherwise)
