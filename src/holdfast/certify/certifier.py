"""What proves examples of a network: quick bounds first, and thorough ones where those do not settle it.

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

from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import MEMORY, crown
from holdfast.certify.bounds.graph import Graph, Interval, Node
from holdfast.certify.bounds.margins import Margins, crown_margins, each_margin, interval_margins, specification
from holdfast.certify.bounds.operations.linear import Scale
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import REAL, check_precision
from holdfast.certify.certificate import LOOSE, QUICK, SEARCH, TIMEOUT, Certificate, Method, Runs, better
from holdfast.certify.search.branch import branch_and_bound
from holdfast.certify.search.domains import Problem
from holdfast.errors import ModelError
from holdfast.models.precision import first_float
from holdfast.tasks import CLASSIFICATION
from holdfast.threats import Ball, Coverable, Threat

__all__ = ["BOUNDS", "COMPARED", "Certifier", "misclassified", "normalised", "proven"]

# Examples in whose sets a captured graph is compared with its model.
COMPARED = 3
# Cells whose boxes stand for a set that boxes cover.
_CELLS = 256

BOUNDS: dict[Method, Callable[..., Margins]] = {
    "ibp": lambda graph, region, y, memory: interval_margins(graph, region, y),
    "crown": crown_margins,
}


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
        threat: Threat | None = None,
    ) -> Self:
        """For a model that takes inputs like ``x``; one that cannot be captured leaves every example open.

        Its graph is compared with it near and far from the inputs, and inside the threat's sets around the first of
        them.
        """
        dtype = first_float(model, x).dtype
        if arithmetic == "executed":
            check_precision(x.device)
        try:
            sets = None if threat is None else _sets(threat, x[:COMPARED])
            graph = capture(model, x.to(dtype), sets).to(x.dtype)
            if arithmetic == "exact":
                graph = graph.within(REAL)
            elif dtype != x.dtype:
                graph = rounding_its_input(graph).to(x.dtype)
            return cls(graph, method, seconds, logits, memory=memory)
        except ModelError as error:
            return cls(None, method, seconds, logits, str(error), memory)

    def bound(self, x: Tensor, y: Tensor, threat: Threat) -> list[Certificate]:
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
                region = Region.around(_ball(threat).at(part), x[part])
                for place, certificate in zip(part.tolist(), self._try(method, region, y[part], final), strict=True):
                    found[place] = better(found[place], certificate)
        return found

    def prove(self, x: Tensor, y: Tensor, threat: Threat) -> Iterator[tuple[int, Certificate]]:
        """Work on ``N`` examples that the quick bounds left open, and yield places and certificates as they fall.

        Every example gets one; those that stay open carry a note.
        """
        left = set(range(len(x)))
        if self.graph is not None and left:
            together = _together(self.graph, self.memory // x.element_size())
            try:
                for part in torch.arange(len(x), device=x.device).split(together):
                    here = _ball(threat).at(part)
                    region = Region.around(here, x[part])
                    judge = partial(self._misclassifies, region.center, y[part], here)
                    for place, certificate in self.search(self.graph, region, y[part], judge):
                        left.remove(int(part[place]))
                        yield int(part[place]), certificate
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_memory(error):
                    raise
        for place in sorted(left):
            yield place, self._open(self.fault or "out of memory")

    def _misclassifies(self, x: Tensor, y: Tensor, threat: Ball, place: int, x_adv: Tensor) -> bool:
        """Whether an input is a counterexample to one of the examples."""
        one = torch.tensor([place], device=y.device)
        wrong = misclassified(self.logits(x_adv.unsqueeze(0)), y[one])
        return bool(wrong & threat.at(one).admits(x_adv.unsqueeze(0), x[one]))

    def search(
        self, graph: Graph, region: Region, y: Tensor, judge: Callable[[int, Tensor], bool]
    ) -> Iterator[tuple[int, Certificate]]:
        """Branch and bound; without time for a split it is alpha-CROWN.

        Parameters
        ----------
        graph, region : Graph, Region
            The network, and a set of inputs for each of ``N`` examples.
        y : Tensor
            ``(N,)`` their labels.
        judge : callable
            Whether an input of an example, ``(*shape)``, is a counterexample: the last word on it.
        """
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
    return CLASSIFICATION.wrong(logits, y, None) > CLASSIFICATION.threshold


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


def _ball(threat: Threat) -> Ball:
    assert isinstance(threat, Ball)
    return threat


def _sets(threat: Threat, x: Tensor) -> Interval | None:
    """Boxes around what the threat admits of each input, or some of it; None where nothing is known of it."""
    index = torch.arange(len(x), device=x.device)
    if isinstance(threat, Ball):
        region = Region.around(threat.at(index), x)
        return Interval(region.lower, region.upper)
    if not isinstance(threat, Coverable):
        return None
    ends = []
    for one, row in zip(index.split(1), x, strict=True):
        here = threat.at(one)
        lower, upper = here.box(row, here.cells(row)[:_CELLS])
        ends.append((lower.amin(0), upper.amax(0)))
    lower, upper = (torch.stack(end) for end in zip(*ends, strict=True))
    return Interval(lower, upper)


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
