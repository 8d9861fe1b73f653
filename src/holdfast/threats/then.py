"""One set after another: an image is moved first, and then a norm ball adds to what it has become."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.rounding import unit
from holdfast.threats.ball import Ball
from holdfast.threats.planes import Planes
from holdfast.threats.threat import Climbable, Gridded, Sloped

__all__ = ["Then"]


class _First(Climbable, Sloped, Gridded, Protocol):
    """A set of few parameters, ``(N, K)``, to climb in, to cover and to look through."""


@dataclass(frozen=True, eq=False)
class Then:
    """What a first set makes of an input, and a norm ball of that.

    The choice is ``(N, K + D)``: the ``K`` numbers of the first set's, then the perturbation of all ``D`` coordinates.
    The budget is 1, and the distance of a choice the larger of the shares that it takes of both budgets.

    Parameters
    ----------
    first : threat
        A set of a few parameters, such as :class:`~holdfast.threats.Spatial`.
    ball : Ball
        Of finite budgets; around what the first set makes, and inside the ball's own box.

    Raises
    ------
    SettingError
        When a budget of the ball is infinite.
    """

    first: _First
    ball: Ball

    def __post_init__(self) -> None:
        if not bool(torch.as_tensor(self.ball.eps).isfinite().all()):
            raise SettingError(f"{self.ball.name}: a ball that follows something else needs a finite budget")

    @property
    def name(self) -> str:
        return f"{self.first.name},{self.ball.name}"

    def nothing(self, x: Tensor) -> Tensor:
        """``(N, K + D)`` zeros."""
        return _joined(self.first.nothing(x), torch.zeros_like(x))

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """The input moved, then perturbed, then clipped."""
        parameters, change = _parts(x, z)
        return self.ball.apply(self.first.apply(x, parameters), change)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """The nearest parameters, and the nearest perturbation of what they give."""
        parameters, change = _parts(x, z)
        parameters = self.first.project(parameters, x)
        return _joined(parameters, self.ball.project(change, self.first.apply(x, parameters)))

    def retract(self, z: Tensor, x: Tensor) -> Tensor:
        """Both retracted, likewise."""
        parameters, change = _parts(x, z)
        parameters = self.first.retract(parameters, x)
        return _joined(parameters, self.ball.retract(change, self.first.apply(x, parameters)))

    def pull(self, x: Tensor, z: Tensor, grad: Tensor) -> Tensor:
        """The gradients with respect to the parameters and to the perturbation."""
        parameters, change = _parts(x, z)
        moved = self.first.apply(x, parameters)
        return _joined(self.first.pull(x, parameters, grad), self.ball.pull(moved, change, grad))

    def ascend(self, z: Tensor, x: Tensor, grad: Tensor, size: Tensor) -> Tensor:
        """A step in both, each by the same share of its budget."""
        parameters, change = _parts(x, z)
        slope, grad = _parts(x, grad)
        parameters = self.first.ascend(parameters, x, slope, size)
        moved = self.first.apply(x, parameters)
        return _joined(parameters, self.ball.ascend(change, moved, grad, size * self.ball.budget(x)))

    def sample(self, x: Tensor, rng: Draws) -> Tensor:
        """Random parameters, and a random perturbation of what they give."""
        parameters = self.first.sample(x, rng)
        return _joined(parameters, self.ball.sample(self.first.apply(x, parameters), rng))

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` the larger share of a budget; infinite where there is none and it is used."""
        parameters, change = _parts(x, z)
        length, budget = self.ball.distance(self.first.apply(x, parameters), change), self.ball.budget(x)
        share = torch.where(length > 0, length / budget, length)
        return torch.maximum(share, self.first.distance(x, parameters).to(share.dtype))

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` bool, whether both sets contain their parts of the choice."""
        parameters, change = _parts(x, z)
        moved = self.first.apply(x, parameters)
        return self.first.contains(x, parameters) & self.ball.contains(moved, change) & ~z.isnan().any(1)

    def budget(self, x: Tensor) -> Tensor:
        """``(N,)`` ones: all of both budgets."""
        return x.new_ones(len(x))

    def at(self, index: Tensor) -> Self:
        return type(self)(self.first.at(index), self.ball.at(index))

    def near(self, x: Tensor) -> Self:
        return type(self)(self.first.near(x), self.ball)

    def to_dict(self) -> dict[str, Any]:
        """What the first set says, and what the ball does under ``then``."""
        return {**self.first.to_dict(), "then": self.ball.to_dict()}

    def lattice(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """That of the first set, without a perturbation."""
        return self.first.lattice(x, counts)

    def cells(self, x: Tensor) -> Tensor:
        """Those of the first set."""
        return self.first.cells(x)

    def box(self, x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes of the first set, wider by the smallest box around the ball on every side."""
        planes = self.planes(x, cells)
        return planes.lower.to(x.dtype), planes.upper.to(x.dtype)

    def planes(self, x: Tensor, cells: Tensor) -> Planes:
        """The planes of the first set, farther apart by the ball on either side."""
        planes, reach = self.first.planes(x, cells), self._reach(x)
        lower, upper = self._within(planes.lower.to(x.dtype) - reach), self._within(planes.upper.to(x.dtype) + reach)
        # What is inside the box already is clipped by no more than it was perturbed.
        outside = planes.lower - self._within(planes.lower), planes.upper - self._within(planes.upper)
        rounding = unit(x.dtype) * (torch.maximum(lower.abs(), upper.abs()).double() + torch.finfo(x.dtype).tiny)
        wider = reach.double() + torch.maximum(outside[0].abs(), outside[1].abs()) + 2 * rounding
        floor, ceiling = planes.floor - wider, planes.ceiling + wider
        return Planes(lower.double(), upper.double(), planes.reach, planes.slope, floor, ceiling).closer()

    def choose(self, x: Tensor, cells: Tensor, point: Tensor) -> Tensor:
        """The first set's choice, and the perturbation that goes from what it gives towards the point."""
        inputs = x.expand(len(cells), *x.shape)
        parameters = self.first.choose(x, cells, point)
        moved = self.first.apply(inputs, parameters)
        return _joined(parameters, self.ball.project(point - moved, moved))

    def split(self, cells: Tensor) -> Tensor:
        """The first set's cells, finer."""
        return self.first.split(cells)

    def _reach(self, x: Tensor) -> Tensor:
        """By how much the ball may change a coordinate of one input."""
        budget = self.ball.budget(x.unsqueeze(0))[0]
        if self.ball.norm == "l0":
            return torch.where(budget > 0, torch.inf, budget)
        # Projections onto spheres may end as far outside of them.
        return budget if self.ball.norm == "linf" else budget * (1 + 4 * torch.finfo(x.dtype).eps)

    def _within(self, x: Tensor) -> Tensor:
        return self.ball.box.clip(x)


def _joined(parameters: Tensor, change: Tensor) -> Tensor:
    return torch.cat([parameters, change.flatten(1).to(parameters.dtype)], dim=1)


def _parts(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The parameters, and the perturbation in shape and precision of the inputs."""
    count = z.shape[1] - x.shape[1:].numel()
    return z[:, :count], z[:, count:].reshape(x.shape).to(x.dtype)
