"""A piecewise linear network and its inputs as a mixed-integer linear program.

Tjeng, Xiao and Tedrake, "Evaluating robustness of neural networks with mixed integer programming", ICLR 2019, section
4, with the bounds of every neuron in the place of one "big M": a neuron whose sign they decide is linear and costs
nothing, every other one has a variable for its value and one for its sign. Linear operations are matrices, found by
pushing the unit vectors through them; everything is in float64.

The value of a node in the network that runs is the operation's value and an error between known bounds
(:mod:`holdfast.certify.bounds.rounding`): a variable of its own. What float64 does to the coefficients on the way is
added to those bounds, and every constraint is loosened by what it may do to its sums, so that each run of the network
is a point of the program.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy  # its parts are slow to import, and come when they are used
import torch
from numpy.typing import NDArray

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.kink import Kink
from holdfast.certify.bounds.operations.pooling import MaxPool
from holdfast.certify.bounds.relaxations import Activation
from holdfast.certify.bounds.rounding import Errors, gamma, unit
from holdfast.errors import ModelError, SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from holdfast.certify.bounds.graph import Graph, Node, Operation
    from holdfast.certify.bounds.region import Region

__all__ = ["Affine", "Encoding", "Program", "constant", "encode", "largest_change"]

Array = NDArray[np.float64]

# What a few sums in float64 may be off by, of what the sizes of their terms add up to.
_LOOSE = 2.0**-46
# Unit vectors pushed through an operation together, in numbers of the value that comes out.
_PUSHED = 1 << 24


@dataclass(frozen=True, eq=False)
class Affine:
    """``matrix @ variables + constant``, a vector; later variables do not enter."""

    matrix: Any
    constant: Array

    def __len__(self) -> int:
        return len(self.constant)

    def __add__(self, other: Affine) -> Affine:
        width = max(self.matrix.shape[1], other.matrix.shape[1])
        return Affine(_wide(self.matrix, width) + _wide(other.matrix, width), self.constant + other.constant)

    def __rmul__(self, factor: float) -> Affine:
        return Affine(factor * self.matrix, factor * self.constant)

    def __sub__(self, other: Affine) -> Affine:
        return self + -1.0 * other

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Affine:
        """Some of its entries, by index or mask."""
        return Affine(self.matrix[rows], self.constant[rows])

    def apply(self, matrix: Any) -> Affine:
        """The product of a sparse matrix with it."""
        return Affine(matrix @ self.matrix, matrix @ self.constant)

    def at(self, variables: Array) -> Array:
        """Its value."""
        value: Array = _wide(self.matrix, len(variables)) @ variables + self.constant
        return value


@dataclass
class Program:
    """Variables with bounds, some of them whole numbers, and linear constraints; it grows as a network is encoded."""

    lower: list[Array] = field(default_factory=list)
    upper: list[Array] = field(default_factory=list)
    integral: list[NDArray[np.bool_]] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    floors: list[Array] = field(default_factory=list)
    width: int = 0

    def variables(self, lower: Array, upper: Array, *, integral: bool | NDArray[np.bool_] = False) -> Affine:
        """New variables between bounds, all or some of them whole numbers."""
        count, start = len(lower), self.width
        self.lower.append(lower)
        self.upper.append(upper)
        self.integral.append(np.full(count, integral))
        self.width += count
        place = (np.ones(count), (np.arange(count), np.arange(start, start + count)))
        return Affine(scipy.sparse.csr_matrix(place, shape=(count, self.width)), np.zeros(count))

    def at_least_zero(self, value: Affine) -> None:
        """The constraint that no entry is below 0 by more than rounding can have made it."""
        if len(value):
            self.rows.append(value.matrix)
            self.floors.append(-value.constant - _LOOSE * self.reach(value))

    def reach(self, value: Affine) -> Array:
        """What the sizes of its terms add up to at most."""
        lower, upper = self.bounds()
        most = np.maximum(np.abs(lower), np.abs(upper))
        found: Array = abs(_wide(value.matrix, self.width)) @ most + np.abs(value.constant)
        return found

    def constraints(self, *also: Affine) -> tuple[Any, Array]:
        """A sparse matrix and the least values of its product with the variables, further constraints included."""
        rows = [_wide(row, self.width) for row in (*self.rows, *(value.matrix for value in also))]
        floors = [*self.floors, *(-value.constant for value in also)]
        if not rows:
            return scipy.sparse.csr_matrix((0, self.width)), np.zeros(0)
        return scipy.sparse.vstack(rows, format="csr"), np.concatenate(floors)

    def bounds(self) -> tuple[Array, Array]:
        return np.concatenate(self.lower), np.concatenate(self.upper)


@dataclass(frozen=True, eq=False)
class Encoding:
    """A program together with what its variables stand for.

    Parameters
    ----------
    program : Program
        Its first variables are the network's inputs.
    inputs, output : Affine
        The network's inputs and its output.
    size : Affine
        One entry: how far the inputs are from the region's centre in its norm, or more. In L-infinity it is the radius,
        as the bounds of the inputs say all; see :func:`largest_change`.
    switches : dict
        For functions with a kink, by their nodes: the entries that have a variable for their sign, and which it is.
    """

    program: Program
    inputs: Affine
    output: Affine
    size: Affine
    switches: dict[int, Switches]

    def restricted(self, signs: Mapping[int, Tensor]) -> Program:
        """The program with some of those signs given, in the form in which :func:`encode` takes them."""
        lower, upper = self.program.bounds()
        for number, sign in signs.items():
            entries, variables = self.switches[number]
            given = _array(sign)[entries]
            lower[variables[given > 0]] = 1
            upper[variables[given < 0]] = 0
        matrix, floors = self._constraints
        return replace(self.program, lower=[lower], upper=[upper], rows=[matrix], floors=[floors])

    @cached_property
    def _constraints(self) -> tuple[Any, Array]:
        return self.program.constraints()


class Switches(NamedTuple):
    """Entries of a value, and as many whole variables: 1 where the input is positive, 0 where it is negative."""

    entries: NDArray[np.int64]
    variables: NDArray[np.int64]


def encode(
    graph: Graph,
    region: Region,
    intervals: list[Interval],
    signs: Mapping[int, Tensor] | None = None,
    *,
    whole: bool | NDArray[np.bool_] = False,
) -> Encoding:
    """The network over one set of inputs.

    Parameters
    ----------
    graph : Graph
        The network: linear operations, functions with one kink, clamps and max pooling.
    region : Region
        The inputs of one example; an L2 ball is no polytope and refused.
    intervals : list of Interval
        Bounds of all nodes, for that one example.
    signs : dict, optional
        For some functions with a kink, by their nodes, the signs that their inputs are restricted to: tensors of the
        node's shape, 1 for ``z >= 0``, -1 for ``z <= 0`` and 0 for neither.
    whole : bool or ndarray
        Which inputs, of ``(d,)``, are whole numbers.

    Returns
    -------
    Encoding

    Raises
    ------
    ModelError
        When an operation is not piecewise linear; it is named.
    SettingError
        When the region is an L2 ball.
    """
    program = Program()
    lower, upper = (_array(end) for end in (region.lower, region.upper))
    inputs = program.variables(lower, upper, integral=whole)
    size = _size(program, region, inputs)
    values: list[Affine] = []
    switches: dict[int, Switches] = {}
    errors = Errors.of(graph, [Interval(*(end.double() for end in ends)) for ends in intervals], {})
    for number, node in enumerate(graph.nodes):
        if node.operation is None:
            values.append(inputs)
            continue
        given = [values[i] for i in node.inputs]
        radius = np.zeros(torch.Size(node.shape).numel())
        if number in errors.radii and number not in errors.included:
            radius = radius + _array(errors.radii[number])
        if node.operation.linear:
            value, lost = _linear(node.operation, graph.inputs_of(node), given, [program.reach(x) for x in given])
        else:
            sign = None if signs is None else signs.get(number)
            value, lost = _bent(program, node, graph.inputs_of(node)[0], given[0], intervals[node.inputs[0]], sign)
            if isinstance(node.operation, Kink):
                open_ = _array(node.operation.undecided(intervals[node.inputs[0]])) > 0
                entries = np.flatnonzero(open_ if sign is None else open_ & (_array(sign) == 0))
                # They came last.
                switches[number] = Switches(entries, program.width - len(entries) + np.arange(len(entries)))
        radius = radius if graph.arithmetic is None else radius + lost
        values.append(_moved(program, value, radius))
    return Encoding(program, inputs, values[-1], size, switches)


def _moved(program: Program, value: Affine, radius: Array) -> Affine:
    """The value and an error of at most a radius, a new variable where that is not 0."""
    if not np.isfinite(radius).all():
        raise ModelError("rounding errors of the network have no bound")
    inexact = np.flatnonzero(radius)
    if not len(inexact):
        return value
    error = program.variables(-radius[inexact], radius[inexact])
    return value + error.apply(_selection(inexact, len(value)).T.tocsr())


def _size(program: Program, region: Region, inputs: Affine) -> Affine:
    """The distance from the centre as an expression; its variables may make it larger than it is, never smaller."""
    d, eps = len(inputs), float(region.eps)
    change = inputs - constant(_array(region.center))
    low, high = (_array(end) - _array(region.center) for end in (region.lower, region.upper))
    if region.norm == "linf":
        return constant(np.array([eps]))
    if region.norm == "l1":
        up, down = program.variables(np.zeros(d), high), program.variables(np.zeros(d), -low)
        program.at_least_zero(change - (up - down))
        program.at_least_zero((up - down) - change)
        size = (up + down).apply(scipy.sparse.csr_matrix(np.ones((1, d))))
    elif region.norm == "l0":
        changed = program.variables(np.zeros(d), np.ones(d), integral=True)
        program.at_least_zero(changed.apply(scipy.sparse.diags(high)) - change)
        program.at_least_zero(change - changed.apply(scipy.sparse.diags(low)))
        size = changed.apply(scipy.sparse.csr_matrix(np.ones((1, d))))
    else:
        raise SettingError(f"an {region.norm} ball is no polytope: linear programs take linf, l1 and l0")
    program.at_least_zero(constant(np.array([eps])) - size)
    return size


def largest_change(encoding: Encoding, region: Region) -> Affine:
    """The L-infinity distance from the centre or more, as a new variable with two constraints an input."""
    change = encoding.inputs - constant(_array(region.center))
    size = encoding.program.variables(np.zeros(1), np.array([float(region.eps)]))
    spread = size.apply(scipy.sparse.csr_matrix(np.ones((len(change), 1))))
    encoding.program.at_least_zero(spread - change)
    encoding.program.at_least_zero(spread + change)
    return size


def _linear(
    operation: Operation, shapes: tuple[tuple[int, ...], ...], given: list[Affine], reaches: list[Array]
) -> tuple[Affine, Array]:
    """A linear operation's value: the unit vectors of each input pushed through, the others 0.

    With it what float64 may have done to its coefficients, weighed by what the variables may be.
    """
    zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
    with torch.no_grad():
        bias = operation.apply(*zeros)
    total, size, terms = constant(_array(bias)), np.abs(_array(bias)), 1
    for place, (shape, value) in enumerate(zip(shapes, given, strict=True)):
        columns = []
        for units in torch.arange(len(value)).split(max(1, _PUSHED // bias.numel())):
            pushed = torch.zeros(len(units), len(value), dtype=torch.float64)
            pushed[torch.arange(len(units)), units] = 1
            inputs = [zero.expand(len(units), *zero.shape[1:]) for zero in zeros]
            inputs[place] = pushed.reshape(-1, *shape)
            with torch.no_grad():
                columns.append(scipy.sparse.csr_matrix((operation.apply(*inputs) - bias).flatten(1).numpy()))
        matrix = scipy.sparse.vstack(columns, format="csr").T.tocsr()
        total, size = total + value.apply(matrix), size + abs(matrix) @ reaches[place]
        terms += int(np.diff(matrix.indptr).max(initial=0))
    # The matrix itself is what is left of a difference from the constant.
    share = gamma(terms + 8, unit(torch.float64))
    return total, share * (size + np.abs(_array(bias)) * sum(float(reach.sum()) for reach in reaches))


def _bent(
    program: Program, node: Node, shape: tuple[int, ...], x: Affine, ends: Interval, sign: Tensor | None
) -> tuple[Affine, Array]:
    """A piecewise linear operation's value, and what float64 may have done to its coefficients."""
    lower, upper = _array(ends.lower), _array(ends.upper)
    exact = np.zeros(torch.Size(node.shape).numel())
    match node.operation:
        case MaxPool():
            return _largest(program, x, node.operation.inputs(shape).numpy(), lower, upper), exact
        case Kink(below=below, above=above):
            positive = _positive_part(program, x, lower, upper, np.zeros(len(x)) if sign is None else _array(sign))
            left, right = (torch.as_tensor(slope, dtype=torch.float64).expand(node.shape) for slope in (below, above))
            rest = (x - positive).apply(scipy.sparse.diags(_array(left)))
            value = positive.apply(scipy.sparse.diags(_array(right))) + rest
            if node.operation.relative:
                return value, exact
        case Elementwise(activation=Activation(ends=(low, high))):
            value = _clamped(program, x, lower, upper, low, high)
        case _:
            raise ModelError(
                f"node '{node.name}' is not piecewise linear: mixed-integer programs take linear operations, ReLU, "
                "leaky ReLU, absolute values, clamps and max pooling; use branch and bound"
            )
    return value, gamma(8, unit(torch.float64)) * program.reach(value)


