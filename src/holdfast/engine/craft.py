"""One attack on tensors, as a function call."""

import torch
from torch import Tensor, nn

from holdfast.arguments import inputs, labels, threat_of
from holdfast.data.source import Batch
from holdfast.engine.attack import Attack, AttackResult
from holdfast.engine.engine import Outcome, Stage, drive
from holdfast.models.query import CPU_BATCH, Query
from holdfast.threats import Threat

__all__ = ["craft"]


def craft(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    target: Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    samples: int = 1,
) -> AttackResult:
    """Run one attack on a batch of examples; an example is left alone as soon as it is broken.

    Parameters
    ----------
    attack : Attack
        Which attack, with its settings.
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, K)`` logits. It is given back as it was.
    x, y : Tensor
        ``(N, ...)`` inputs of any floating type and ``(N,)`` labels.
    threat : Threat
        What the adversary may do; a per-example budget has one number a row of ``x``.
    target : Tensor, optional
        ``(N,)`` the class wanted of each example; without it any wrong class is success.
    seed : int
        Of every random draw.
    batch_size : int, optional
        Rows a call of the model; all examples up to 64 by default. Results are bit for bit the same for any order and
        any split of the examples as long as it is the same.
    mean, std : tuple of float, optional
        A normalisation to put before the model, so that budgets mean raw inputs.
    samples : int
        Passes averaged a look, for a model with noise of its own; see :func:`holdfast.attacks.drive`.

    Returns
    -------
    AttackResult

    Raises
    ------
    DataError
        When inputs, labels, targets and budgets do not fit each other, the box or the model.
    ModelError
        When the model fails, or does not return logits.
    SettingError
        When the attack cannot be run under this threat.
    """
    x, threat = inputs(x), threat_of(threat)
    y, target = labels(y, len(x)), None if target is None else labels(target, len(x), "target")
    size = min(max(len(x), 1), CPU_BATCH) if batch_size is None else batch_size
    index = torch.arange(len(x))
    threat.at(index)
    with Query(model, mean=mean, std=std, batch_size=size, seed=seed) as query:
        starts = range(0, len(x), query.batch_size)
        batches = (Batch(index[i : i + size], x[i : i + size], y[i : i + size]) for i in starts)
        stages = [Stage(attack.name, attack)]
        steps = drive(query, threat, stages, batches, seed=seed, target=target, samples=samples)
        outcomes = [outcome for some in steps for outcome in some]
    return _result(sorted(outcomes, key=lambda outcome: outcome.index), x, query)


def _result(outcomes: list[Outcome], x: Tensor, query: Query) -> AttackResult:
    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(outcome, name) for outcome in outcomes], dtype=dtype, device=x.device)

    empty = x.new_empty((0, *x.shape[1:]), dtype=query.dtype)
    return AttackResult(
        x_adv=torch.stack([o.x_adv for o in outcomes]).contiguous().to(x.device) if outcomes else empty,
        success=torch.tensor([o.verdict in ("broken", "misclassified") for o in outcomes], dtype=torch.bool).to(
            x.device
        ),
        distance=column("distance", query.dtype),
        objective=column("objective", query.dtype),
        forwards=column("forwards", torch.int64),
        backwards=column("backwards", torch.int64),
    )
