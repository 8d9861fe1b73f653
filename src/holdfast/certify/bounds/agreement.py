"""Whether a captured graph computes what its model does.

A graph that has lost an operation agrees with its model wherever that operation changes nothing: a lost ReLU where its
unit is active. So the two are compared where units switch: at the given inputs, at corners of the sets that are to be
certified and inside them, and at pairs of points to both sides of the inputs, near and far.

How far two right answers may lie apart depends on how a network passes rounding on: a normalisation of nearly equal
values much more than a sum. Where they differ by more than a few roundings of the answer itself, the graph is asked
again with each value on the way moved by one rounding, up or down: what the answer does then is what rounding does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.relaxations import Steps
from holdfast.errors import ModelError
from holdfast.words import reason

if TYPE_CHECKING:
    from holdfast.certify.bounds.graph import Graph

__all__ = ["check", "probes"]

# How many of the inputs, and of the sets, are looked at.
_GIVEN = 3
# How far to both sides of the inputs, in units of their largest entry.
_REACHES = (1.0, 100.0, 10.0, 0.1, 1e4, 0.01, 1e3)
# As many rows as have about this many values in all nodes, within limits.
_VALUES, _FEWEST, _MOST = 1 << 21, 10, 64
# How many values of a graph are held at a time.
_HELD = 1 << 25
# Right answers may lie this many roundings apart: sums of thousands of terms, taken in two orders.
_ROUNDINGS = 64
# How often rounding is tried out.
_TRIALS = 2

# What a graph says to leave out, beyond the rounding of constants: the share of masked scores in a softmax.
_LEFT_OUT = 1e-5
_MASKS = (
    "a softmax masks scores by a number that is not far below the others; mask them with -inf, or with the least "
    "number of the precision"
)
_WRONG = "the captured graph does not compute what the model does"


def check(graph: Graph, model: nn.Module, x: Tensor, within: Interval | None = None) -> None:
    """Refuse a graph that computes anything but what the model does.

    Parameters
    ----------
    graph : Graph
        What was captured.
    model : nn.Module
        In evaluation mode.
    x : Tensor
        ``(N, *shape)`` inputs, at least one.
    within : Interval, optional
        Ends of boxes of inputs that are to be certified, ``(M, *shape)``.

    Raises
    ------
    ModelError
        When the two differ: it says whether rows depend on one another, the model's answers change from call to call,
        or the graph is wrong. Also when the model does not return ``(N, K)``.
    """
    near, far = probes(x, within, min(max(_VALUES // _size(graph), _FEWEST), _MOST))
    with torch.no_grad():
        # In two calls of different sizes: what the first leaves behind, the second may show.
        for rows in (near, far):
            expected = _answer(model, rows)
            found = _run(graph, rows)
            if found.shape != expected.shape:
                raise ModelError(f"{_WRONG}: it returns {found.shape[1]} values, and the model {expected.shape[1]}")
            gaps = _gaps(expected, found)
            allowed = _ROUNDINGS * _eps(graph, x.dtype) * torch.maximum(_largest(expected), _largest(found))
            unsure = (gaps > allowed).nonzero()[:, 0]
            if len(unsure):
                left_out = _leaves_out(graph, rows[unsure])
                if rows is near and bool(left_out.any()):
                    raise ModelError(_MASKS)
                allowed[unsure[left_out]] = torch.inf
                unsure = unsure[~left_out]
            if len(unsure):
                allowed[unsure] += _ROUNDINGS * _wobble(graph, rows[unsure], found[unsure])
            if bool((gaps > allowed).any()):
                raise ModelError(_reason(model, rows, expected, int((gaps - allowed).argmax())))
            # Far away, overflow comes sooner in one way of writing a function than in another.
            if rows is near and not torch.equal(expected.isfinite(), found.isfinite()):
                raise ModelError(f"{_WRONG}: at one of the inputs, one of them returns NaN or infinity")


def probes(x: Tensor, within: Interval | None, count: int) -> tuple[Tensor, Tensor]:
    """Inputs to compare two networks at, always the same ones.

    About ``count``, but no fewer than it takes to look at every kind.

    Returns
    -------
    tuple of Tensor
        ``(R, *shape)`` the first inputs, corners of the first boxes and points inside; ``(S, *shape)`` pairs of points
        to both sides of an input.
    """
    generator = torch.Generator().manual_seed(0)
    given = x[:_GIVEN]
    near = [given]
    if within is not None:
        low, high = (end[:_GIVEN].to(x) for end in within)
        share = torch.rand(low.shape, generator=generator, dtype=torch.float64).to(x)
        corner = share < 0.5
        near += [torch.where(corner, low, high), torch.where(corner, high, low), torch.lerp(low, high, share)]
    centers = given.nan_to_num(0.0, 0.0, 0.0)
    reach = (float(centers.abs().amax()) if centers.numel() else 0.0) or 1.0
    far = []
    for pair in range(max((count - sum(map(len, near))) // 2, len(_REACHES) // 2)):
        step = torch.randn(x.shape[1:], generator=generator, dtype=torch.float64)
        # Every other pair is of corners of a cube.
        step = ((step.sign() if pair % 2 else step) * reach * _REACHES[pair % len(_REACHES)]).to(x)
        center = centers[pair % len(centers)]
        far += [center + step, center - step]
    return torch.cat(near), torch.stack(far)


def _eps(graph: Graph, dtype: torch.dtype) -> float:
    """Of the least precision that anything on the way is rounded to: where it is, one rounding before may decide."""
    steps = [node.operation.activation for node in graph.nodes if isinstance(node.operation, Elementwise)]
    return max(torch.finfo(dtype).eps, *(2 * step.unit for step in steps if isinstance(step, Steps)), 0.0)


def _size(graph: Graph) -> int:
    """How many values one input has in all nodes."""
    return max(sum(math.prod(node.shape) for node in graph.nodes), 1)


def _answer(model: nn.Module, rows: Tensor) -> Tensor:
    """``(R, K)`` what the model says, which must not reach the rows."""
    try:
        answer = model(rows.clone())
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(
            f"the network takes one input, but fails on a batch of {len(rows)}: {reason(error)}"
        ) from error
    if not isinstance(answer, Tensor):
        raise ModelError(f"the network returns a {type(answer).__name__}; bounds need one tensor (N, K)")
    if answer.dim() != 2 or len(answer) != len(rows) or answer.shape[1] == 0:
        raise ModelError(
            f"the network returns a tensor of shape {tuple(answer.shape)} for {len(rows)} inputs; bounds need logits "
            "(N, K)"
        )
    return answer


def _run(graph: Graph, rows: Tensor) -> Tensor:
    return torch.cat([graph(piece) for piece in rows.split(max(_HELD // _size(graph), 1))])


def _wobble(graph: Graph, rows: Tensor, found: Tensor) -> Tensor:
    """``(R,)`` how far answers move when every value on the way moves by a rounding; infinity where they overflow."""
    generator = torch.Generator().manual_seed(1)
    moved = [_moved(graph, rows, generator) for _ in range(_TRIALS)]
    gaps = [torch.where((a.isfinite() >= found.isfinite()).all(1), _gaps(a, found), torch.inf) for a in moved]
    return torch.stack(gaps).amax(0)


def _moved(graph: Graph, rows: Tensor, generator: torch.Generator) -> Tensor:
    eps = torch.finfo(rows.dtype).eps
    values: list[Tensor] = []
    for node in graph.nodes:
        value = rows if node.operation is None else node.operation.apply(*(values[i] for i in node.inputs))
        sign = torch.randint(2, value.shape[1:], generator=generator).to(value) * 2 - 1
        values.append(value * (1 + eps * sign))
    return values[-1]


def _leaves_out(graph: Graph, rows: Tensor) -> Tensor:
    """``(R,)`` bool, where the graph itself says to be another function, were there no rounding."""
    found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    values = graph.values(rows)
    for node, value in zip(graph.nodes, values, strict=True):
        if node.error is not None:
            points = (Interval(values[i], values[i]) for i in (*node.inputs, *node.also))
            found |= (node.error(0.0, *points) > _LEFT_OUT * (1 + value.abs())).flatten(1).any(1)
    return found


def _gaps(a: Tensor, b: Tensor) -> Tensor:
    """``(R,)`` the largest difference of two answers where both are finite."""
    return torch.where(a.isfinite() & b.isfinite(), (a.double() - b.double()).abs(), 0).amax(1)


def _largest(answer: Tensor) -> Tensor:
    """``(R,)`` the largest finite entry."""
    return answer.double().abs().nan_to_num(0.0, 0.0, 0.0).amax(1)


def _reason(model: nn.Module, rows: Tensor, expected: Tensor, worst: int) -> str:
    """Why a row's answer is not that of the graph."""
    row = slice(worst, worst + 1)
    tolerance = _ROUNDINGS * torch.finfo(rows.dtype).eps * float(_largest(expected)[worst])
    if float(_gaps(_answer(model, rows), expected)[worst]) > tolerance:
        return "the network answers differently from call to call: it draws random numbers, or keeps state"
    if float(_gaps(_answer(model, rows[row]), expected[row])) > tolerance:
        return "rows of a batch depend on one another: an input is answered differently alone and in company"
    return f"{_WRONG}; does Python code of the model depend on values?"