def _positive_part(program: Program, z: Affine, lower: Array, upper: Array, sign: Array) -> Affine:
    """``max(z, 0)``: of fixed sign it is linear, otherwise it has a variable, and one that says which sign it is."""
    program.at_least_zero(z.take((sign > 0) & (lower < 0)))
    program.at_least_zero(-1.0 * z.take((sign < 0) & (upper > 0)))
    active, open_ = (lower >= 0) | (sign > 0), (lower < 0) & (upper > 0) & (sign == 0)
    total = z.apply(scipy.sparse.diags(active.astype(float)))
    if not open_.any():
        return total
    low, high, inside = lower[open_], upper[open_], z.take(open_)
    value = program.variables(np.zeros(len(low)), high)
    above = program.variables(np.zeros(len(low)), np.ones(len(low)), integral=True)
    program.at_least_zero(value - inside)
    # Where the sign is negative the value is 0, where it is positive it is z.
    program.at_least_zero(above.apply(scipy.sparse.diags(high)) - value)
    program.at_least_zero(inside + above.apply(scipy.sparse.diags(low)) - constant(low) - value)
    return total + value.apply(_selection(np.flatnonzero(open_), len(z)).T.tocsr())


def _clamped(program: Program, x: Affine, lower: Array, upper: Array, low: float, high: float) -> Affine:
    """``low + max(x - low, 0) - max(x - high, 0)``, with an end left out where no ``x`` is beyond it."""
    value = x
    for end, side in ((low, 1.0), (high, -1.0)):
        beyond = np.flatnonzero(lower < end if side > 0 else upper > end)
        if not len(beyond):
            continue
        # By how much x is beyond the end, which is taken back.
        past = side * (constant(np.full(len(beyond), end)) - x.take(beyond))
        first, last = side * (end - upper[beyond]), side * (end - lower[beyond])
        first, last = np.minimum(first, last), np.maximum(first, last)
        excess = _positive_part(
            program, past, np.nextafter(first, -np.inf), np.nextafter(last, np.inf), np.zeros(len(beyond))
        )
        value = value + side * excess.apply(_selection(beyond, len(x)).T.tocsr())
    return value


