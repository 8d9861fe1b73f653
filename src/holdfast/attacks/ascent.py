"""Projected gradient ascent and nothing else: the inner problem of training."""

from collections.abc import Callable

from torch import Tensor

from holdfast.models.query import Query
from holdfast.threats import Climbable

__all__ = ["climb"]


def climb(
    query: Query,
    threat: Climbable,
    x: Tensor,
    z: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    steps: int,
    step_size: Tensor,
) -> Tensor:
    """Take steps of fixed length from a choice, and return the last.

    The iteration of :class:`~holdfast.attacks.PGD` without its record of the best input seen, which would cost one more
    forward pass: what training minimises at is where the ascent ends.

    Parameters
    ----------
    query : Query
        The model, entered as a context manager.
    threat : Climbable
        What may be done; its budgets are those of these rows.
    x, z : Tensor
        ``(N, ...)`` clean inputs and ``(N, *choice)`` where to start, at most a batch of the query.
    objective : callable
        Maps logits ``(N, K)`` to values ``(N,)``, which are raised.
    steps : int
        Each costs a forward and a backward pass.
    step_size : Tensor
        ``(N,)`` in the units of the budget.

    Returns
    -------
    Tensor
        ``(N, *choice)`` the admissible choice at which the ascent ends.
    """
    for _ in range(steps):
        grad = threat.pull(x, z, query.gradient(threat.apply(x, z), objective).grad)
        z = threat.ascend(z, x, grad, step_size)
    return z
