"""What rounding may do: to the network that runs, and to the arithmetic of its bounds.

In the standard model of floating-point arithmetic every operation errs by at most the unit roundoff ``u`` relatively,
so a sum of ``n`` products, in any order, with fused operations or without, is off by at most

    gamma_n * sum_i |a_i b_i|,    gamma_n = n u / (1 - n u)

(Higham, "Accuracy and stability of numerical algorithms", 2002, lemma 3.1 and section 3.1). The network that runs is
therefore the ideal one with every node moved by no more than a radius that is known beforehand, and a linear bound that
goes back through it gives away ``<|coefficients|, radius>`` at every node. What the backward pass itself loses to
rounding has the same form, in the unit of its own precision, and is part of the same radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.errors import SettingError
from holdfast.rounding import gamma, unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from holdfast.certify.bounds.graph import Graph
    from holdfast.certify.bounds.rows import Rows

__all__ = [
    "REAL",
    "Arithmetic",
    "Errors",
    "Rounding",
    "check_precision",
    "dot",
    "down",
    "gamma",
    "largest",
    "nonzero",
    "outwards",
    "summed",
    "unit",
]

# Terms that are summed in the precision of their factors; the sums of such blocks are added up in float64.
_BLOCK = 64
# Roundings of sizes themselves, and of the few steps from them to a radius.
_FEW = 8


class Rounding(NamedTuple):
    """How an operation rounds.

    Parameters
    ----------
    size : Tensor
        ``(N, *shape)`` at least the sum of the sizes of all terms that an entry of the value is made of, and the
        value's own size.
    executed : int or Tensor
        How many roundings a term goes through where the network computes it; terms that are 0 for certain cause none.
    own : int
        How many it goes through in a backward pass through the operation.
    interval : int
        How many it goes through in the operation's interval, where that does not allow for them itself.
    """

    size: Tensor
    executed: int | Tensor
    own: int
    interval: int = 0


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of the network that bounds speak of.

    Parameters
    ----------
    unit : float
        Its unit roundoff; 0 for real numbers.
    tiny : float
        Its smallest positive number.
    largest : float
        Its largest number.
    """

    unit: float
    tiny: float
    largest: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Arithmetic:
        """IEEE arithmetic with rounding to nearest and gradual underflow."""
        info = torch.finfo(dtype)
        return cls(info.eps / 2, info.tiny * info.eps, info.max)


REAL = Arithmetic(0.0, 0.0, math.inf)


def check_precision(device: torch.device) -> None:
    """Refuse settings under which torch computes in less than the precision of its numbers.

    Raises
    ------
    SettingError
        It names the setting, and what to do.
    """
    reduced = None
    if torch.is_autocast_enabled(device.type):
        reduced = "autocast is on: leave it"
    elif torch.get_float32_matmul_precision() != "highest":
        reduced = "call torch.set_float32_matmul_precision('highest')"
    elif device.type == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32):
        reduced = "set torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32 to False"
    elif device.type == "cpu" and not torch.backends.mkldnn.enabled and torch.backends.nnpack.is_available():
        reduced = (
            "its convolutions may take other sums than those of products; set torch.backends.mkldnn.enabled to True"
        )
    elif float(torch.tensor(2.0**-140) * 1) == 0:
        reduced = "call torch.set_flush_denormal(False)"
    if reduced is not None:
        raise SettingError(f"torch computes in less than full precision, which nothing can be proved of: {reduced}")


def _shares(count: int | Tensor, u: float) -> float | Tensor:
    if isinstance(count, int):
        return gamma(count, u)
    worst = float(count.max()) if count.numel() else 0.0
    # In steps that are each off by less than the last rounding.
    return count * u / (1 - worst * u) * (1 + 2.0**-20) if worst * u < 1 else torch.full_like(count, math.inf)


def largest(x: Interval) -> Tensor:
    """The largest size in an interval, elementwise."""
    return torch.maximum(x.lower.abs(), x.upper.abs())


def nonzero(x: Tensor) -> Tensor:
    """1 where a number is not 0."""
    return (x != 0).to(x.dtype)


def outwards(lower: Tensor, upper: Tensor) -> Interval:
    """An interval whose ends are each the result of one rounding."""
    with torch.no_grad():
        infinity = lower.new_tensor(torch.inf)
        down, up = lower.nextafter(-infinity) - lower, upper.nextafter(infinity) - upper
    return Interval(lower + down, upper + up)


def summed(count: int) -> int:
    """How many roundings a term goes through where :func:`dot` sums that many."""
    return (count if count < 2 * _BLOCK else _BLOCK) + 4


