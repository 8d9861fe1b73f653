"""Coefficients of linear functions of a node's value, a row each, stored only where they can differ from 0."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Rows", "Window"]

Window = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Rows:
    """``R`` linear functions of one node's value.

    A neuron of a convolution sees a patch of the feature map before it, so its coefficients are 0 outside: of feature
    maps ``(C, H, W)`` only a window is stored, the same one for all rows.

    Parameters
    ----------
    values : Tensor
        ``(R, *shape)``; for feature maps ``(R, C, h, w)``, the part inside the window.
    window : Window or None
        ``((top, bottom), (left, right))``, ends excluded, of a feature map; None for every other shape.
    """

    values: Tensor
    window: Window | None

    @classmethod
    def whole(cls, values: Tensor) -> Rows:
        """Rows that are stored everywhere."""
        window = ((0, values.shape[2]), (0, values.shape[3])) if values.dim() == 4 else None
        return cls(values, window)

    def full(self, shape: tuple[int, ...]) -> Tensor:
        """``(R, *shape)``, zeros filled in."""
        if self.window is None:
            return self.values
        (top, bottom), (left, right) = self.window
        if (top, left, bottom, right) == (0, 0, *shape[1:]):
            return self.values
        return functional.pad(self.values, (left, shape[2] - right, top, shape[1] - bottom))

    def cut(self, values: Tensor) -> Tensor:
        """The part inside the window of what every example has for every coordinate, ``(N, *shape, ...)``."""
        if self.window is None:
            return values
        (top, bottom), (left, right) = self.window
        if (top, left, bottom, right) == (0, 0, *values.shape[2:4]):
            return values
        return values[:, :, top:bottom, left:right]

    def grouped(self, examples: int) -> Tensor:
        """``(N, R / N, ...)`` the values, a group of rows for each of ``N`` examples."""
        values: Tensor = self.values.unflatten(0, (examples, -1))
        return values

    def index(self) -> tuple[slice, ...]:
        """The window as an index into one example."""
        return () if self.window is None else (slice(None), *(slice(*ends) for ends in self.window))

    def __add__(self, other: Rows) -> Rows:
        if self.window == other.window or self.window is None or other.window is None:
            return replace(self, values=self.values + other.values)
        (top, bottom), (left, right) = (
            (min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(self.window, other.window, strict=True)
        )
        union = ((top, bottom), (left, right))
        total = torch.zeros(())
        for rows in (self, other):
            assert rows.window is not None  # both have one
            (first, last), (start, stop) = rows.window
            total = total + functional.pad(rows.values, (start - left, right - stop, first - top, bottom - last))
        return Rows(total, union)
