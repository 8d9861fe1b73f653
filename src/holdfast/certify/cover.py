"""Proofs about sets that are no boxes, over boxes that cover them.

A set says which parts, its cells, hold all of its choices, and which box of inputs holds what the choices of a cell
give (:class:`~holdfast.threats.Coverable`). A cell whose box is proved is done with. Of one that is not, a choice is
tried, which may be a counterexample; then the cell is split, as Balunovic et al. do for the angle of a rotation
("Certifying geometric robustness of neural networks", NeurIPS 2019, section 4), or, where its box is all that it gives,
the box goes to branch and bound. A grid of choices alone would be an attack; the boxes leave nothing out.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Graph
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.zonotope import Zonotope
from holdfast.certify.certificate import COVER, LOOSE, QUICK, TIMEOUT, Certificate, Verdict
from holdfast.certify.certifier import BOUNDS, Certifier, misclassified, proven
from holdfast.certify.search.witness import outward
from holdfast.errors import ModelError
from holdfast.threats import Coverable, Sloped, Threat

__all__ = ["CoverCertifier"]

# Cells whose boxes are bounded together, and exact boxes that go to branch and bound together.
_TOGETHER, _SEARCHED = 64, 16
# What the reach of choices is multiplied by: the rounding of their distance from a cell's middle.
_AMPLE = 1 + 2.0**-50


@dataclass(frozen=True, eq=False)
class CoverCertifier:
    """What :class:`~holdfast.certify.certify.Certifier` is for balls, for sets that boxes cover.

    Parameters
    ----------
    boxes : Certifier
        What bounds the network over boxes, and how far to go; its time is for all cells of an example together.
    """

    boxes: Certifier

    @property
    def graph(self) -> Graph | None:
        """The network that is bounded."""
        return self.boxes.graph

    @property
    def fault(self) -> str:
        """Why there is none."""
        return self.boxes.fault

    def bound(self, x: Tensor, y: Tensor, threat: Threat) -> list[Certificate]:
        """Nothing yet: to cover a set takes so long that attacks go first."""
        note = self.boxes.fault if self.boxes.graph is None else ""
        return [Certificate("undecided", self.boxes.method, None, None, 0.0, note)] * len(x)

    def prove(self, x: Tensor, y: Tensor, threat: Threat) -> Iterator[tuple[int, Certificate]]:
        """Work on ``N`` examples, one after the other, and yield their places and certificates.

        Every example gets one; those that stay open carry a note.
        """
        for place in range(len(x)):
            one = torch.tensor([place], device=x.device)
            here = cast("Coverable", threat.at(one))
            try:
                yield place, _Cover(self.boxes, here, x[place], y[place : place + 1]).decide()
            except ModelError as error:
                yield place, Certificate("undecided", self.boxes.method, None, None, 0.0, str(error))


def _region(threat: Coverable, x: Tensor, cells: Tensor) -> Region:
    """What is known of the inputs that some cells give."""
    if not isinstance(threat, Sloped):
        return Region.box(*threat.box(x, cells))
    planes = threat.planes(x, cells)
    rest = Region.box(*outward(planes.floor, planes.ceiling, x.dtype))
    moving = (planes.reach > 0).any(0)
    reach = planes.reach[:, moving].reshape(len(cells), -1, *[1] * x.dim()) * _AMPLE
    return Region.box(
        planes.lower.to(x.dtype), planes.upper.to(x.dtype), Zonotope(rest, planes.slope[:, moving] * reach)
    )


@dataclass(eq=False)
class _Cover:
    """The work on one example."""

    boxes: Certifier
    threat: Coverable
    x: Tensor
    y: Tensor
    began: float = field(default_factory=time.perf_counter)
    lowest: float = math.inf  # of the bounds of the cells that are done with

    def decide(self) -> Certificate:
        if self.boxes.graph is None:
            return self._undecided(self.boxes.fault)
        # The last cells first: those of a split before those that wait, so that few wait at a time.
        waiting = [self.threat.cells(self.x)]
        whole: list[Tensor] = []
        while waiting:
            cells = waiting.pop()
            if len(cells) > _TOGETHER:
                waiting.append(cells[_TOGETHER:])
                cells = cells[:_TOGETHER]
            region = _region(self.threat, self.x, cells)
            lower, upper = region.lower, region.upper
            margins = self._margins(region)
            done = margins > 0
            self.lowest = min(self.lowest, float(margins[done].amin()) if bool(done.any()) else math.inf)
            cells, lower, upper = cells[~done], lower[~done], upper[~done]
            if not len(cells):
                continue
            if (broken := self._tried(cells, lower / 2 + upper / 2)) is not None:
                return broken
            finer = self.threat.split(cells)
            if len(finer):
                waiting.append(finer)
            else:
                whole.append(cells)
            if self._late():
                return self._undecided(TIMEOUT)
        return self._search(torch.cat(whole)) if whole else self._certificate("certified", COVER, self.lowest)

    def _margins(self, region: Region) -> Tensor:
        """``(M,)`` the best lower bounds of the worst margins over some boxes."""
        graph, method = self.boxes.graph, self.boxes.method
        assert graph is not None
        labels = self.y.expand(len(region))
        margins = torch.full((len(region),), -torch.inf, dtype=torch.float64, device=self.x.device)
        for name in QUICK[: QUICK.index(method) + 1] if method in QUICK else QUICK:
            left = (~(margins > 0)).nonzero()[:, 0]
            if len(left):
                bounds = partial(BOUNDS[name], memory=self.boxes.memory)
                found = proven(bounds, graph, region.take(left), labels[left]).double()
                margins = margins.index_copy(0, left, torch.fmax(margins[left], found))
        return margins

    def _tried(self, cells: Tensor, points: Tensor) -> Certificate | None:
        """A choice of each cell, and the first that is a counterexample."""
        z = self.threat.choose(self.x, cells, points)
        many = self.x.expand(len(cells), *self.x.shape)
        inputs = self.threat.apply(many, z)
        wrong = misclassified(self.boxes.logits(inputs), self.y.expand(len(cells))) & self.threat.contains(many, z)
        if not bool(wrong.any()):
            return None
        place = int(wrong.nonzero()[0, 0])
        certificate = self._certificate("broken", COVER, None)
        return replace(certificate, x_adv=inputs[place], choice=z[place])

    def _search(self, cells: Tensor) -> Certificate:
        """Branch and bound in boxes that are all that their cells give."""
        if self.boxes.method in QUICK:
            return self._undecided(LOOSE)
        graph = self.boxes.graph
        assert graph is not None
        note, method = "", COVER
        for start in range(0, len(cells), _SEARCHED):
            some = cells[start : start + _SEARCHED]
            found: list[Certificate] = []

            def judge(place: int, point: Tensor, some: Tensor = some, found: list[Certificate] = found) -> bool:
                broken = self._tried(some[place : place + 1], point.unsqueeze(0))
                found.extend([] if broken is None else [broken])
                return broken is not None

            left = max(0.0, self.boxes.seconds - (time.perf_counter() - self.began))
            region = Region.box(*self.threat.box(self.x, some))
            seconds = left * len(some) / (len(cells) - start)
            search = replace(self.boxes, seconds=seconds / len(some))
            for _, certificate in search.search(graph, region, self.y.expand(len(some)), judge):
                if found:
                    return replace(found[0], method=certificate.method)
                method = certificate.method
                self.lowest = min(self.lowest, -math.inf if certificate.bound is None else certificate.bound)
                note = note or certificate.note
        return self._undecided(note) if note else self._certificate("certified", method, self.lowest)

    def _late(self) -> bool:
        return time.perf_counter() - self.began > self.boxes.seconds

    def _undecided(self, note: str) -> Certificate:
        return replace(self._certificate("undecided", self.boxes.method, None), note=note)

    def _certificate(self, verdict: Verdict, method: str, bound: float | None) -> Certificate:
        seconds = time.perf_counter() - self.began
        known = None if bound is None or bound == -math.inf else min(bound, sys.float_info.max)
        return Certificate(verdict, method, known, None, seconds)
