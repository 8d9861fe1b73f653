"""Where a model does what has no derivative of use, and what stands in for it there."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Key", "Plan", "Site"]

# What is done, the shape of a row, and how many of that kind and shape came before it in the pass.
Key = tuple[str, tuple[int, ...], int]


@dataclass(frozen=True)
class Site:
    """One operation of a model that may need another derivative than its own.

    Parameters
    ----------
    kind : str
        What it does, in words.
    where : str
        The module of the model that does it.
    soft : bool
        Whether it is given another derivative.
    scale : float
        How wide its smooth slope is, in the units of what it reads.
    jumps : bool
        Whether it goes in steps: a step that others even out, as a ReLU written as ``x * (x > 0)`` does, is a kink of
        the model, whose own derivative is right.
    """

    kind: str
    where: str
    soft: bool
    scale: float = 1.0
    jumps: bool = False

    def decided(self, soft: bool) -> Site:
        return replace(self, soft=soft)


Plan = dict[Key, Site]
