"""Certification of examples: quick bounds first, and thorough ones where those do not settle it.

Each method sees only what the cheaper ones left open. A certificate is about the network as it runs, in floating-point
arithmetic, in whatever order its sums are taken, and bounds give away what their own arithmetic may have got wrong
(:mod:`holdfast.certify.bounds.rounding`). They are computed in the model's precision, and in float64 where that might
decide.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from holdfast.arguments import ball_of, choice, inputs, labels, real, whole
from holdfast.attacks import AnnealedPGD
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import MEMORY, crown
from holdfast.certify.bounds.graph import Graph, Interval, Node
from holdfast.certify.bounds.margins import Margins, crown_margins, each_margin, interval_margins, specification
from holdfast.certify.bounds.operations.linear import Scale
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import REAL, check_precision
from holdfast.certify.certificate import (
    LOOSE,
    METHODS,
    QUICK,
    RUNS,
    SEARCH,
    TIMEOUT,
    Certificate,
    Method,
    Runs,
    better,
)
from holdfast.certify.doubt import CHECKS, Doubt
from holdfast.certify.search.branch import branch_and_bound
from holdfast.certify.search.domains import Problem
from holdfast.data import Batch
from holdfast.engine import Stage, drive
from holdfast.errors import DataError, ModelError
from holdfast.models.precision import first_float
from holdfast.models.query import Query
from holdfast.threats import Ball

__all__ = ["BOUNDS", "Certifier", "certify", "normalised", "proven"]

# Examples in whose sets a captured graph is compared with its model.
_COMPARED = 3
# Before a search for proofs, a short attack: most of what cannot be proved falls to it.
_ATTACK = Stage("pgd", AnnealedPGD(steps=9, restarts=3))

BOUNDS: dict[Method, Callable[..., Margins]] = {
    "ibp": lambda graph, region, y, memory: interval_margins(graph, region, y),
    "crown": crown_margins,
}


def certify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Ball,
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
    x, threat = inputs(x), ball_of(threat)
    y = labels(y, len(x))
    if not len(x):
        return []
    with Query(model, mean=mean, std=std, batch_size=batch_size, seed=seed) as query:
        x, y = query.prepare(x).contiguous(), y.to(query.device)
        threat = threat.at(torch.arange(len(x), device=query.device))
        logits = query.bare_logits(x)
        if len(wrong := ((y < 0) | (y >= logits.shape[1])).nonzero()):
            raise DataError(
                f"example {int(wrong[0, 0])} has label {int(y[wrong[0, 0]])}, but the model knows classes 0 to "
                f"{logits.shape[1] - 1}: count labels from 0, or give the model that goes with these data"
            )
        right = ~misclassified(logits, y)
        found = {i: Certificate("broken", "clean pass", None, x[i], 0.0) for i in (~right).nonzero()[:, 0].tolist()}
        network = normalised(query.model, mean, std)
        certifier = Certifier.of(
            network,
            x,
            method,
            seconds=seconds,
            logits=query.bare_logits,
            memory=memory,
            arithmetic=arithmetic,
            threat=threat,
        )
        if certifier.graph is None:
            raise ModelError(certifier.fault)
        for part in right.nonzero()[:, 0].split(query.batch_size):
            found |= zip(part.tolist(), certifier.bound(x[part], y[part], threat.at(part)), strict=True)
        if method == "complete":
            for outcomes in drive(query, threat, [_ATTACK], _open(found, x, y, query.batch_size), seed=seed):
                found |= {
                    o.index: Certificate("broken", _ATTACK.name, None, o.x_adv, found[o.index].seconds)
                    for o in outcomes
                    if o.verdict == "broken"
                }
        if method not in QUICK:
            for part in _open(found, x, y, query.batch_size):
                for place, certificate in certifier.prove(part.x, part.y, threat.at(part.index)):
                    number = int(part.index[place])
                    found[number] = better(found[number], certificate)
        found |= Doubt(query, certifier.graph, checks / len(x), seed).check(found, x, y, threat)
    return [replace(found[place], arithmetic=arithmetic) for place in range(len(x))]


def _open(found: dict[int, Certificate], x: Tensor, y: Tensor, size: int) -> Iterator[Batch]:
    """The examples that a search may still decide, in batches."""
    places = [
        place for place, certificate in found.items() if certificate.verdict == "undecided" and not certificate.note
    ]
    for part in torch.tensor(places, dtype=torch.int64, device=y.device).split(size):
        if len(part):
            yield Batch(part, x[part], y[part])


@dataclass(frozen=True, eq=False)
class Certifier:
    """Bounds and proofs for the examples of one model.

    Parameters
    ----------
    graph : Graph or None
        The model; None where it could not be captured.
    method : str
        How far to go: one of :data:`METHODS`.
    seconds : float
        How long branch and bound may take, an example.
    logits : callable
        What the model itself says of inputs ``(N, *shape)``: the last word on a counterexample.
    fault : str
        Why there is no graph.
    memory : int
        Bytes that the coefficients of one layer may take.
    """

    graph: Graph | None
    method: Method
    seconds: float
    logits: Callable[[Tensor], Tensor]
    fault: str = ""
    memory: int = MEMORY

    @classmethod
    def of(
        cls,
        model: nn.Module,
        x: Tensor,
        method: Method,
        *,
        seconds: float,
        logits: Callable[[Tensor], Tensor],
        memory: int = MEMORY,
        arithmetic: Runs = "executed",
        threat: Ball | None = None,
    ) -> Self:
        """For a model that takes inputs like ``x``; one that cannot be captured leaves every example open.

        Its graph is compared with it near and far from the inputs, and inside the threat's sets around the first of
        them.
        """
        dtype = first_float(model, x).dtype
        if arithmetic == "executed":
            check_precision(x.device)
        try:
            few = x[:_COMPARED]
            sets = None if threat is None else Region.around(threat.at(torch.arange(len(few), device=x.device)), few)
            graph = capture(model, x.to(dtype), None if sets is None else Interval(sets.lower, sets.upper)).to(x.dtype)
            if arithmetic == "exact":
                graph = graph.within(REAL)
            elif dtype != x.dtype:
                graph = rounding_its_input(graph).to(x.dtype)
            return cls(graph, method, seconds, logits, memory=memory)
        except ModelError as error:
            return cls(None, method, seconds, logits, str(error), memory)

    def bound(self, x: Tensor, y: Tensor, threat: Ball) -> list[Certificate]:
        """What the quick bounds say of ``N`` examples; those that :meth:`prove` may go on with carry no note.

        Parameters
        ----------
        x, y : Tensor
            ``(N, *shape)`` inputs inside the threat's box and ``(N,)`` labels.
        threat : Ball
            What may be done to them, with one budget or with ``N``.
        """
        if self.graph is None:
            return [self._open(self.fault)] * len(x)
        final = LOOSE if self.method in QUICK else ""
        found = [Certificate("undecided", self.method, None, None, 0.0, final)] * len(x)
        for method in QUICK[: QUICK.index(self.method) + 1] if self.method in QUICK else QUICK:
            open_ = torch.tensor(
                [place for place, c in enumerate(found) if c.verdict == "undecided"], dtype=torch.int64
            )
            for part in open_.split(_together(self.graph, self.memory // x.element_size())) if len(open_) else ():
                region = Region.around(threat.at(part), x[part])
                for place, certificate in zip(part.tolist(), self._try(method, region, y[part], final), strict=True):
                    found[place] = better(found[place], certificate)
        return found

    def prove(self, x: Tensor, y: Tensor, threat: Ball) -> Iterator[tuple[int, Certificate]]:
        """Work on ``N`` examples that the quick bounds left open, and yield places and certificates as they fall.

        Every example gets one; those that stay open carry a note.
        """
        left = set(range(len(x)))
        if self.graph is not None and left:
            together = _together(self.graph, self.memory // x.element_size())
            try:
                for part in torch.arange(len(x), device=x.device).split(together):
                    here = threat.at(part)
                    for place, certificate in self._search(self.graph, Region.around(here, x[part]), y[part], here):
                        left.remove(int(part[place]))
                        yield int(part[place]), certificate
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
        for place in sorted(left):
            yield place, self._open(self.fault or "out of memory")

    def _search(self, graph: Graph, region: Region, y: Tensor, threat: Ball) -> Iterator[tuple[int, Certificate]]:
        """Branch and bound; without time for a split it is alpha-CROWN."""

        def judge(place: int, x_adv: Tensor) -> bool:
            one = torch.tensor([place], device=y.device)
            wrong = misclassified(self.logits(x_adv.unsqueeze(0)), y[one])
            return bool(wrong & threat.at(one).admits(x_adv.unsqueeze(0), region.center[one]))

        bounds = crown(graph, region, memory=self.memory)
        margins = each_margin(graph, bounds, region, y)
        rows = specification(y, margins.shape[1] + 1, margins.dtype)
        open_ = ~(margins > 0)
        known = margins.masked_fill(open_, torch.inf).amin(1).tolist()
        functions = [row[keep] for row, keep in zip(rows, open_, strict=True)]
        offsets = [row.new_zeros(len(row)) for row in functions]
        seconds = self.seconds if self.method == "complete" else 0.0
        problem = Problem(graph, region, bounds, graph.output)
        if not problem.splits:  # nothing to choose a slope for, and nothing to split
            yield from enumerate(
                Certificate("undecided", "crown", low, None, 0.0, LOOSE) for low in margins.amin(1).tolist()
            )
            return
        for proof in branch_and_bound(problem, functions, offsets, judge, seconds=seconds):
            method = SEARCH if proof.domains > len(functions[proof.example]) else "alpha-crown"
            bound = min(proof.bound, known[proof.example])
            if proof.status == "proved":
                certificate = Certificate("certified", method, bound, None, proof.seconds)
            elif proof.status == "broken":
                certificate = Certificate("broken", method, None, proof.x, proof.seconds)
            else:
                note = TIMEOUT if proof.seconds > seconds > 0 else LOOSE
                certificate = Certificate("undecided", method, bound, None, proof.seconds, note)
            yield proof.example, certificate

    def _open(self, note: str) -> Certificate:
        return Certificate("undecided", self.method, None, None, 0.0, note)

    def _try(self, method: Method, region: Region, y: Tensor, final: str) -> list[Certificate]:
        """One quick method on some examples; a fault of one of them, or too little memory, is met by halving."""
        assert self.graph is not None
        began = time.perf_counter()
        try:
            lower = proven(partial(BOUNDS[method], memory=self.memory), self.graph, region, y)
        except (ModelError, torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, ModelError) and not _is_memory(error):
                raise
            if len(y) == 1:
                return [self._open(str(error) if isinstance(error, ModelError) else "out of memory")]
            halves = torch.arange(len(y)).chunk(2)
            return [c for half in halves for c in self._try(method, region.take(half), y[half], final)]
        share = (time.perf_counter() - began) / len(y)
        return [_certificate(method, value, share, final) for value in lower.tolist()]


def proven(bounds: Callable[[Graph, Region, Tensor], Margins], graph: Graph, region: Region, y: Tensor) -> Tensor:
    """``(N,)`` lower bounds of worst margins, whatever rounding does.

    Where it may be the rounding of float32 bounds that leaves one without a proof, they are made again in float64.
    """
    margins, dtype = bounds(graph, region, y), region.lower.dtype
    near = ~(margins.lower > 0) & ~(margins.lower + margins.lost <= 0)
    again = near.nonzero()[:, 0]
    if not len(again) or dtype == torch.float64:
        return margins.lower
    precise = bounds(graph.to(torch.float64), region.take(again).to(torch.float64), y[again])
    lower = margins.lower.double()
    return lower.index_copy(0, again, torch.fmax(lower[again], precise.lower))


def rounding_its_input(graph: Graph) -> Graph:
    """A network in float64 whose inputs are rounded to its own precision first."""
    given = graph.to(torch.float64).nodes
    one, nothing = torch.ones(given[0].shape, dtype=torch.float64), torch.zeros(given[0].shape, dtype=torch.float64)
    rounded = Node("input", Scale(one, nothing, nothing, 1), (0,), given[0].shape)
    later = [
        replace(node, inputs=tuple(i + 1 for i in node.inputs), also=tuple(i + 1 for i in node.also))
        for node in given[1:]
    ]
    return Graph((given[0], rounded, *later), graph.arithmetic)


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """``(N,)`` bool: a wrong class; logits that are no numbers are wrong."""
    top, predicted = logits.max(1)  # a maximum is NaN where any of its numbers is
    return (predicted != y) | top.isnan()


def _certificate(method: Method, lower: float, seconds: float, note: str) -> Certificate:
    known = math.isfinite(lower)
    if known and lower > 0:
        return Certificate("certified", method, lower, None, seconds)
    return Certificate(
        "undecided", method, lower if known else None, None, seconds, note if known else "no finite bound"
    )


def _together(graph: Graph, numbers: int) -> int:
    """How many examples' margins go back through the network at once, with at most that many coefficients."""
    largest = max(torch.Size(node.shape).numel() for node in graph.nodes)
    rivals = graph.nodes[graph.output].shape[0] - 1
    return max(1, numbers // (largest * rivals))


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class _Normalised(nn.Module):
    """A model behind the normalisation of a :class:`~holdfast.models.query.Query`."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, x: Tensor) -> Tensor:
        def channels(values: tuple[float, ...]) -> Tensor:
            return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(1, -1, *[1] * (x.dim() - 2))

        if self.mean is not None:
            x = x - channels(self.mean)
        if self.std is not None:
            x = x / channels(self.std)
        logits: Tensor = self.model(x)
        return logits


def normalised(model: nn.Module, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> nn.Module:
    """A model together with the normalisation of its inputs."""
    return model if mean is None and std is None else _Normalised(model, mean, std)
