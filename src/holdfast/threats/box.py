"""The box that inputs live in."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import DataError, SettingError
from holdfast.threats.numbers import plain_tensor

__all__ = ["TOLERANCE", "Bound", "Box"]

# Rounding in a projection may leave a set by an ulp or two; what is admissible is judged with this much room.
TOLERANCE = 1e-6

Bound = float | Tensor
_FORM = "box: bounds must be numbers, or tensors of shapes that go together"
# What float32 can hold; beyond that there is no bound to speak of.
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class Box:
    """Lower and upper bounds of every coordinate of an input.

    Parameters
    ----------
    lower, upper : float or Tensor
        One number, or a tensor that broadcasts against one input (per-feature bounds). Infinite where there is none.

    Raises
    ------
    SettingError
        When a bound is no number, or a lower bound lies above its upper bound.
    """

    lower: Bound = 0.0
    upper: Bound = 1.0

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            object.__setattr__(self, name, _bound(getattr(self, name)))
        try:
            ordered = bool((torch.as_tensor(self.lower) <= torch.as_tensor(self.upper)).all())
        except (TypeError, RuntimeError):
            raise SettingError(_FORM) from None
        if not ordered:
            raise SettingError(f"box: every lower bound must be at most its upper bound, got {self}; swap or mend them")

    @classmethod
    def of(cls, box: "Box | tuple[Bound, Bound] | None") -> "Box":
        """A box from what a user writes: a pair, a box, or None for no bounds."""
        if box is None:
            return cls(-torch.inf, torch.inf)
        if isinstance(box, Box):
            return box
        try:
            lower, upper = box
        except (TypeError, ValueError, RuntimeError):
            raise SettingError("box: give a pair of bounds, lower and upper, or None for no box") from None
        return cls(lower, upper)

    @property
    def bounded(self) -> bool:
        """Whether every coordinate is bounded on both sides."""
        return bool(torch.as_tensor(self.lower).isfinite().all() and torch.as_tensor(self.upper).isfinite().all())

    def ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds in the type and place of the inputs ``x``, ``(N, ...)``, with which they broadcast.

        Raises
        ------
        DataError
            When they do not fit one input.
        """
        return self._like(self.lower, x), self._like(self.upper, x)

    def around(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds relative to ``x``, ``(N, ...)``, cut so that no change at all is always admissible."""
        lower, upper = self.ends(x)
        return (lower - x).clamp_max(0), (upper - x).clamp_min(0)

    def clip(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The nearest inputs inside the box; written to ``out`` where it is given."""
        if isinstance(self.lower, Tensor) or isinstance(self.upper, Tensor):
            return torch.clamp(x, *self.ends(x), out=out)
        return torch.clamp(x, self.lower, self.upper, out=out)

    def excess(self, x: Tensor) -> Tensor:
        """``(N,)`` how far each input lies outside the box in its worst coordinate, 0 inside."""
        lower, upper = self.ends(x)
        outside = torch.maximum(lower - x, x - upper).clamp_min(0)
        return outside.flatten(1).amax(1) if x.numel() else x.new_zeros(len(x))

    def __str__(self) -> str:
        if isinstance(self.lower, Tensor) or isinstance(self.upper, Tensor):
            low, high = (torch.as_tensor(b) for b in (self.lower, self.upper))
            return f"[{low.min():g} .. {low.max():g}, {high.min():g} .. {high.max():g}] per feature"
        return "no box" if (self.lower, self.upper) == (-torch.inf, torch.inf) else f"[{self.lower:g}, {self.upper:g}]"

    def _like(self, bound: Bound, x: Tensor) -> Tensor:
        if isinstance(bound, Tensor) and not _spreads(bound.shape, x.shape[1:]):
            raise DataError(
                f"box: a bound of shape {tuple(bound.shape)} does not fit inputs of shape {tuple(x.shape[1:])}; give a "
                "number, or numbers for the features of one input"
            )
        return torch.as_tensor(bound, dtype=x.dtype, device=x.device)


def _spreads(bound: tuple[int, ...], one: tuple[int, ...]) -> bool:
    """Whether bounds of a shape broadcast to one input, or to a batch of one, without making it larger."""
    try:
        return tuple(torch.broadcast_shapes(bound, (1, *one))) == (1, *one)
    except RuntimeError:
        return False


def _bound(bound: Any) -> Bound:
    """A bound as the box keeps it: a number, or a tensor of them."""
    try:
        values = plain_tensor(bound, "box", SettingError)
    except SettingError:
        raise SettingError(_FORM) from None
    if values.is_complex() or values.dtype == torch.bool or not values.numel():
        raise SettingError(_FORM)
    values = values if values.is_floating_point() else values.double()
    if bool(((values.abs() > _LARGEST) & ~values.isinf()).any()):
        raise SettingError(f"box: bounds go up to {_LARGEST:.2g} in float32; write inf where there is none")
    return float(values) if not values.dim() else values
