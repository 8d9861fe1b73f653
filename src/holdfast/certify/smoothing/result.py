"""What smoothing found out about a set of examples."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import SettingError

__all__ = ["ABSTAINED", "SmoothingResult", "average_certified_radius", "certified_accuracy"]

ABSTAINED = -1
"""The class of an example about which nothing is certified."""


def certified_accuracy(radius: Tensor, correct: Tensor, at: float) -> float:
    """The share of all examples that are correct with a radius of ``at`` or more; from ``(N,)`` radii and bools."""
    return float((correct & (radius >= at)).double().mean())


def average_certified_radius(radius: Tensor, correct: Tensor) -> float:
    """The mean of all examples' radii, those of examples that are not correct counting 0 (Zhai et al., ICLR 2020)."""
    return float(torch.where(correct, radius, 0.0).mean())


@dataclass(frozen=True, eq=False)
class SmoothingResult:
    """Certificates of the examples, each wrong with probability at most ``alpha``.

    Parameters
    ----------
    procedure : str
        ``"sequential"``; ``"fixed"``, in which every example costs all samples; or ``"exact votes"``, without sampling.
    norm : str
        The distance that radii are measured in.
    alpha : float
        The chance that an example's statement is false; 0 where there is no sampling.
    radii : tuple of float or None
        The radii that were asked about, so that ``radius`` is one of these; None where it is the largest proved.
    index : Tensor
        ``(N,)`` int64, the examples' positions in their data set.
    prediction : Tensor
        ``(N,)`` int64, the smoothed classifier's class, or -1 where it abstained: nothing was certified.
    radius : Tensor
        ``(N,)`` float64, within which the class stays the same; 0 where it abstained.
    samples : Tensor
        ``(N,)`` int64, what each example cost, the choice of the class included.
    limit : int
        The most that an example may cost.
    y : Tensor or None
        ``(N,)`` int64, the labels, where they are known.
    forwards : int
        Examples passed through the model.
    """

    procedure: str
    norm: str
    alpha: float
    radii: tuple[float, ...] | None
    index: Tensor
    prediction: Tensor
    radius: Tensor
    samples: Tensor
    limit: int
    y: Tensor | None
    forwards: int

    @property
    def abstained(self) -> Tensor:
        """``(N,)`` bool."""
        return self.prediction == ABSTAINED

    @property
    def exhausted(self) -> Tensor:
        """``(N,)`` bool: whether the example cost all samples, as each does whose largest radius is asked for."""
        return self.samples == self.limit

    @property
    def correct(self) -> Tensor:
        """``(N,)`` bool; an abstention is not correct.

        Raises
        ------
        SettingError
            When the labels are not known.
        """
        if self.y is None:
            raise SettingError("y: accuracy needs labels; give them to certify")
        return self.prediction == self.y

    @property
    def average_certified_radius(self) -> float:
        """See :func:`average_certified_radius`; from a grid of radii, a lower bound."""
        return average_certified_radius(self.radius, self.correct)

    def certified_accuracy(self, radius: float) -> float:
        """The share proved correct everywhere within ``radius``; between radii asked about, a lower bound."""
        return certified_accuracy(self.radius, self.correct, radius)

    def curve(self, radii: tuple[float, ...] | None = None) -> tuple[tuple[float, float], ...]:
        """Pairs of a radius and the certified accuracy there: at ``radii``, or else where any example's radius lies."""
        radii = radii or self.radii or tuple(self.radius.unique().tolist())
        return tuple((radius, self.certified_accuracy(radius)) for radius in radii)

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain numbers and lists."""
        labelled = (
            {}
            if self.y is None
            else {
                "y": self.y.tolist(),
                "curve": [list(point) for point in self.curve()],
                "average_certified_radius": self.average_certified_radius,
            }
        )
        return {
            "procedure": self.procedure,
            "norm": self.norm,
            "alpha": self.alpha,
            "radii": None if self.radii is None else list(self.radii),
            "index": self.index.tolist(),
            "prediction": self.prediction.tolist(),
            "radius": self.radius.tolist(),
            "samples": self.samples.tolist(),
            "limit": self.limit,
            "exhausted": int(self.exhausted.sum()),
            "abstained": int(self.abstained.sum()),
            "forwards": self.forwards,
            **labelled,
        }
