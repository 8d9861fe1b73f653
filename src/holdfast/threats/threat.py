"""What the adversary may do."""

from typing import Any, Protocol, Self

from torch import Tensor

from holdfast.draws import Draws

__all__ = ["Threat"]


class Threat(Protocol):
    """The set ``Z(x)`` an adversary chooses from, and how a choice ``z`` becomes the input that the model sees.

    All methods work on batches: ``x``, ``z`` and gradients are ``(N, ...)``, one row an example.
    """

    @property
    def name(self) -> str:
        """The threat as a user writes it, budget included: ``"linf:0.3"``."""
        ...

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """The input the model sees."""
        ...

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """The nearest admissible choice, the box included."""
        ...

    def retract(self, z: Tensor, x: Tensor) -> Tensor:
        """An admissible choice near ``z``, found in the order of the published attacks: the ball, then the box."""
        ...

    def steepest(self, grad: Tensor) -> Tensor:
        """``argmax <grad, d>`` over the unit set: the equality case of Hölder's inequality."""
        ...

    def dual_norm(self, grad: Tensor) -> Tensor:
        """``(N,)`` the value of that maximum."""
        ...

    def ascend(self, z: Tensor, x: Tensor, grad: Tensor, size: Tensor) -> Tensor:
        """One step of projected gradient ascent, of length ``size``, ``(N,)`` in the units of the budget."""
        ...

    def maximize(self, grad: Tensor, x: Tensor) -> Tensor:
        """``argmax <grad, z>`` over ``Z(x)``, exactly: the worst case of a linear model."""
        ...

    def sample(self, x: Tensor, rng: Draws) -> Tensor:
        """A random admissible choice."""
        ...

    def sample_boundary(self, x: Tensor, rng: Draws) -> Tensor:
        """A random choice that spends the whole budget before it is clipped to the box."""
        ...

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """``(N,)`` how far an input is from the clean one, in the units of the budget."""
        ...

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """``(N,)`` bool, whether the input is admissible, judged on the final input."""
        ...

    def budget(self, x: Tensor) -> Tensor:
        """``(N,)`` the budget of each example."""
        ...

    def at(self, index: Tensor) -> Self:
        """The threat against some of the examples: per-example budgets are looked up by their ``index``."""
        ...

    def scaled(self, share: float | Tensor) -> Self:
        """The threat with its budgets multiplied by ``share``, one number or ``(N,)``."""
        ...

    def near(self, x: Tensor) -> Self:
        """The same threat, for repeated use at these very inputs: a place to work out once what depends on them."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """What a result says of it."""
        ...
