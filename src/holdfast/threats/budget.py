"""Budgets as people write them."""

import math

import torch
from torch import Tensor

from holdfast.errors import SettingError

__all__ = ["Budget", "parse_budget"]

Budget = float | Tensor


def parse_budget(eps: "float | str | Tensor") -> Budget:
    """Read a budget: a number, a string such as ``"8/255"`` or ``"0.3"``, or ``(N,)`` numbers, one an example.

    Raises
    ------
    SettingError
        When it is no number, or negative, or not finite.
    """
    if isinstance(eps, Tensor) and eps.dim() > 0:
        if eps.dim() != 1 or not bool(torch.isfinite(eps).all()) or bool((eps < 0).any()):
            raise SettingError("eps: one finite budget of at least 0 for each example is needed, as a tensor (N,)")
        return eps
    if isinstance(eps, str):
        numerator, slash, denominator = eps.partition("/")
        try:
            value = float(numerator) / float(denominator) if slash else float(numerator)
        except (ValueError, ZeroDivisionError):
            raise SettingError(f"eps: {eps!r} is not a number; write 0.3 or 8/255") from None
    else:
        value = float(eps)
    if not math.isfinite(value) or value < 0:
        raise SettingError(f"eps: a budget must be finite and at least 0, got {eps}")
    return value
