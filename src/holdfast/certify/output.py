"""Bounds of a network's output, by whichever method one asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from holdfast.arguments import ball_of, choice, inputs, module_of, one_input, whole
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import Bounds, crown, interval_planes, lower_bounds
from holdfast.certify.bounds.forward import forward_bounds
from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.interval import interval_bounds, least_of
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import check_precision, down
from holdfast.certify.bounds.rows import Rows
from holdfast.certify.search.domains import Domains, Problem, bound_domains
from holdfast.certify.search.hidden import tightened
from holdfast.errors import DataError
from holdfast.models.precision import first_float

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.certify.bounds.graph import Graph
    from holdfast.threats import Ball

__all__ = ["BoundMethod", "OutputBounds", "output_bounds"]

BoundMethod = Literal["ibp", "forward", "crown-ibp", "crown", "alpha-crown"]

# Steps of the slopes where none are asked for.
_STEPS = 20


@dataclass(frozen=True, eq=False)
class OutputBounds:
    """What linear functions of the output can be.

    Parameters
    ----------
    lower, upper : Tensor
        ``(N, S)``.
    """

    lower: Tensor
    upper: Tensor


@torch.inference_mode(False)
def output_bounds(
    model: nn.Module,
    x: Tensor,
    threat: Ball | Region,
    *,
    method: BoundMethod = "crown",
    functions: Tensor | None = None,
    steps: int = _STEPS,
) -> OutputBounds:
    """Bound linear functions of a network's output over the inputs that a threat admits.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, *shape)`` to ``(N, K)``; it is bounded as it computes in evaluation mode, and left as it was.
    x : Tensor
        ``(N, *shape)`` inputs inside the threat's box.
    threat : Ball or Region
        What may be done to them; or the sets of inputs themselves, such as ``Region.box(lower, upper)``.
    method : str
        From loose and cheap to tight and costly: ``"ibp"``, intervals (Gowal et al. 2018); ``"forward"``, linear
        functions from the input on, for few inputs; ``"crown-ibp"``, one backward pass on intervals (Zhang et al.
        2020); ``"crown"``, backward passes for hidden neurons too (Zhang et al. 2018); ``"alpha-crown"``, with
        optimised slopes (Xu et al. 2021). Every bound is met with what intervals say, and backward ones with those
        of the cheaper methods.
    functions : Tensor, optional
        ``(S, K)``, or ``(N, S, K)`` with functions of their own for each example; by default the outputs themselves.
    steps : int
        Of the optimiser of alpha-CROWN.

    Returns
    -------
    OutputBounds

    Raises
    ------
    SettingError
        When there is no such method.
    DataError
        When functions do not fit the output.
    ModelError
        When the network has an operation that no bound is known for; it is named.
    """
    choice("method", method, get_args(BoundMethod))
    model, x, steps = module_of(model), inputs(x), whole("steps", steps, 0)
    precision = first_float(model, x).dtype
    own = x.to(precision)
    # Bounds of half-precision networks are computed in float32.
    x = own if precision == torch.float64 else own.to(torch.float32)
    functions = None if functions is None else one_input(functions, "functions")
    threat = threat if isinstance(threat, Region) else ball_of(threat)
    if not len(x):
        raise DataError("x: no examples to bound; give at least one")
    check_precision(x.device)
    region = threat.to(x.dtype) if isinstance(threat, Region) else Region.around(threat, x)
    graph = capture(model, own, Interval(region.lower, region.upper))
    (classes,) = graph.nodes[graph.output].shape
    given = torch.eye(classes, dtype=x.dtype, device=x.device) if functions is None else functions.to(x)
    if given.dim() not in (2, 3) or given.shape[-1] != classes or (given.dim() == 3 and len(given) != len(x)):
        raise DataError(
            f"functions have the shape {tuple(given.shape)}; give (S, {classes}) or ({len(x)}, S, {classes})"
        )
    rows = given.expand(len(x), *given.shape[-2:])
    with torch.no_grad():
        both = torch.cat([rows, -rows], 1)
        found = _BOUNDS[method](graph, region, both, steps)
        by_intervals = least_of(both, interval_bounds(graph, region)[-1])
    found = by_intervals if found is None else torch.fmax(found.double(), by_intervals)
    low, high = (down(part, x.dtype) for part in found.split(rows.shape[1], 1))
    return OutputBounds(low, -high)


def _backward(graph: Graph, region: Region, bounds: Bounds, rows: Tensor) -> Tensor:
    whole = Rows.whole(rows.flatten(0, 1))
    found = lower_bounds(graph, graph.output, whole, bounds.planes, bounds.errors, region)
    return found.view(rows.shape[:2])


def _forward(graph: Graph, region: Region, rows: Tensor, steps: int) -> Tensor:
    return least_of(rows, forward_bounds(graph, region).intervals[-1])


def _crown_ibp(graph: Graph, region: Region, rows: Tensor, steps: int) -> Tensor:
    return _backward(graph, region, interval_planes(graph, region), rows)


def _crown(graph: Graph, region: Region, rows: Tensor, steps: int) -> Tensor:
    # Slopes are chosen by the width of ranges, and tighter ranges now and then lead to worse ones.
    return torch.fmax(_backward(graph, region, crown(graph, region), rows), _crown_ibp(graph, region, rows, steps))


def _alpha(graph: Graph, region: Region, rows: Tensor, steps: int) -> Tensor:
    bounds = tightened(graph, region, crown(graph, region), steps)
    problem = Problem(graph, region, bounds, graph.output)
    example = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
    found = bound_domains(problem, Domains.whole(problem, example, rows.flatten(0, 1)), steps).bound
    return torch.fmax(found.view(rows.shape[:2]).double(), _crown(graph, region, rows, steps).double())


_BOUNDS: dict[str, Callable[[Graph, Region, Tensor, int], Tensor | None]] = {
    "ibp": lambda graph, region, rows, steps: None,
    "forward": _forward,
    "crown-ibp": _crown_ibp,
    "crown": _crown,
    "alpha-crown": _alpha,
}
