"""Proofs about the rows of a table: quick bounds over the box around them, and programs that hold every rule.

The box holds every admissible row, so what any prover says of it is true of them. Where that is too loose, the rules
are constraints of a mixed-integer program (:mod:`holdfast.certify.milp.rules`) together with the network or the trees.
The solver is trusted in neither direction: the rows that it finds are decoded and judged by the rules and by the model
itself, and what it calls impossible is proved again by a branch and bound whose every part is bounded by multipliers in
plain arithmetic (:func:`holdfast.certify.milp.solver.proved`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.region import Region
from holdfast.certify.certificate import LEAVES, LOOSE, PROGRAM, QUICK, TIE, TIMEOUT, Certificate, Verdict
from holdfast.certify.certifier import BOUNDS, Certifier, misclassified, proven
from holdfast.certify.cover import CoverCertifier
from holdfast.certify.milp.crossing import affordable, charge, nearest
from holdfast.certify.milp.encoding import Affine, constant, encode
from holdfast.certify.milp.rules import Rows, constrain, rows_around, touching
from holdfast.certify.milp.solver import TOLERANCE, margin, proved, solve
from holdfast.certify.milp.trees import encode_trees, link, merged
from holdfast.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.certify.bounds.graph import Graph
    from holdfast.certify.milp.encoding import Program
    from holdfast.certify.milp.trees import TreeEncoding
    from holdfast.models.trees import Ensemble, Leaf
    from holdfast.threats import Threat
    from holdfast.threats.table import Table
    from holdfast.threats.table.layout import Layout

__all__ = ["TableCertifier", "TableTrees"]

Array = NDArray[np.float64]
# Planes that may be laid against an L2 ball, one after the other, where the last solution lies outside of it.
_PLANES = 30
# How far above a threshold a row is taken that is to lie above it, of what it is a difference of.
_BESIDE = 2.0**-50


@dataclass(frozen=True, eq=False)
class TableCertifier:
    """What :class:`~holdfast.certify.certifier.Certifier` is for balls, of networks over the rows of a table.

    Parameters
    ----------
    boxes : Certifier
        What bounds the network over boxes, and how far to go.
    layout : Layout
        The rules of the table.
    """

    boxes: Certifier
    layout: Layout

    @property
    def graph(self) -> Graph | None:
        """The network that is bounded."""
        return self.boxes.graph

    @property
    def fault(self) -> str:
        """Why there is none."""
        return self.boxes.fault

    def bound(self, x: Tensor, y: Tensor, threat: Threat) -> list[Certificate]:
        """What bounds over the boxes around the rows of ``N`` examples say."""
        graph, method = self.boxes.graph, self.boxes.method
        if graph is None:
            return [Certificate("undecided", method, None, None, 0.0, self.fault)] * len(x)
        found = []
        for place in range(len(x)):
            began, one = time.perf_counter(), slice(place, place + 1)
            rows = rows_around(self.layout, _table(threat, place, x), x[one])
            note = LOOSE if method in QUICK else ""
            try:
                name, low = self._box(_region(rows, x.dtype), y[one])
                verdict: Verdict = "certified" if low > 0 else "undecided"
                known = low if np.isfinite(low) else None
                certificate = Certificate(verdict, name, known, None, 0.0, "" if low > 0 else note)
            except ModelError as error:
                certificate = Certificate("undecided", method, None, None, 0.0, str(error))
            found.append(replace(certificate, seconds=time.perf_counter() - began))
        return found

    def _box(self, region: Region, y: Tensor) -> tuple[str, float]:
        """The best lower bound of the worst margin over a box, and the first method that made it positive."""
        graph, method = self.boxes.graph, self.boxes.method
        assert graph is not None
        best, name = -np.inf, str(method)
        for name in QUICK[: QUICK.index(method) + 1] if method in QUICK else QUICK:
            best = max(best, float(proven(partial(BOUNDS[name], memory=self.boxes.memory), graph, region, y)[0]))
            if best > 0:
                break
        return name, best

    def prove(self, x: Tensor, y: Tensor, threat: Threat) -> Iterator[tuple[int, Certificate]]:
        """Work on ``N`` examples, one after the other, and yield their places and certificates."""
        for place in range(len(x)):
            if self.boxes.graph is None or self.boxes.method != "complete":
                yield place, Certificate("undecided", self.boxes.method, None, None, 0.0, self.fault or LOOSE)
                continue
            one = slice(place, place + 1)
            here = _table(threat, place, x)
            rows = rows_around(self.layout, here, x[one])
            search = _Search(here, x[one], y[one], rows, self.boxes.logits, self.boxes.seconds)
            try:
                yield place, self._program(search)
            except ModelError:  # what is not piecewise linear is no program, but boxes that cover the rows do
                ((_, certificate),) = CoverCertifier(self.boxes).prove(x[one], y[one], here)
                yield place, certificate

    def _program(self, search: _Search) -> Certificate:
        assert self.boxes.graph is not None
        graph, rows, y = self.boxes.graph.to(torch.float64), search.rows, int(search.y)
        region = _region(rows, search.x.dtype).to(torch.float64)
        bounds = crown(graph, region, memory=self.boxes.memory)
        encoding = encode(graph, region, bounds.intervals, whole=rows.whole)
        search.begin(encoding.program, encoding.inputs)
        for k in range(len(encoding.output)):
            if k != y and not search.done:
                search.rival(margin(encoding, y, k), needed=0.0, short=None)
        return search.certificate()


@dataclass(frozen=True, eq=False)
class TableTrees:
    """The same of tree ensembles of scikit-learn.

    Parameters
    ----------
    ensemble : Ensemble
        The trees, with thresholds for inputs of float64.
    layout : Layout
        The rules of the table.
    method : str
        How far to go.
    seconds : float
        How long a search may take, an example.
    logits : callable
        What the model itself says of inputs.
    """

    ensemble: Ensemble
    layout: Layout
    method: str
    seconds: float
    logits: Callable[[Tensor], Tensor]

    @property
    def graph(self) -> None:
        """There is no network."""

    @property
    def fault(self) -> str:
        """Nothing is in the way of proofs."""
        return ""

    def bound(self, x: Tensor, y: Tensor, threat: Threat) -> list[Certificate]:
        """What the leaves that are in reach say, each tree by itself."""
        found = []
        for place in range(len(x)):
            began = time.perf_counter()
            rows = rows_around(self.layout, _table(threat, place, x), x[place : place + 1])
            leaves = self._leaves(rows)
            least, needed = self._least(leaves, int(y[place]))
            robust = bool((least >= needed).all())
            bound = float((least - self.ensemble.rounding(int(y[place]))).min()) / self.ensemble.share
            note = "" if robust or self.method not in QUICK else LOOSE
            seconds = time.perf_counter() - began
            found.append(Certificate("certified" if robust else "undecided", LEAVES, bound, None, seconds, note))
        return found

    def prove(self, x: Tensor, y: Tensor, threat: Threat) -> Iterator[tuple[int, Certificate]]:
        """Work on ``N`` examples, one after the other, and yield their places and certificates."""
        for place in range(len(x)):
            if self.method != "complete":
                yield place, Certificate("undecided", self.method, None, None, 0.0, LOOSE)
                continue
            one = slice(place, place + 1)
            here = _table(threat, place, x)
            rows = rows_around(self.layout, here, x[one])
            yield place, self._program(_Search(here, x[one], y[one], rows, self.logits, self.seconds))

    def _leaves(self, rows: Rows) -> list[list[Leaf]]:
        return merged([affordable(tree.reached(rows.lower, rows.upper), rows) for tree in self.ensemble.trees])

    def _least(self, leaves: list[list[Leaf]], y: int) -> tuple[Array, Array]:
        """``(K,)`` the least lead over each class that leaves allow tree by tree, and what is needed."""
        start, needed = self.ensemble.constant[y] - self.ensemble.constant, self.ensemble.needed(y)
        least = start + np.sum([np.min([f.votes[y] - f.votes for f in tree], 0) for tree in leaves], 0)
        least[y], needed[y] = np.inf, 0.0
        return least, needed

    def _program(self, search: _Search) -> Certificate:
        ensemble, rows, y = self.ensemble, search.rows, int(search.y)
        leaves = self._leaves(rows)
        least, needed = self._least(leaves, y)
        rivals = np.flatnonzero(~(least >= needed))
        encoding = encode_trees(leaves, rows.x, np.inf)
        inputs = encoding.program.variables(rows.lower, rows.upper, integral=rows.whole)
        link(encoding, inputs, rows.lower, rows.upper, rows.whole)
        charge(encoding, inputs, rows)
        search.begin(encoding.program, inputs, encoding)
        for k in rivals[np.argsort(least[rivals])].tolist():
            start = float(ensemble.constant[y] - ensemble.constant[k])
            # Sums on a lattice that are known to lie above one of its points are at the next.
            short = float(needed[k] - 0.9 * ensemble.lattice)
            if not search.done:
                search.rival(encoding.lead(y, k) + constant(np.array([start])), needed=float(needed[k]), short=short)
        found = search.certificate()
        return found if found.bound is None else replace(found, bound=found.bound / ensemble.share)


@dataclass(eq=False)
class _Search:
    """The work on one example: the rows that keep the label, class by class."""

    threat: Table
    x: Tensor
    y: Tensor
    rows: Rows
    logits: Callable[[Tensor], Tensor]
    seconds: float
    began: float = field(default_factory=time.perf_counter)
    lowest: float = np.inf
    note: str = ""
    found: Certificate | None = None
    program: Program | None = None
    inputs: Affine | None = None
    spent: Affine | None = None
    planes: list[Affine] = field(default_factory=list)
    sides: TreeEncoding | None = None

    def begin(self, program: Program, inputs: Affine, sides: TreeEncoding | None = None) -> None:
        """Put the rules on the variables of a program that are the row; ``sides`` knows the thresholds of trees."""
        self.program, self.inputs, self.sides = program, inputs, sides
        self.spent = constrain(program, inputs, self.rows)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.found is not None or self.left <= 0

    @property
    def left(self) -> float:
        return self.began + self.seconds - time.perf_counter()

    def rival(self, lead: Affine, *, needed: float, short: float | None) -> None:
        """Show that the lead over another class is always what is needed, or find a row where it is not.

        Parameters
        ----------
        lead : Affine
            One entry.
        needed : float
            What the lead is to be at least, or more than, if it is 0.
        short : float, optional
            Below ``needed``; what is not below it is as good. By default what is above 0 by a hair.
        """
        assert self.program is not None
        if self._seek(lead, needed):
            return
        goal = short if short is not None else float(np.finfo(float).tiny)
        bound = proved(self.program, lead, *self.planes, goal=goal, seconds=self.left)
        self.lowest = min(self.lowest, needed if short is not None and bound >= goal else bound)
        if not bound >= goal:
            self.note = TIMEOUT if self.left <= 0 else TIE if bound >= needed - TOLERANCE else LOOSE

    def _seek(self, lead: Affine, most: float) -> bool:
        """Whether a row with no more than such a lead was found that misleads the model; any such row will do."""
        assert self.program is not None
        assert self.spent is not None
        behind = constant(np.array([most])) - lead
        for _ in range(_PLANES):
            minimum = solve(self.program, lead, behind, *self.planes, seconds=self.left, gap=np.inf)
            if minimum.variables is None:
                return False
            if self._judged_at(minimum.variables):
                return True
            plane = touching(self.spent, minimum.variables, self.rows)
            if plane is None:
                break
            self.planes.append(plane)
        # The first row found may lie at the very edge of what misleads; the best one lies as far beyond as there is.
        best = solve(self.program, lead, *self.planes, seconds=self.left)
        return best.variables is not None and self._judged_at(best.variables)

    def _judged_at(self, variables: Array) -> bool:
        assert self.inputs is not None
        row = self.inputs.at(variables)
        if self.sides is not None:
            ranges = self.sides.ranges(variables)
            if self.judged(nearest(ranges, row.round(), self.rows)):
                return True
            # A solver's tolerance is wider than what lies between two sides of a threshold.
            for feature, (low, high) in ranges.items():
                size = max(abs(low) if np.isfinite(low) else 0.0, abs(self.rows.x[feature]))
                row[feature] = min(max(row[feature], low + _BESIDE * size), high)
        return self.judged(row)

    def judged(self, row: Array) -> bool:
        """Whether a row, once it is decoded, is admissible and misleads the model; a nearby one where it is not."""
        wanted = torch.from_numpy(np.clip(row, self.rows.lower, self.rows.upper))
        z = (wanted - self.x[0].double()).to(self.x.dtype).unsqueeze(0)
        if not bool(self.threat.contains(self.x, z)):
            z = self.threat.project(z, self.x)
        x_adv = self.threat.apply(self.x, z)
        wrong = misclassified(self.logits(x_adv), self.y) & self.threat.contains(self.x, z)
        if bool(wrong):
            self.found = replace(self._certificate("broken"), x_adv=x_adv[0], choice=z[0])
        return bool(wrong)

    def certificate(self) -> Certificate:
        """What has come of it."""
        if self.found is not None:
            return self.found
        note = self.note or (TIMEOUT if self.left <= 0 else "")
        if note:
            return replace(self._certificate("undecided"), note=note)
        return self._certificate("certified")

    def _certificate(self, verdict: Verdict) -> Certificate:
        known = self.lowest if verdict != "broken" and np.isfinite(self.lowest) else None
        seconds = time.perf_counter() - self.began
        return Certificate(verdict, PROGRAM, known, None, seconds)


def _table(threat: Threat, place: int, x: Tensor) -> Table:
    return cast("Table", threat.at(torch.tensor([place], device=x.device)))


def _region(rows: Rows, dtype: torch.dtype) -> Region:
    """The box around the rows, in the model's precision and no smaller."""

    def rounded(end: Array, side: float) -> Tensor:
        exact = torch.from_numpy(end)
        near = exact.to(dtype)
        short = near.double() > exact if side < 0 else near.double() < exact
        return torch.where(short, torch.nextafter(near, torch.full_like(near, side)), near).unsqueeze(0)

    return Region.box(rounded(rows.lower, -np.inf), rounded(rows.upper, np.inf))
