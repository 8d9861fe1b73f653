"""Norm balls, intersected with a box."""

import math
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Self, cast

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError
from holdfast.threats import l0, l1, l2, linf
from holdfast.threats.box import TOLERANCE, Bound, Box
from holdfast.threats.budget import Budget, parse_budget, written
from holdfast.threats.norm import Norm, column, each, safe_divide

__all__ = ["L0", "L1", "L2", "Ball", "Linf"]

_NORMS: dict[str, ModuleType] = {norm.name: norm for norm in (linf, l2, l1, l0)}


@dataclass(frozen=True, eq=False, repr=False)
class Ball:
    """All inputs within ``eps`` of the clean one in a norm, and inside the box.

    The choice ``z`` is the perturbation. Make one with :func:`Linf`, :func:`L2`, :func:`L1` or :func:`L0`.

    Parameters
    ----------
    norm : str
        ``"linf"``, ``"l2"``, ``"l1"`` or ``"l0"``.
    eps : float or Tensor
        The budget: one number, or ``(M,)`` numbers, one for each of ``M`` examples.
    box : Box
        The bounds of inputs.
    """

    norm: str
    eps: Budget
    box: Box
    # What `near` has worked out, and for which inputs: a cache that nobody can tell from its absence. It is no
    # argument, so that a ball made from this one by `replace`, with other budgets or another box, starts without it.
    _near: tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        eps = self.eps
        if isinstance(eps, float):
            return f"{self.norm}:{written(eps)}"
        return f"{self.norm}:{eps.min():g}..{eps.max():g}" if len(eps) else f"{self.norm}:no budgets"

    def __repr__(self) -> str:
        return f"{self.norm.capitalize()}(eps={self.name.partition(':')[2]}, box={self.box})"

    @property
    def _norm(self) -> Norm:
        return cast("Norm", _NORMS[self.norm])

    def _set(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ball's radius and the box around ``x``, as the norm's functions take them."""
        if self._near is not None and self._near[0] is x:
            return self._near[1]
        radius = column(self.budget(x), x)
        return radius, *self._norm.cut(radius, *self.box.around(x))

    def nothing(self, x: Tensor) -> Tensor:
        """No change at all."""
        return torch.zeros_like(x)

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """``x + z``, clipped to the box so that rounding never leaves it."""
        moved = x + z
        return self.box.clip(moved, out=moved)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """The Euclidean projection of ``z`` onto ball and box together, exact for every norm."""
        return self._norm.project(z, *self._set(x))

    def retract(self, z: Tensor, x: Tensor) -> Tensor:
        """Project onto the ball and then clip to the box: feasible, cheaper, and what the published attacks do."""
        return self._norm.retract(z, *self._set(x))

    def pull(self, x: Tensor, z: Tensor, grad: Tensor) -> Tensor:
        """The gradient at the input itself: a choice is added, and what the box clips is clipped back by each step."""
        return grad

    def steepest(self, grad: Tensor) -> Tensor:
        """The point of the unit ball with ``<grad, d> = dual_norm(grad)``; 0 where the gradient is."""
        return self._norm.steepest(grad)

    def dual_norm(self, grad: Tensor) -> Tensor:
        """``(N,)`` the dual norm: L1 for L-infinity, L2 for L2, L-infinity for L1 and for the hull of L0."""
        return self._norm.dual(grad)

    def ascend(self, z: Tensor, x: Tensor, grad: Tensor, size: Tensor) -> Tensor:
        """One projected step: along :meth:`steepest` for L-infinity and L2, on the best few coordinates for L1, L0."""
        return self._norm.ascend(z, grad, column(size, x), *self._set(x))

    def maximize(self, grad: Tensor, x: Tensor) -> Tensor:
        """The perturbation that maximises ``<grad, z>`` over ball and box, in closed form for every norm."""
        return self._norm.maximize(grad, *self._set(x))

    def to_plane(self, z: Tensor, x: Tensor, grad: Tensor, gap: Tensor) -> Tensor:
        """The shortest move in this norm, whatever the budget, that keeps ``z`` in the box and gains ``gap``.

        Exact for every norm: ``<grad, move>`` is ``gap``, ``(N,)``, or as near as the box allows, and then every
        coordinate that matters ends at its bound. Where the gradient is 0, or the gap is no number, nothing moves.
        """
        lower, upper = self.box.around(x)
        gap = gap.nan_to_num(0.0)
        # At the scale of its largest entry no gradient is too small, or too large, for what follows.
        scale = grad.abs().amax(each(grad)) * gap.sign()
        move = self._norm.to_plane(
            safe_divide(grad, column(scale, grad)),
            safe_divide(gap.double(), scale.double()),
            (lower - z).clamp_max(0),
            (upper - z).clamp_min(0),
        )
        # Without a box a plane may be farther away than numbers go; these can still be added and squared.
        most = torch.finfo(grad.dtype).max ** 0.5 / 2
        return move.clamp(-most, most)

    def sample(self, x: Tensor, rng: Draws) -> Tensor:
        """Uniform in the ball, then clipped; for L0 uniform values at random coordinates."""
        return self._norm.sample(rng, *self._set(x), like=x)

    def sample_boundary(self, x: Tensor, rng: Draws) -> Tensor:
        """A random point at the distance ``eps``, clipped to the box; for L0 random coordinates at random bounds."""
        radius, lower, upper = self._set(x)
        return self._norm.sphere(rng, radius, x).clamp(lower, upper)

    def length(self, change: Tensor) -> Tensor:
        """``(N,)`` the norm of each row."""
        return self._norm.length(change)

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` the norm of what the choice really changes."""
        return self.length(self.apply(x, z) - x)

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` bool, whether :meth:`admits` takes the input that the choice gives."""
        return self.admits(self.apply(x, z), x)

    def admits(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """``(N,)`` bool: within ``eps`` and inside the box, both to 1e-6 (relative to budgets above 1).

        The rounding of ``x_adv`` itself is forgiven: each coordinate's change counts less half a unit in the last
        place, which matters for values far larger than the budget (pixels up to 255) and in half precision.
        """
        inside = self.box.excess(x_adv) <= TOLERANCE
        if x_adv is x:
            return inside
        rounding = torch.finfo(x_adv.dtype).eps
        adv, clean = x_adv.double(), x.double()
        change = ((adv - clean).abs() - rounding / 2 * adv.abs()).clamp_min(0)
        budget = self.budget(clean)
        near = self._norm.length(change) <= budget + TOLERANCE * budget.clamp_min(1) + 2 * rounding * budget
        return near & inside

    def budget(self, x: Tensor) -> Tensor:
        """``(N,)`` the budget of each row of ``x``."""
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)
        if eps.dim() and len(eps) not in (1, len(x)):
            raise DataError(f"{len(eps)} budgets for {len(x)} examples: give one number, or one for each example")
        return eps.expand(len(x))

    def at(self, index: Tensor) -> Self:
        """The ball around the examples ``index``; itself where all share one budget."""
        if isinstance(self.eps, float):
            return self
        if len(index) and int(index.max()) >= len(self.eps):
            raise DataError(f"example {int(index.max())} has no budget: eps holds only {len(self.eps)}")
        return replace(self, eps=self.eps.to(index.device)[index])

    def scaled(self, share: float | Tensor) -> Self:
        """The same ball with its budget multiplied by ``share``, one number or ``(N,)``; whole coordinates in L0."""
        if isinstance(share, float) and share == 1.0:
            return self
        eps = self.eps * share
        if self.norm == "l0":
            eps = eps.ceil() if isinstance(eps, Tensor) else float(math.ceil(eps))
        return replace(self, eps=eps)

    def near(self, x: Tensor) -> Self:
        """The same ball, quicker at these very inputs: what depends on them alone is worked out once."""
        ball = replace(self)
        object.__setattr__(ball, "_near", (x, self._set(x)))
        return ball

    def to_dict(self) -> dict[str, Any]:
        """Norm, budget and box in plain numbers and lists, None for a bound that is not there: JSON has no infinity."""

        def plain(value: Any) -> Any:
            if isinstance(value, Tensor):
                value = value.tolist()
            if isinstance(value, list):
                return [plain(v) for v in value]
            return value if math.isfinite(value) else None

        return {"norm": self.norm, "eps": plain(self.eps), "box": [plain(self.box.lower), plain(self.box.upper)]}


BoxArgument = Box | tuple[Bound, Bound] | None


def Linf(eps: float | str | Tensor, box: BoxArgument = (0.0, 1.0)) -> Ball:
    """Every coordinate may change by ``eps``.

    Parameters
    ----------
    eps : float, str or Tensor
        The budget in input units: a number, a string such as ``"8/255"``, or ``(N,)`` numbers, one an example.
        An infinite one, ``"inf"``, asks minimum-norm attacks for the nearest adversarial input.
    box : pair, Box or None
        The bounds of inputs: numbers or per-feature tensors; None for none.

    Returns
    -------
    Ball

    Raises
    ------
    SettingError
        When the budget or the box makes no sense.
    """
    return Ball("linf", parse_budget(eps), Box.of(box))


def L2(eps: float | str | Tensor, box: BoxArgument = (0.0, 1.0)) -> Ball:
    """The change's Euclidean norm is at most ``eps``; parameters as for :func:`Linf`."""
    return Ball("l2", parse_budget(eps), Box.of(box))


def L1(eps: float | str | Tensor, box: BoxArgument = (0.0, 1.0)) -> Ball:
    """The absolute changes sum to at most ``eps``; parameters as for :func:`Linf`."""
    return Ball("l1", parse_budget(eps), Box.of(box))


def L0(eps: float | str | Tensor, box: BoxArgument = (0.0, 1.0)) -> Ball:
    """At most ``eps`` coordinates change, each anywhere inside the box; parameters as for :func:`Linf`.

    Raises
    ------
    SettingError
        When the budget is not a whole number, or the box leaves a coordinate unbounded.
    """
    budget = parse_budget(eps)
    counts = torch.as_tensor(budget, dtype=torch.float64).flatten()
    if len(broken := counts[counts.isfinite() & (counts % 1 != 0)]):
        raise SettingError(f"eps: an L0 budget counts coordinates, so {float(broken[0]):g} must be a whole number")
    ball = Ball("l0", budget, Box.of(box))
    if not ball.box.bounded:
        raise SettingError(
            "box: an L0 budget needs a bounded box, since nothing else limits how far a coordinate moves"
        )
    return ball
