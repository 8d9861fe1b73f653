"""Certification of examples: quick bounds, short attacks, and then thorough work on what those left open."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from holdfast.arguments import choice, inputs, labels, real, threat_of, whole
from holdfast.attacks import AnnealedPGD, PatchPGD, WorstOfK
from holdfast.certify.bounds.crown import MEMORY
from holdfast.certify.certificate import METHODS, RUNS, Certificate, Method, Runs, better
from holdfast.certify.certifier import misclassified, normalised
from holdfast.certify.doubt import CHECKS, Doubt
from holdfast.certify.proving import needs_proofs, prover_of
from holdfast.data import Batch
from holdfast.engine import Stage, drive
from holdfast.errors import DataError, ModelError
from holdfast.models.query import Query
from holdfast.threats import Ball, Climbable, Patch, Threat

__all__ = ["certify"]

# Before a search for proofs, short attacks: most of what cannot be proved falls to them.
_CLIMB, _DRAW = Stage("pgd", AnnealedPGD(steps=9, restarts=3)), Stage("worst-of-k", WorstOfK(50))
_PATCH = [
    Stage("patch-pgd", PatchPGD(looks=200, climbs=4, steps=5)),
    Stage("patch-pgd-t", PatchPGD(looks=200, climbs=2, steps=5, targets=9)),
]


def certify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    method: Method = "alpha-crown",
    seconds: float = 20.0,
    seed: int = 0,
    batch_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    memory: int = MEMORY,
    arithmetic: Runs = "executed",
    checks: int = CHECKS,
) -> list[Certificate]:
    """Prove that no admissible change turns an example into a mistake, or find one that does.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, *shape)`` inputs to ``(N, K)`` logits. It is given back as it was.
    x, y : Tensor
        ``(N, *shape)`` inputs inside the threat's box and ``(N,)`` labels.
    threat : Ball
        What may be done to them; a per-example budget has one number a row of ``x``.
    method : str
        How far to go: ``"ibp"``; ``"crown"``; ``"alpha-crown"``; ``"complete"``, branch and bound. Each method works
        on what those before it left open.
    seconds : float
        How long branch and bound may take, an example.
    seed : int
        Of the global generator while the model is in use.
    batch_size : int, optional
        Examples that are bounded together.
    mean, std : tuple of float, optional
        A normalisation to put before the model, so that budgets mean raw inputs.
    memory : int
        Bytes that the coefficients of one layer may take; a few times that is held at once. What is bounded together
        follows from it, and the bounds do not depend on it. A single example's margins are never taken apart.
    arithmetic : str
        What is proved: that the network as it runs keeps the label, whatever the order in which its sums are taken,
        ``"executed"``; or that it does in exact arithmetic, ``"exact"``.
    checks : int
        About how many of the examples are attacked if they are proved, as a check of the prover; of proofs in exact
        arithmetic, those that rounding breaks are then broken.

    Returns
    -------
    list of Certificate
        One for each example. A misclassified one is broken by itself.

    Raises
    ------
    SettingError
        When there is no such method or arithmetic, or no memory; when torch has been told to compute in less than the
        model's precision, which nothing is proved of.
    DataError
        When inputs, labels and budgets do not fit each other, the box or the model.
    ModelError
        When the model fails, or has an operation that no bound is known for; it is named.
    ProofError
        When an example that was proved has been broken by an attack.
    """
    choice("method", method, METHODS)
    choice("arithmetic", arithmetic, RUNS)
    seconds, memory = real("seconds", seconds, positive=False), whole("memory", memory, 1, 2**50)
    checks = whole("checks", checks, 0, 2**50)
    x, threat = inputs(x), needs_proofs(threat_of(threat))
    y = labels(y, len(x))
    if not len(x):
        return []
    with Query(model, mean=mean, std=std, batch_size=batch_size, seed=seed) as query:
        x, y = query.prepare(x).contiguous(), y.to(query.device)
        threat = threat.at(torch.arange(len(x), device=query.device))
        logits = query.bare_logits(x)
        _check_clean(threat, x)
        if len(wrong := ((y < 0) | (y >= logits.shape[1])).nonzero()):
            raise DataError(
                f"example {int(wrong[0, 0])} has label {int(y[wrong[0, 0]])}, but the model knows classes 0 to "
                f"{logits.shape[1] - 1}: count labels from 0, or give the model that goes with these data"
            )
        right = ~misclassified(logits, y)
        found = {i: Certificate("broken", "clean pass", None, x[i], 0.0) for i in (~right).nonzero()[:, 0].tolist()}
        certifier = prover_of(
            normalised(query.model, mean, std),
            x,
            method,
            threat,
            seconds=seconds,
            logits=query.bare_logits,
            memory=memory,
            arithmetic=arithmetic,
        )
        if certifier.graph is None:
            raise ModelError(certifier.fault)
        for part in right.nonzero()[:, 0].split(query.batch_size):
            found |= zip(part.tolist(), certifier.bound(x[part], y[part], threat.at(part)), strict=True)
        if method == "complete":
            for outcomes in drive(query, threat, _attacks(threat), _open(found, x, y, query.batch_size), seed=seed):
                found |= {
                    o.index: Certificate("broken", o.stage or "", None, o.x_adv, found[o.index].seconds)
                    for o in outcomes
                    if o.verdict == "broken"
                }
        for part in _open(found, x, y, query.batch_size):
            for place, certificate in certifier.prove(part.x, part.y, threat.at(part.index)):
                number = int(part.index[place])
                found[number] = better(found[number], certificate)
        found |= Doubt(query, certifier.graph, checks / len(x), seed).check(found, x, y, threat)
    return [replace(found[place], arithmetic=arithmetic) for place in range(len(x))]


def _check_clean(threat: Threat, x: Tensor) -> None:
    """Refuse examples that a set which is no ball does not hold even as they are."""
    if not isinstance(threat, Ball) and len(outside := (~threat.contains(x, threat.nothing(x))).nonzero()):
        raise DataError(f"example {int(outside[0, 0])} is outside {threat.name} as it is: scale the data to its box")


def _attacks(threat: Threat) -> list[Stage]:
    if isinstance(threat, Ball):
        return [_CLIMB]
    if isinstance(threat, Patch):
        return _PATCH
    return [_DRAW, _CLIMB] if isinstance(threat, Climbable) else [_DRAW]


def _open(found: dict[int, Certificate], x: Tensor, y: Tensor, size: int) -> Iterator[Batch]:
    """The examples that a search may still decide, in batches."""
    places = [
        place for place, certificate in found.items() if certificate.verdict == "undecided" and not certificate.note
    ]
    for part in torch.tensor(places, dtype=torch.int64, device=y.device).split(size):
        if len(part):
            yield Batch(part, x[part], y[part])
