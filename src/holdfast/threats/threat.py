"""What the adversary may do: what every set offers, and what richer ones add."""

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

from holdfast.draws import Draws
from holdfast.threats.planes import Planes

__all__ = ["Climbable", "Coverable", "Gridded", "Recognisable", "Scalable", "Sloped", "Threat"]


class Threat(Protocol):
    """The set ``Z(x)`` an adversary chooses from, and how a choice ``z`` becomes the input that the model sees.

    All methods work on batches, one row an example: inputs ``x`` are ``(N, *shape)``, choices ``z`` one tensor
    ``(N, *choice)`` of numbers, of whatever shape the choices of the set have.
    """

    @property
    def name(self) -> str:
        """The threat as a user writes it, budget included: ``"linf:0.3"``."""
        ...

    def nothing(self, x: Tensor) -> Tensor:
        """``(N, *choice)`` the choice that changes nothing."""
        ...

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N, *shape)`` the input that the model sees."""
        ...

    def contains(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` bool, whether the choice is admissible, judged on what :meth:`apply` really gives."""
        ...

    def distance(self, x: Tensor, z: Tensor) -> Tensor:
        """``(N,)`` how far the choice goes, in the units of the budget."""
        ...

    def sample(self, x: Tensor, rng: Draws) -> Tensor:
        """A random admissible choice."""
        ...

    def budget(self, x: Tensor) -> Tensor:
        """``(N,)`` the budget of each example."""
        ...

    def at(self, index: Tensor) -> Self:
        """The threat against some of the examples: per-example budgets are looked up by their ``index``."""
        ...

    def near(self, x: Tensor) -> Self:
        """The same threat, for repeated use at these very inputs: a place to work out once what depends on them."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """What a result says of it."""
        ...


@runtime_checkable
class Climbable(Threat, Protocol):
    """A set to climb in: a step along a gradient leads from choice to choice."""

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """The nearest admissible choice, the box included."""
        ...

    def retract(self, z: Tensor, x: Tensor) -> Tensor:
        """An admissible choice near ``z``, found at little cost."""
        ...

    def pull(self, x: Tensor, z: Tensor, grad: Tensor) -> Tensor:
        """``(N, *choice)`` the gradient with respect to the choice, given ``(N, *shape)`` that at the input."""
        ...

    def ascend(self, z: Tensor, x: Tensor, grad: Tensor, size: Tensor) -> Tensor:
        """One projected step along a gradient with respect to the choice.

        Its length is ``size``, ``(N,)`` in the units of the budget.
        """
        ...


@runtime_checkable
class Scalable(Threat, Protocol):
    """A set that there are smaller and larger ones of."""

    def scaled(self, share: float | Tensor) -> Self:
        """The threat with its budgets multiplied by ``share``, one number or ``(N,)``."""
        ...


@runtime_checkable
class Coverable(Threat, Protocol):
    """A set that boxes of inputs cover, so that any prover of boxes proves something of it.

    All four methods are about one example ``x``, ``(*shape)``, for whom the threat has been looked up.
    """

    def cells(self, x: Tensor) -> Tensor:
        """``(M, k)`` parts that together hold every admissible choice, a row of numbers each."""
        ...

    def box(self, x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """``(M, *shape)`` lower and upper bounds of what :meth:`apply` gives, as it rounds, for a cell's choices."""
        ...

    def choose(self, x: Tensor, cells: Tensor, point: Tensor) -> Tensor:
        """``(M, *choice)`` an admissible choice of each cell; where one gives ``point``, ``(M, *shape)``, that one."""
        ...

    def split(self, cells: Tensor) -> Tensor:
        """Finer cells that together hold the given ones, equally many for each and in their order.

        None, ``(0, k)``, where boxes are as small as cells make them, as where a choice gives every point of its box.
        """
        ...


@runtime_checkable
class Sloped(Coverable, Protocol):
    """A set of whose cells more is known than boxes: what is linear in the choice."""

    def planes(self, x: Tensor, cells: Tensor) -> Planes:
        """The boxes of ``M`` cells, and how their inputs change along a choice."""
        ...


@runtime_checkable
class Gridded(Threat, Protocol):
    """A set of few numbers, that a grid spans."""

    def lattice(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """``(M, k)`` the points of a grid for one example ``x``, ``(*shape)``, for whom the threat has been looked up.

        They are the first ``k`` numbers of choices ``(D,)``; the others are those that change nothing. ``counts`` says
        how many values each of the ``k`` takes at most.
        """
        ...


@runtime_checkable
class Recognisable(Threat, Protocol):
    """A set whose inputs can be told by themselves."""

    def admits(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """``(N,)`` bool, whether some admissible choice gives the input."""
        ...
