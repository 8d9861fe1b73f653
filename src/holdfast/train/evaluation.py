"""What a model in training is worth on examples it does not learn from."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.arguments import inputs, labels, require_classes, threat_of
from holdfast.attacks import climb
from holdfast.attacks.worst_of_k import worst_of
from holdfast.draws import Draws
from holdfast.models.query import Query
from holdfast.processes import ALONE, Processes
from holdfast.tasks import CLASSIFICATION
from holdfast.tasks.objectives import cross_entropy
from holdfast.threats import Ball, Threat
from holdfast.train.method import Criterion

__all__ = ["Evaluation", "evaluate"]

# The stages whose random numbers are used here: training draws from the first few.
_MULTI, _NEAR, _WORST = 100, 101, 200
_ROUNDING = 1e-5  # of a cosine


@dataclass(frozen=True)
class Evaluation:
    """Accuracies on held-out examples.

    Parameters
    ----------
    clean : float
        Of clean inputs.
    single_step, multi_step : float
        Under one step of the whole budget from the clean input, and under PGD.
    alignment : float
        The mean cosine between the loss's gradients at clean inputs and at random inputs within the threat. Where it
        falls to 0, the loss has become so crooked that single steps no longer find what is worst.
    per_class : tuple of float
        ``multi_step`` class by class; NaN for a class without examples.
    certified : float
        What backward bounds prove, those of hidden neurons being intervals; NaN where nothing was to be proved.
    """

    clean: float
    single_step: float
    multi_step: float
    alignment: float
    per_class: tuple[float, ...]
    certified: float = math.nan

    @property
    def gap(self) -> float:
        """By how much single steps flatter the model."""
        return self.single_step - self.multi_step

    def accuracy(self, criterion: Criterion) -> float:
        """The one by which states are compared."""
        return {"clean": self.clean, "robust": self.multi_step, "certified": self.certified}[criterion]

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """What :meth:`to_dict` was made from; a ``ValueError`` or ``TypeError`` where nothing was."""

        def known(value: float | None) -> float:
            return math.nan if value is None else float(value)

        per_class = tuple(map(known, plain["per_class"]))
        numbers = {name: float(plain[name]) for name in ("clean", "single_step", "multi_step", "alignment")}
        found = cls(**numbers, per_class=per_class, certified=known(plain["certified"]))
        shares = [found.clean, found.single_step, found.multi_step, abs(found.alignment), *per_class, found.certified]
        if not all(0 <= share <= 1 + _ROUNDING or math.isnan(share) for share in shares):
            raise ValueError("an accuracy that is none")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The accuracies, None for what is not known: JSON has no NaN."""

        def known(value: float) -> float | None:
            return None if math.isnan(value) else value

        return {
            "clean": self.clean,
            "single_step": self.single_step,
            "multi_step": self.multi_step,
            "alignment": self.alignment,
            "per_class": list(map(known, self.per_class)),
            "certified": known(self.certified),
        }


def evaluate(
    model: nn.Module,
    threat: Threat,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    steps: int = 10,
    processes: Processes = ALONE,
) -> Evaluation:
    """Attack examples with one step and with PGD.

    Costs ``steps + 2`` forward and backward passes and 3 forward passes an example.

    Parameters
    ----------
    model : nn.Module
    threat : Threat
        Per-example budgets are those of these examples.
    x, y : Tensor
        ``(N, ...)`` inputs and ``(N,)`` labels.
    seed : int
        Of random starts.
    steps : int
        Of PGD, whose steps are 2.5 budgets together.
    processes : Processes
        Those that share the work: all have the same model and examples, and all get the whole result.

    Raises
    ------
    DataError
        When inputs and labels do not fit each other, or a label is none of the model's classes.
    """
    x, threat = inputs(x), threat_of(threat)
    y = labels(y, len(x))
    index = torch.arange(len(x), device=x.device)
    with Query(model) as query:
        parts = [
            _outcomes(query, threat.at(rows).near(x[rows]), x[rows], y[rows], Draws(seed, rows), steps)
            for rows in processes.deal(index.split(query.batch_size))
        ]
    parts = processes.collect(parts)
    right, alignment, classes = (torch.cat(column) for column in zip(*parts, strict=True))
    clean, single, multi = right.double().mean(0).tolist()
    # NaN, not 0, for a class that is not there.
    per_class = [float(right[y == label, 2].double().mean()) for label in range(int(classes[0]))]
    return Evaluation(clean, single, multi, float(alignment.double().mean()), tuple(per_class))


def _outcomes(
    query: Query, threat: Threat, x: Tensor, y: Tensor, draws: Draws, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``(N, 3)`` whether the class is right, clean, after one step and after many; ``(N,)`` cosines; classes."""
    objective = partial(cross_entropy, y=y)
    start = query.gradient(x, lambda logits: objective(require_classes(logits, y)))
    budget = threat.budget(x)
    near, multi = (threat.sample(x, Draws(draws.seed, draws.index, stage)) for stage in (_NEAR, _MULTI))
    other = query.gradient(threat.apply(x, near), objective).grad
    if isinstance(threat, Ball):
        multi = climb(query, threat, x, multi, objective, steps=steps, step_size=2.5 / steps * budget)
        found = [threat.apply(x, z) for z in (threat.maximize(start.grad, x), multi)]
    else:  # gradients overrate robustness in sets of few parameters
        many = Draws(draws.seed, draws.index, _WORST)
        found = [threat.apply(x, z) for z in (near, worst_of(query, threat, x, many, objective, steps))]
    logits = [start.logits, *(query.logits(x_adv) for x_adv in found)]
    right = torch.stack([CLASSIFICATION.wrong(row, y, None) == 0 for row in logits], 1)
    right = right & right[:, :1]  # the clean input is one of those that the adversary may choose
    alignment = functional.cosine_similarity(_scaled(start.grad), _scaled(other), dim=1)
    return right.cpu(), alignment.cpu(), torch.tensor([start.logits.shape[1]])


def _scaled(grad: Tensor) -> Tensor:
    """``(N, D)`` gradients whose largest entry is 1: those of confident examples are too short to have an angle."""
    flat = grad.flatten(1)
    return flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
