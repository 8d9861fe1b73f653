"""Budgets as people write them."""

import math

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import SettingError
from holdfast.threats.numbers import plain_tensor

__all__ = ["Budget", "parse_budget", "written"]

Budget = float | Tensor
_LARGEST = torch.finfo(torch.float32).max
_TOO_LARGE = "{}: {:g} is more than float32 can hold; write inf for no limit"


def parse_budget(eps: "float | str | Tensor", name: str = "eps") -> Budget:
    """Read a budget: a number, a string such as ``"8/255"`` or ``"0.3"``, or ``(N,)`` numbers, one an example.

    An infinite one, ``"inf"``, asks for the nearest adversarial input. ``name`` is what a user calls it.

    Raises
    ------
    SettingError
        When it is no number, or negative.
    """
    if isinstance(eps, Tensor | np.ndarray):
        eps = plain_tensor(eps, name, SettingError)
        if eps.is_complex() or eps.dtype == torch.bool:
            raise SettingError(f"{name}: a budget is a real number, not {eps.dtype}")
        if eps.dim() > 0:
            return _each(eps if eps.is_floating_point() else eps.float(), name)
    if isinstance(eps, str):
        numerator, slash, denominator = eps.partition("/")
        try:
            value = float(numerator) / float(denominator) if slash else float(numerator)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise SettingError(f"{name}: {eps!r} is not a number; write 0.3 or 8/255") from None
    else:
        try:
            value = float(eps)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise SettingError(
                f"{name}: give a number, a string such as '8/255' or a tensor, not a {type(eps).__name__}"
            ) from None
    if not value >= 0:
        raise SettingError(f"{name}: a budget must be at least 0, got {eps!r}")
    if _LARGEST < value < math.inf:
        raise SettingError(_TOO_LARGE.format(name, value))
    return value


def _each(eps: Tensor, name: str) -> Tensor:
    """Budgets for each example, when they are some."""
    if eps.dim() != 1:
        raise SettingError(f"{name}: one budget for each example is needed, as a tensor (N,), not {tuple(eps.shape)}")
    if len(wrong := eps[~(eps >= 0)]):
        raise SettingError(f"{name}: a budget must be at least 0, got {float(wrong[0]):g}")
    if len(wrong := eps[eps.isfinite() & (eps > _LARGEST)]):
        raise SettingError(_TOO_LARGE.format(name, float(wrong[0])))
    return eps


def written(value: float) -> str:
    """A number as people write it, in the shortest way that :func:`parse_budget` reads as the very same."""
    grey = round(255 * value) if math.isfinite(value) else 0
    for text in (f"{value:g}", f"{grey}/255"):
        if parse_budget(text) == value:
            return text
    return repr(value)
