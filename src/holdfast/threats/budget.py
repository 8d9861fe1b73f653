"""Budgets as people write them."""

from torch import Tensor

from holdfast.errors import SettingError

__all__ = ["Budget", "parse_budget"]

Budget = float | Tensor


def parse_budget(eps: "float | str | Tensor") -> Budget:
    """Read a budget: a number, a string such as ``"8/255"`` or ``"0.3"``, or ``(N,)`` numbers, one an example.

    An infinite one, ``"inf"``, asks for the nearest adversarial input.

    Raises
    ------
    SettingError
        When it is no number, or negative.
    """
    if isinstance(eps, Tensor) and eps.dim() > 0:
        if eps.dim() != 1:
            raise SettingError(f"eps: one budget for each example is needed, as a tensor (N,), not {tuple(eps.shape)}")
        if len(wrong := eps[~(eps >= 0)]):
            raise SettingError(f"eps: a budget must be at least 0, got {float(wrong[0]):g}")
        return eps
    if isinstance(eps, str):
        numerator, slash, denominator = eps.partition("/")
        try:
            value = float(numerator) / float(denominator) if slash else float(numerator)
        except (ValueError, ZeroDivisionError):
            raise SettingError(f"eps: {eps!r} is not a number; write 0.3 or 8/255") from None
    else:
        try:
            value = float(eps)
        except (TypeError, ValueError):
            raise SettingError(
                f"eps: give a number, a string such as '8/255' or a tensor, not a {type(eps).__name__}"
            ) from None
    if not value >= 0:
        raise SettingError(f"eps: a budget must be at least 0, got {eps!r}")
    return value
