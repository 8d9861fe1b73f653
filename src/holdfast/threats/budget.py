"""Budgets as people write them."""

import math

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import SettingError

__all__ = ["Budget", "parse_budget"]

Budget = float | Tensor
_LARGEST = torch.finfo(torch.float32).max
_TOO_LARGE = "eps: {:g} is more than float32 can hold; write inf for no limit"


def parse_budget(eps: "float | str | Tensor") -> Budget:
    """Read a budget: a number, a string such as ``"8/255"`` or ``"0.3"``, or ``(N,)`` numbers, one an example.

    An infinite one, ``"inf"``, asks for the nearest adversarial input.

    Raises
    ------
    SettingError
        When it is no number, or negative.
    """
    if isinstance(eps, np.ndarray):
        try:
            eps = torch.as_tensor(np.asarray(eps))
        except (TypeError, ValueError, RuntimeError):
            raise SettingError("eps: what is not numbers cannot be budgets; give one number an example") from None
    if isinstance(eps, Tensor) and (eps.is_complex() or eps.dtype == torch.bool):
        raise SettingError(f"eps: a budget is a real number, not {eps.dtype}")
    if isinstance(eps, Tensor) and eps.dim() > 0:
        eps = eps.detach() if eps.is_floating_point() else eps.float()
        if eps.dim() != 1:
            raise SettingError(f"eps: one budget for each example is needed, as a tensor (N,), not {tuple(eps.shape)}")
        if len(wrong := eps[~(eps >= 0)]):
            raise SettingError(f"eps: a budget must be at least 0, got {float(wrong[0]):g}")
        if len(wrong := eps[eps.isfinite() & (eps > _LARGEST)]):
            raise SettingError(_TOO_LARGE.format(float(wrong[0])))
        return eps
    if isinstance(eps, str):
        numerator, slash, denominator = eps.partition("/")
        try:
            value = float(numerator) / float(denominator) if slash else float(numerator)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise SettingError(f"eps: {eps!r} is not a number; write 0.3 or 8/255") from None
    else:
        try:
            value = float(eps)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise SettingError(
                f"eps: give a number, a string such as '8/255' or a tensor, not a {type(eps).__name__}"
            ) from None
    if not value >= 0:
        raise SettingError(f"eps: a budget must be at least 0, got {eps!r}")
    if _LARGEST < value < math.inf:
        raise SettingError(_TOO_LARGE.format(value))
    return value