def _largest(program: Program, x: Affine, windows: NDArray[np.int64], lower: Array, upper: Array) -> Affine:
    """The largest input of each window: those that cannot be it are left out, and variables say which one is."""
    low, high = (np.where(windows >= 0, end[windows], -np.inf) for end in (lower, upper))
    best = low.argmax(1)
    contends = high > low.max(1, keepdims=True)
    contends[np.arange(len(windows)), best] = True
    open_ = np.flatnonzero(contends.sum(1) > 1)
    decided = np.ones(len(windows))
    decided[open_] = 0
    total = x.take(windows[np.arange(len(windows)), best]).apply(scipy.sparse.diags(decided))
    if not len(open_):
        return total
    low, high, contends = low[open_], high[open_], contends[open_]
    value = program.variables(low.max(1), high.max(1))
    which, place = np.nonzero(contends)
    chosen = program.variables(np.zeros(len(which)), np.ones(len(which)), integral=True)
    contender, window = x.take(windows[open_][which, place]), _selection(which, len(open_))
    program.at_least_zero(value.apply(window) - contender)
    # The chosen one is not exceeded; any other one is by no more than the bounds allow.
    gap = high.max(1)[which] - low[which, place]
    program.at_least_zero(contender + constant(gap) - chosen.apply(scipy.sparse.diags(gap)) - value.apply(window))
    total_chosen, one = chosen.apply(window.T.tocsr()), constant(np.ones(len(open_)))
    program.at_least_zero(total_chosen - one)
    program.at_least_zero(one - total_chosen)
    return total + value.apply(_selection(open_, len(windows)).T.tocsr())


def _selection(places: NDArray[np.int64], count: int) -> Any:
    """The matrix that picks those of ``count`` entries."""
    return scipy.sparse.csr_matrix((np.ones(len(places)), (np.arange(len(places)), places)), shape=(len(places), count))


def constant(value: Array) -> Affine:
    """A vector that depends on no variable."""
    return Affine(scipy.sparse.csr_matrix((len(value), 0)), value)


def _array(value: Tensor) -> Array:
    flat: Array = value.detach().double().flatten().cpu().numpy()
    return flat


def _wide(matrix: Any, width: int) -> Any:
    """The matrix with further columns of zeros."""
    if matrix.shape[1] == width:
        return matrix
    matrix = matrix.tocsr()
    return scipy.sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], width))