def down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest number of a precision that is not above a float64 number; its derivative is 1."""
    rounded = value.to(dtype).clamp_max(torch.finfo(dtype).max)
    with torch.no_grad():
        step = rounded.nextafter(rounded.new_tensor(-torch.inf)) - rounded
        above = rounded.double() > value
    return rounded + torch.where(above, step, 0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """``sum_i a_i b_i`` along the last dimension, in float64.

    Off by at most ``gamma_k * sum_i |a_i b_i|``, where ``k`` is what :func:`summed` says.
    """
    a, b = torch.broadcast_tensors(a, b)
    blocks = a.shape[-1] // _BLOCK
    if blocks < 2:  # so few that the block may as well be longer
        first: Tensor = torch.linalg.vecdot(a, b)
        return first.double()
    whole = blocks * _BLOCK
    total: Tensor = torch.linalg.vecdot(
        a[..., :whole].unflatten(-1, (blocks, _BLOCK)), b[..., :whole].unflatten(-1, (blocks, _BLOCK))
    )
    rest: Tensor = torch.linalg.vecdot(a[..., whole:], b[..., whole:])
    return total.double().sum(-1) + rest.double()


@dataclass(frozen=True, eq=False)
class Errors:
    """What linear functions of nodes' values lose to rounding, for each of ``N`` examples.

    Parameters
    ----------
    radii : dict
        By node, ``(M, *shape)``: for each unit of a coefficient, for each of ``M`` examples.
    slack : dict
        By node, ``(M,)``: whatever the coefficients are, since they may have lost what is too small a number.
    examples : Tensor or None
        ``(N,)`` which of those examples these are; None for all.
    included : set
        Nodes whose radii are part of those of the sums that alone read them, where coefficients are the same.
    """

    radii: dict[int, Tensor]
    slack: dict[int, Tensor]
    examples: Tensor | None
    included: set[int]

    @classmethod
    def none(cls) -> Errors:
        return cls({}, {}, None, set())

    @classmethod
    def of(cls, graph: Graph, intervals: Sequence[Interval], planes: Mapping[int, Any]) -> Errors:
        """Those of all nodes with these bounds and planes."""
        errors = cls.none()
        for number in range(len(graph.nodes)):
            errors.add(graph, number, intervals, planes.get(number))
        return errors

    def add(self, graph: Graph, number: int, intervals: Sequence[Interval], planes: Any = None) -> Tensor | None:
        """Those of one more node, given the bounds of all before it and its planes.

        Returns how far its value may be outside of what the operation makes of the bounds before it.
        """
        if graph.arithmetic is None:
            return None
        found = _radius(graph, graph.arithmetic, number, intervals, planes)
        if found is None:
            return None
        radius, slack, outside = found
        operation = graph.nodes[number].operation
        for source in graph.nodes[number].inputs if operation is not None and operation.adds else ():
            if source in self.radii and graph.readers[source] == (number,):
                # One more rounding, of the sum of the two.
                radius = (radius + self.radii[source]) * (1 + 4 * unit(radius.dtype))
                slack = (slack + self.slack[source]) * (1 + 4 * unit(radius.dtype))
                self.included.add(source)
        self.radii[number], self.slack[number] = radius, slack
        return outside

    def lost(self, number: int, rows: Rows) -> Tensor | None:
        """``(R,)`` float64, by linear functions of a node's value; None where nothing is."""
        if number not in self.radii:
            return None
        radius, slack = self.at(number)
        radius = rows.cut(radius)
        values = rows.grouped(len(radius)).flatten(2).abs()
        lost = (values @ radius.flatten(1).unsqueeze(2))[..., 0].double()
        # A sum of numbers that are not negative, off by less than this share of itself.
        share = 1 + gamma(values.shape[2] + 2, unit(values.dtype))
        return (lost * share + slack.double().unsqueeze(1)).flatten()

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        """A node's radius ``(N, *shape)`` and slack ``(N,)``."""
        radius, slack = self.radii[number], self.slack[number]
        if self.examples is None:
            return radius, slack
        return radius.index_select(0, self.examples), slack.index_select(0, self.examples)

    def take(self, rows: Tensor) -> Errors:
        """Of some examples."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        return replace(self, examples=rows if self.examples is None else self.examples[rows])


def _radius(
    graph: Graph, arithmetic: Arithmetic, number: int, intervals: Sequence[Interval], planes: Any
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The radius of a node, what its backward pass may lose below the smallest number, and room for its interval."""
    node, readers = graph.nodes[number], graph.readers[number]
    inputs = [intervals[i] for i in node.inputs]
    found = None if node.operation is None else node.operation.rounding(planes, *inputs)
    if node.operation is not None and node.operation.relative and len(graph.readers[node.inputs[0]]) == 1:
        found = None  # it rounds the coefficients of its input relatively to themselves: see there
    # Coefficients that come from several readers are added up here, and those from a relative one have been rounded.
    first = graph.nodes[readers[0]].operation if len(readers) == 1 else None
    further = max(0, len(readers) - 1) + 2 * (first is not None and first.relative)
    if found is None and not further and node.error is None:
        return None
    if found is None:
        value = intervals[0] if node.operation is None else node.operation.interval(*inputs)
        found = Rounding(largest(value), 0, 0)
    own = torch.finfo(found.size.dtype)
    u, smallest = own.eps / 2, own.tiny * own.eps
    # The size itself has been rounded as often as the value, and what follows a few times.
    most = (found.size * (1 + gamma(found.own + found.interval + _FEW, u))).detach()
    executed, outside = torch.zeros_like(most), None
    rounds = node.executed and not (isinstance(found.executed, int) and found.executed == 0)
    if rounds:
        share = _shares(found.executed, arithmetic.unit)
        executed = most * share + 2 * found.executed * arithmetic.tiny
        executed = executed.masked_fill(~(most * (1 + share) <= arithmetic.largest), torch.inf)
    if node.error is not None:
        error = node.error(arithmetic.unit, *inputs, *(intervals[i] for i in node.also))
        executed = executed + (error * (1 + gamma(_FEW, u))).detach()
    if found.interval or node.error is not None or rounds:
        # Two more roundings: of the ends when they are moved.
        outside = executed + most * gamma(found.interval + 2, u) + (found.interval + 2) * smallest
    counts = found.own + further + 2
    radius = executed + most * gamma(counts, u)
    reach = sum((largest(x).flatten(1).sum(1) for x in inputs), most.flatten(1).sum(1) + most[0].numel()).detach()
    return radius.masked_fill(radius.isnan(), torch.inf), counts * smallest * 4 * reach, outside
