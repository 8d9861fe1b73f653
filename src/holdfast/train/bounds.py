"""What methods of certified training share: the network as bounds see it, and its worst logits."""

from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from holdfast.certify.bounds.capture import Program, tensors, trace
from holdfast.certify.bounds.crown import interval_planes
from holdfast.certify.bounds.graph import Graph
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.margins import each_interval_margin, each_margin
from holdfast.certify.bounds.region import Region
from holdfast.errors import ModelError, SettingError
from holdfast.processes import ALONE, Processes
from holdfast.threats import Ball, Threat
from holdfast.train.step import Step

__all__ = [
    "Statistics",
    "bounded",
    "certified_accuracy",
    "check_ball",
    "interval_logits",
    "mixed_loss",
    "observed",
    "worst_logits",
]

Statistics = dict[str, Tensor]

# Examples whose margins go back through a network together.
_TOGETHER = 100
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Tracing a network may take longer than a step, and what it finds holds for all values of the weights.
_PROGRAMS: WeakKeyDictionary[nn.Module, Program] = WeakKeyDictionary()


def check_ball(method: str, threat: Threat) -> Ball:
    """The threat, if it is one that bounds speak of."""
    if not isinstance(threat, Ball):
        raise SettingError(f"{method}: bounds are known of norm balls, not of {threat.name}; choose linf, l2, l1 or l0")
    return threat


def observed(model: nn.Module, x: Tensor) -> tuple[Tensor, Statistics]:
    """Logits, and the statistics by which batch normalisation in training mode arrived at them.

    Parameters
    ----------
    model : nn.Module
        It sees the batch once, so running statistics are updated once.
    x : Tensor
        ``(N, ...)`` inputs.

    Returns
    -------
    logits : Tensor
        ``(N, K)``.
    statistics : dict of Tensor
        This batch's mean and variance of every layer in training mode, under the names of the running ones.

    Raises
    ------
    ModelError
        When one layer normalises two values: bounds have only one name for their statistics.
    """
    found: Statistics = {}
    handles = [
        layer.register_forward_pre_hook(partial(_observe, found, name))
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, _BATCH_NORM) and layer.training
    ]
    try:
        return model(x), found
    finally:
        for handle in handles:
            handle.remove()


def _observe(found: Statistics, name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
    mean, variance = (f"{name}.{statistic}".lstrip(".") for statistic in ("running_mean", "running_var"))
    if mean in found:
        raise ModelError(f"the batch normalisation '{name}' is used twice in a pass: certified training needs one each")
    values = inputs[0].float() if inputs[0].dtype == torch.bfloat16 else inputs[0]
    rest = [dim for dim in range(values.dim()) if dim != 1]
    found[variance], found[mean] = torch.var_mean(values, rest, correction=0)


def bounded(model: nn.Module, x: Tensor, statistics: Statistics) -> Graph:
    """The graph of a network with its parameters as they are now; bounds on it are differentiable in them.

    Parameters
    ----------
    model : nn.Module
        In any mode. Dropout is left out, as in evaluation mode.
    x : Tensor
        ``(N, ...)`` inputs.
    statistics : dict of Tensor
        What batch normalisation uses in place of running statistics, as :func:`observed` returns it.

    Raises
    ------
    ModelError
        When there are no bounds for the network.
    """
    return _program(model, x).graph({**tensors(model), **statistics})


def _program(model: nn.Module, x: Tensor) -> Program:
    program = _PROGRAMS.get(model)
    if program is None or (program.shape, program.dtype) != (tuple(x.shape[1:]), x.dtype):
        program = _PROGRAMS[model] = trace(model, x)
    return program


def interval_logits(model: nn.Module, region: Region, y: Tensor, statistics: Statistics) -> Tensor:
    """``(N, K)`` the worst logits that intervals leave possible, in float32 whatever the training's precision is."""
    with torch.autocast(region.center.device.type, enabled=False):
        graph = bounded(model, region.center, statistics)
        return worst_logits(each_interval_margin(graph, interval_bounds(graph, region), region, y), y)


def worst_logits(margins: Tensor, y: Tensor) -> Tensor:
    """``(N, K)`` logits with 0 for the label, and with these margins ``(N, K - 1)`` against the other classes."""
    classes = torch.arange(margins.shape[1] + 1, device=y.device)
    label = y.unsqueeze(1)
    place = (classes - (classes > label).long()).clamp_max(margins.shape[1] - 1)
    return torch.where(classes == label, 0, -margins.gather(1, place))


def mixed_loss(kappa: float, logits: Tensor, worst: Tensor, y: Tensor, step: Step) -> Tensor:
    """``w loss(logits, y) + (1 - w) loss(worst, y)``, where ``w`` falls from 1 to ``kappa`` as the budget grows."""
    weight = 1 - (1 - kappa) * step.share
    return (weight * step.cross_entropy(logits, y) + (1 - weight) * step.cross_entropy(worst, y)).mean()


def certified_accuracy(model: nn.Module, threat: Threat, x: Tensor, y: Tensor, processes: Processes = ALONE) -> float:
    """The share of examples that one backward pass proves, hidden neurons being bounded by intervals (CROWN-IBP).

    A figure to compare states by: nothing is done about rounding, as :func:`holdfast.certify.certify` does.

    Parameters
    ----------
    model : nn.Module
        It is bounded as it computes in evaluation mode.
    threat : Ball
        With one budget, or one for each example.
    x, y : Tensor
        ``(N, ...)`` inputs and ``(N,)`` labels.
    processes : Processes
        Those that share the work; all get the whole result.
    """
    ball = check_ball("certified accuracy", threat)
    graph = _program(model, x).graph({name: value.detach() for name, value in tensors(model).items()})
    proved = []
    for rows in processes.deal(torch.arange(len(x), device=x.device).split(_TOGETHER)):
        region = Region.around(ball.at(rows), x[rows])
        margins = each_margin(graph, interval_planes(graph, region), region, y[rows])
        proved.append(int((margins.amin(1) > 0).sum()))
    return sum(processes.collect(proved)) / len(x)
