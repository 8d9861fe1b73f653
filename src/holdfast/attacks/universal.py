"""One perturbation for a whole data set."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from holdfast.arguments import as_float, ball_of, choice, number, real, whole
from holdfast.data import Source, load_data
from holdfast.errors import DataError, SettingError
from holdfast.models.query import Query
from holdfast.tasks import objectives
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats import Ball
from holdfast.threats.box import Box

__all__ = ["UniversalResult", "universal_perturbation"]


@dataclass(frozen=True)
class UniversalResult:
    """What one perturbation does to a data set, judged by the bare model on all of it.

    Parameters
    ----------
    z : Tensor
        The perturbation, of the shape of one example; the model sees ``threat.apply(x, z)``.
    distance : float
        Its norm.
    examples : int
        How many it was made for and judged on.
    clean_accuracy, robust_accuracy : float
        The share of them classified correctly without it and with it.
    fooling_rate : float
        The share of them whose class it changes, whether or not that was the right one.
    """

    z: Tensor
    distance: float
    examples: int
    clean_accuracy: float
    robust_accuracy: float
    fooling_rate: float

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the perturbation."""
        return {name: value for name, value in asdict(self).items() if name != "z"}


def universal_perturbation(
    model: nn.Module,
    data: Source | tuple[Any, Any],
    threat: Ball,
    *,
    epochs: int = 10,
    step_size: float | None = None,
    objective: ObjectiveName = "ce",
    ceiling: float = 9.0,
    seed: int = 0,
    batch_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> UniversalResult:
    """Look for the one perturbation under which a model is wrong on most examples of a data set.

    Moosavi-Dezfooli, Fawzi, Fawzi and Frossard, "Universal adversarial perturbations", CVPR 2017, arXiv:1610.08401,
    found as in Shafahi, Najibi, Xu, Dickerson, Davis and Goldstein, "Universal adversarial training", AAAI 2020,
    arXiv:1811.11304: ascend the objective's sum over one batch after another, each example's share cut off at a ceiling
    so that none is worth ever more. Steps follow the threat's steepest direction, shrink linearly to 0, and are
    projected onto the ball; the box cuts every input by itself, and where it does the gradient is 0 but in L0. After
    each epoch the bare model is asked about the whole data, and the perturbation that leaves least right is returned.

    Costs ``2 * epochs + 1`` forwards and ``epochs`` backwards an example.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, K)`` logits. It is given back as it was.
    data : Source or pair of arrays
        The examples, read batch by batch in their order: mix those that are sorted by class.
    threat : Ball
        The perturbation's bound, and the inputs' box.
    epochs : int
        Passes through the data.
    step_size : float, optional
        Length of the first step in the units of the budget; ``eps / 4`` by default.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.
    ceiling : float
        Above which an example's objective no longer counts; ``math.inf`` for none.
    seed, batch_size, mean, std
        See :func:`holdfast.attacks.craft`.

    Returns
    -------
    UniversalResult

    Raises
    ------
    DataError
        When an example does not fit the threat's box or the model's classes.
    ModelError
        When the model fails, or does not return logits.
    SettingError
        When a number is not positive, the objective unknown, or the budget infinite or one an example.
    """
    epochs, threat = whole("epochs", epochs), ball_of(threat)
    step_size = None if step_size is None else number("step_size", real("step_size", step_size))
    choice("objective", objective, get_args(ObjectiveName))
    ceiling = math.inf if as_float(ceiling) == math.inf else number("ceiling", ceiling)
    if not isinstance(threat.eps, float) or math.isinf(threat.eps):
        raise SettingError(f"universal: one perturbation has one finite budget, not {threat.name}")
    source = data if isinstance(data, Source) else load_data(data)
    with Query(model, mean=mean, std=std, batch_size=batch_size, seed=seed) as query:
        clean, labels = _clean(query, source, threat)
        origin = query.prepare(next(source.batches(1)).x).mul(0)
        # Relative to an input the box is somewhere in here; no choice outside would do more.
        ball = replace(threat, box=Box(threat.box.lower - threat.box.upper, threat.box.upper - threat.box.lower))
        z = best = origin
        predicted = clean
        first = threat.eps / 4 if step_size is None else step_size
        total = epochs * -(-len(source) // query.batch_size)
        sizes = iter(first * (1 - step / total) for step in range(total))
        for _ in range(epochs):
            for x, y in _batches(query, source):
                grad = _gradient(query, threat, x, y, z, objective, ceiling)
                z = ball.ascend(z, origin, grad, origin.new_full((1,), next(sizes)))
            now = _predictions(query, source, threat, z)
            if (now == labels).sum() <= (predicted == labels).sum():
                best, predicted = z, now
    return UniversalResult(
        z=best[0],
        distance=float(ball.length(best - origin)),
        examples=len(labels),
        clean_accuracy=float((clean == labels).double().mean()),
        robust_accuracy=float((predicted == labels).double().mean()),
        fooling_rate=float((predicted != clean).double().mean()),
    )


def _gradient(
    query: Query, threat: Ball, x: Tensor, y: Tensor, z: Tensor, name: ObjectiveName, ceiling: float
) -> Tensor:
    """The gradient, with respect to the perturbation, of what the batch's examples count for."""
    rises = objectives.objective(name, y, None)
    inputs = threat.apply(x, z)
    grad = query.gradient(inputs, lambda logits: rises(logits).clamp_max(ceiling)).grad
    # In L0 a coordinate at the end of its way is worth what it has done, not what going on would do.
    return (grad if threat.norm == "l0" else torch.where(inputs == x + z, grad, 0)).sum(0, keepdim=True)


def _batches(query: Query, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in source.batches(query.batch_size):
        yield query.prepare(batch.x), batch.y.to(query.device)


def _predictions(query: Query, source: Source, threat: Ball, z: Tensor) -> Tensor:
    """``(M,)`` the bare model's classes for the whole data under one perturbation."""
    return torch.cat([query.bare_logits(threat.apply(x, z)).argmax(1) for x, _ in _batches(query, source)])


def _clean(query: Query, source: Source, threat: Ball) -> tuple[Tensor, Tensor]:
    """The bare model's classes for the clean data, and the labels, once they have been found to be of use."""
    predicted, labels = [], []
    for x, y in _batches(query, source):
        logits = query.bare_logits(x)
        if not bool(threat.admits(x, x).all()):
            raise DataError(f"universal: inputs from {x.min():g} to {x.max():g} lie outside the box of {threat!r}")
        if bool((y < 0).any() or (y >= logits.shape[1]).any()):
            raise DataError(f"universal: labels must be classes of the model, 0 to {logits.shape[1] - 1}")
        predicted.append(logits.argmax(1))
        labels.append(y)
    return torch.cat(predicted), torch.cat(labels)
