"""Complete verification of networks with few inputs: branch and bound over boxes of inputs.

A box that linear bounds cannot decide is cut in two (Wang et al. 2018, "Formal security analysis of neural networks
using symbolic intervals", USENIX Security, section 4: iterative interval refinement). All is done in float64, for many
boxes at once:

- CROWN bounds (arXiv 1811.00866) of all inequalities of a box; it is done with as soon as one of them cannot hold;
- the inequalities' linear bounds cut off the parts of a box where one of them cannot hold;
- the centre of the box and those of its faces are tried as counterexamples;
- the cut goes through the input whose change moves the undecided neurons most, each weighted by its coefficient in
  the bound: what is lost to their planes is what a cut can win back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Graph, Interval
from holdfast.certify.search.boxes import BoxBounds, box_bounds, least
from holdfast.certify.search.witness import inward

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.certify.questions import Questions

__all__ = ["Outcome", "split_inputs"]

# Boxes bounded together: as many as take about this long, in seconds.
_FEWEST, _MOST, _PACE = 16, 2048, 0.5
# After how many seconds the attack is repeated first, and its share of the time.
_PATIENCE, _SHARE = 5.0, 0.1
# How often a box is cut by the same linear bounds; a cut makes room for the next.
_CUTS = 3
_REPLAYS = 2
# How far what comes of a few steps in float64 is moved outwards, of the numbers it is made of.
_OUTWARD = 2.0**-50


@dataclass(frozen=True, eq=False)
class Outcome:
    """How the work on a property ended.

    Parameters
    ----------
    proved : bool
        Whether no input is unsafe.
    x : Tensor or None
        ``(*shape)`` an unsafe input, accepted by its judge.
    bound : float
        What was proved of all inputs: some inequality of every question is missed by at least this; with a proof, by
        more than 0.
    note : str
        Why neither was found, if not for lack of time.
    """

    proved: bool
    x: Tensor | None
    bound: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class _Boxes:
    """``M`` parts of the questions' boxes.

    Parameters
    ----------
    lower, upper : Tensor
        ``(M, n)``.
    question : Tensor
        ``(M,)`` whose part each is.
    bound : Tensor
        ``(M,)`` by how much some inequality is missed there, as far as is known.
    known : tuple of Interval
        ``(M, *shape)`` bounds of the nodes that nonlinear operations read.
    """

    lower: Tensor
    upper: Tensor
    question: Tensor
    bound: Tensor
    known: tuple[Interval, ...]

    def __len__(self) -> int:
        return len(self.bound)

    def take(self, rows: Tensor | slice) -> _Boxes:
        known = tuple(Interval(*(end[rows] for end in interval)) for interval in self.known)
        return _Boxes(self.lower[rows], self.upper[rows], self.question[rows], self.bound[rows], known)


def _joined(parts: list[_Boxes]) -> _Boxes:
    known = tuple(
        Interval(*(torch.cat(ends) for ends in zip(*intervals, strict=True)))
        for intervals in zip(*(part.known for part in parts), strict=True)
    )
    lower, upper, question, bound = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("lower", "upper", "question", "bound")
    )
    return _Boxes(lower, upper, question, bound, known)


def split_inputs(
    graph: Graph,
    questions: Questions,
    dtype: torch.dtype,
    accept: Callable[[Tensor], bool],
    deadline: float,
    attack: Callable[[float], Tensor | None],
) -> Outcome:
    """Decide whether all inequalities of a question can hold at once.

    Parameters
    ----------
    graph : Graph
        The network, in float64.
    questions : Questions
        What is asked of which inputs.
    dtype : torch.dtype
        The precision of the inputs that may be counterexamples.
    accept : callable
        Whether an input ``(*shape)`` is a counterexample: the last word on it.
    deadline : float
        When to stop, by ``time.monotonic``.
    attack : callable
        Searches for a counterexample until a given time. The longer the proof takes, the likelier it is that there is
        one: it is called whenever the time spent has doubled, for a tenth of that.
    """
    with torch.no_grad():
        return _Search(box_bounds(graph), graph.nodes[0].shape, questions, dtype, accept).run(deadline, attack)


class _Search:
    """The open boxes, the last ones first: what waits is then never more than a few for each level of the tree."""

    def __init__(
        self,
        network: BoxBounds,
        shape: tuple[int, ...],
        questions: Questions,
        dtype: torch.dtype,
        accept: Callable[[Tensor], bool],
    ) -> None:
        self.network, self.shape, self.questions, self.accept = network, shape, questions, accept
        self.inside = inward(questions.lower, questions.upper, dtype)
        known, error = network.start(questions.lower, questions.upper)
        # Taken from every bound: what is positive then has not been made so by rounding.
        self.room = questions.matrix.abs() @ error
        nothing = torch.full((len(questions),), -torch.inf, dtype=torch.float64)
        self.stack = [_Boxes(questions.lower, questions.upper, torch.arange(len(questions)), nothing, known)]
        self.stuck = torch.inf

    def run(self, deadline: float, attack: Callable[[float], Tensor | None]) -> Outcome:
        size, start, patience = _FEWEST, time.monotonic(), _PATIENCE
        while self.stack:
            began = time.monotonic()
            if began > deadline:
                return Outcome(False, None, self._bound())
            found = None
            if began - start > patience:
                found = attack(min(deadline, began + _SHARE * patience))
                patience *= 2
                began = time.monotonic()
            found = self._advance(self._pop(size)) if found is None else found
            if found is not None:
                return Outcome(False, found, -torch.inf)
            size = min(_MOST, size * 2) if time.monotonic() - began < _PACE else max(_FEWEST, size // 2)
        if self.stuck < torch.inf:
            return Outcome(False, None, self._bound(), "boxes that cannot be cut any more are left")
        return Outcome(True, None, self._bound())

    def _bound(self) -> float:
        # What was cut off is known to miss some inequality, but not by how much.
        return min([0.0, self.stuck, *(float(part.bound.min()) for part in self.stack)])

    def _pop(self, size: int) -> _Boxes:
        parts, count = list[_Boxes](), 0
        while self.stack and count < size:
            part = self.stack.pop()
            if len(part) > size - count:
                rest = len(part) - (size - count)
                self.stack.append(part.take(slice(0, rest)))
                part = part.take(slice(rest, None))
            parts.append(part)
            count += len(part)
        return _joined(parts)

    def _advance(self, boxes: _Boxes) -> Tensor | None:
        """Bound boxes, and push the halves of those that stay open; a counterexample if one turns up."""
        asked = self.questions.take(boxes.question)
        found = self.network.bound(boxes.lower, boxes.upper, boxes.known, asked.matrix)
        rounded = _OUTWARD * (found.constant.abs() + asked.bound.abs())
        constant = found.constant - asked.bound - rounded - self.room[boxes.question]
        bound = torch.fmax(boxes.bound, (least(found.slope, boxes.lower, boxes.upper) + constant).amax(1))
        # NaN, which an overflow may leave, is not above anything: such a box stays open.
        rows = (~(bound > 0)).nonzero()[:, 0]
        divisible = _divisible(boxes.lower, boxes.upper).any(1)
        boxes = _Boxes(boxes.lower, boxes.upper, boxes.question, bound, found.known)
        boxes, kept = self._cut(boxes.take(rows), found.slope[rows], constant[rows])
        if not len(boxes):
            return None
        rows = rows[kept]
        hidden, outputs = self.network.values(points := self._points(boxes).flatten(0, 1))
        x = self._tried(boxes, points, outputs)
        if x is None:
            score = (found.slope[rows].abs().sum(1) * (boxes.upper - boxes.lower)).T
            for weight, values in zip(found.weight, hidden, strict=True):
                up, down = values.flatten(1)[len(boxes) :].unflatten(0, (2, -1, len(boxes)))
                score = score + torch.linalg.vecdot((up - down).abs(), weight[rows].flatten(1))
            divisible = divisible[rows]
            self.stuck = min([self.stuck, *boxes.bound[~divisible].tolist()])
            if bool(divisible.any()):
                self._halve(boxes.take(divisible), score.T[divisible])
        return x

    def _cut(self, boxes: _Boxes, slope: Tensor, constant: Tensor) -> tuple[_Boxes, Tensor]:
        """Take away where ``<slope, x> + constant``, a lower bound of what is missed, is positive."""
        kept = torch.arange(len(boxes))
        lower, upper = boxes.lower, boxes.upper
        for _ in range(_CUTS):
            # How far each input may move from where the bound is least.
            reach = -(least(slope, lower, upper) + constant).unsqueeze(2) / slope.abs()
            low, high = upper.unsqueeze(1) - reach, lower.unsqueeze(1) + reach
            # Rounded outwards, by more than the few steps may be off.
            room = _OUTWARD * (reach.abs() + torch.maximum(lower.abs(), upper.abs()).unsqueeze(1))
            low = torch.where(slope < 0, low - room, -torch.inf).amax(1)
            high = torch.where(slope > 0, high + room, torch.inf).amin(1)
            lower, upper = torch.fmax(lower, low), torch.fmin(upper, high)
            rows = (lower <= upper).all(1).nonzero()[:, 0]
            kept, lower, upper, slope, constant = (t[rows] for t in (kept, lower, upper, slope, constant))
        boxes = boxes.take(kept)
        return _Boxes(lower, upper, boxes.question, boxes.bound, boxes.known), kept

    def _points(self, boxes: _Boxes) -> Tensor:
        """``(1 + 2n, M, n)`` the centres of boxes, then those of their upper faces and of their lower ones."""
        center, radius = boxes.lower / 2 + boxes.upper / 2, boxes.upper / 2 - boxes.lower / 2
        steps = torch.diag_embed(radius).transpose(0, 1)
        return torch.cat([center.unsqueeze(0), center + steps, center - steps])

    def _tried(self, boxes: _Boxes, points: Tensor, outputs: Tensor) -> Tensor | None:
        excess = self.questions.take(boxes.question).excess(outputs.unflatten(0, (-1, len(boxes)))).amax(2).flatten()
        for i in excess.topk(min(_REPLAYS, len(excess)), largest=False).indices.tolist():
            if excess[i] <= 0:
                low, high = (end[boxes.question[i % len(boxes)]] for end in self.inside)
                x: Tensor = points[i].to(low.dtype).clamp(low, high).unflatten(0, self.shape)
                if self.accept(x):
                    return x
        return None

    def _halve(self, boxes: _Boxes, score: Tensor) -> None:
        divisible = _divisible(boxes.lower, boxes.upper)
        # Where nothing tells the inputs apart, the widest one.
        score = score.nan_to_num(0.0) + torch.finfo(score.dtype).tiny * (boxes.upper - boxes.lower)
        axis = torch.where(divisible, score, -1.0).argmax(1, keepdim=True)
        # A box that has shrunk until it has no middle is bounded once more as it is.
        whole = ~divisible.any(1)
        cut = (boxes.lower / 2 + boxes.upper / 2).gather(1, axis)
        cut = torch.where(whole.unsqueeze(1), boxes.upper.gather(1, axis), cut)
        left = _Boxes(boxes.lower, boxes.upper.scatter(1, axis, cut), boxes.question, boxes.bound, boxes.known)
        right = _Boxes(boxes.lower.scatter(1, axis, cut), boxes.upper, boxes.question, boxes.bound, boxes.known)
        self.stack.append(_joined([left, right.take(~whole)]))


def _divisible(lower: Tensor, upper: Tensor) -> Tensor:
    """``(M, n)`` whether a number lies between the ends."""
    middle = lower / 2 + upper / 2
    return (lower < middle) & (middle < upper)
