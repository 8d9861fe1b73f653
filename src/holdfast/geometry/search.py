"""The exact distance to the nearest adversarial input, by a search through linear regions."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from holdfast.arguments import ball_of, one_input, whole
from holdfast.attacks import FMN
from holdfast.engine import craft
from holdfast.errors import DataError, SettingError
from holdfast.geometry.distance import class_walls
from holdfast.geometry.network import Network, push, take
from holdfast.geometry.pattern import pattern_of
from holdfast.geometry.polyhedron import nearest_point, refuse_l0
from holdfast.geometry.region import region_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.threats import Ball

__all__ = ["RegionSearch", "nearest_adversarial"]


@dataclass(frozen=True, eq=False)
class RegionSearch:
    """The distance from an input to the decision boundary, and what finding it took.

    Parameters
    ----------
    lower, upper : float
        No input of another class is nearer than ``lower``, and ``point`` is at ``upper``: up to the rounding of float64
        and the tolerance of the solver, so that neither is a proof; :func:`holdfast.certify.exact_distance` gives one.
        They are equal unless the search was cut off. Without an admissible input of another class ``upper`` is
        infinite, and ``lower`` the budget where all was searched.
    point : Tensor or None
        ``(*shape)`` float64, the nearest point of the decision boundary: there another class is level with ``y``.
    regions : int
        Linear regions looked at to the end.
    programs : int
        Linear programs (in L2 least-squares problems) solved.
    """

    lower: float
    upper: float
    point: Tensor | None
    regions: int
    programs: int


def nearest_adversarial(
    model: nn.Module, x: Tensor, y: int, threat: Ball, *, limit: int = 100_000, seed: int = 0
) -> RegionSearch:
    """Search the linear regions around an input, the nearest first, for the nearest input of another class.

    As in Jordan, Lewis and Dimakis, "Provable certificates for adversarial examples: fitting a ball in the union of
    polytopes", NeurIPS 2019, regions are visited in the order of their distance, so that the first point found that is
    nearer than all that is left is the nearest of all. Here patterns are decided unit by unit in place of being walked
    from facet to facet: all patterns that begin alike are put aside together when the polytope they share is too far
    away. Units that no input within the best distance known can switch are never asked.

    Parameters
    ----------
    model : nn.Module
        A sequence of layers that :class:`~holdfast.geometry.Network` knows. What is computed is in float64.
    x : Tensor
        ``(*shape)`` inside the box, without a batch dimension.
    y : int
        The label.
    threat : Ball
        The norm (linf, l2 or l1), the box, and how far to search, which may be infinite.
    limit : int
        Programs after which the search is cut off.
    seed : int
        Of the attack (FMN) that goes first.

    Returns
    -------
    RegionSearch

    Raises
    ------
    ModelError
        When a layer is of another kind; it is named.
    DataError
        When input or label do not fit the model or the box.
    SettingError
        When the norm is L0, or the limit is below 1.
    """
    limit, y = whole("limit", limit, 0), whole("y", y, 0)
    if limit < 1:
        raise SettingError(f"limit: a search needs at least 1 program, got {limit}")
    threat = ball_of(threat)
    refuse_l0(threat)
    x = one_input(x)
    network = Network.of(model, tuple(x.shape))
    x = network.fits(x)
    if float(threat.box.excess(x[None])) > 0:
        raise DataError("the input lies outside the threat's box: mend the box or the input")
    logits = network(x[None])[0]
    if logits.dim() != 1 or not 0 <= y < len(logits):
        raise DataError(f"y: class {y} is none of the network's, whose output is {tuple(logits.shape)}")
    if int(logits.argmax()) != y:
        return RegionSearch(0.0, 0.0, x, 1, 0)
    search = _Search(network, x, y, threat, float(threat.budget(x[None])))
    attacked = craft(FMN(), model, x[None], torch.tensor([y]), threat=threat, seed=seed).x_adv[0]
    search.start(attacked.detach().to("cpu", torch.float64))
    return search.run(limit)


@dataclass(frozen=True, eq=False)
class _Node:
    """Patterns that begin alike.

    Parameters
    ----------
    stage : int
        The first stage with units to decide.
    frame : Tensor
        Of all coordinates at ``x``, before that stage's units.
    choices : dict
        Of that stage's units, those decided.
    normals, slack : Tensor
        What a change of ``x`` must satisfy.
    nearest : Tensor
        ``(*shape)`` the shortest such change.
    """

    stage: int
    frame: Tensor
    choices: dict[int, int]
    normals: Tensor
    slack: Tensor
    nearest: Tensor


@dataclass
class _Search:
    network: Network
    x: Tensor
    y: int
    threat: Ball
    budget: float
    upper: float = torch.inf
    point: Tensor | None = None
    regions: int = 0
    programs: int = 0
    queue: list[tuple[float, int, _Node]] = field(default_factory=list)
    order: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def reach(self) -> float:
        """What is not nearer is of no interest."""
        return min(self.upper, self.budget)

    def start(self, attacked: Tensor) -> None:
        """From the nearest boundary point of the region of what an attack found."""
        if int(self.network(attacked[None])[0].argmax()) != self.y:
            region = region_of(self.network, pattern_of(self.network, attacked[None])[0], self.x)
            self._close(region.normals, region.slack(self.x[None])[0], *class_walls(region, self.x, self.y))
        nothing = self.x.new_zeros(0, self.x.numel())
        self._push(0.0, _Node(0, self._entered(0, self.network.whole(self.x)), {}, nothing, nothing[:, 0], 0 * self.x))

    def run(self, limit: int) -> RegionSearch:
        while self.queue and self.queue[0][0] < self.reach:
            if self.programs >= limit:
                return self._result(self.queue[0][0])
            bound, _, node = heapq.heappop(self.queue)
            self._expand(bound, node)
        return self._result(torch.inf)

    def _result(self, open_from: float) -> RegionSearch:
        found = self.upper <= self.budget
        upper, point = (self.upper, self.point) if found else (torch.inf, None)
        return RegionSearch(min(open_from, self.reach), upper, point, self.regions, self.programs)

    def _expand(self, bound: float, node: _Node) -> None:
        if node.stage == len(self.network.stages):
            ahead = self._leads(node.frame)
            self.regions += 1
            self._close(node.normals, node.slack, ahead[1:].T, ahead[0])
            return
        candidates = self.network.stages[node.stage].units.candidates(node.frame)
        options, away = self._options(candidates, node)
        for unit, chosen in node.choices.items():
            options[unit] = False
            options[unit, chosen] = True
            away[unit] = -torch.inf
        if node.stage == len(self.network.stages) - 1 and not self._contested(candidates, options):
            return
        choice = options.long().argmax(1)
        if len(away) and float(away.max()) > -torch.inf:
            self._split(bound, node, candidates, int(away.argmax()), options)
            return
        frame = take(candidates, choice).reshape(-1, *self.network.stages[node.stage].units.shape)
        onward = replace(node, stage=node.stage + 1, frame=self._entered(node.stage + 1, frame), choices={})
        self._push(bound, onward)

    def _options(self, candidates: Tensor, node: _Node) -> tuple[Tensor, Tensor]:
        """``(U, k)`` which candidates may be the largest within reach, and ``(U,)`` which unit to ask first.

        The unit that is clearest at the node's nearest point: its other choices are far away, and soon put aside.
        """
        ahead = candidates.unsqueeze(3) - candidates.unsqueeze(2)
        options = (self._most(ahead) >= 0).all(2)
        # Candidates that are the same everywhere are one.
        options &= ~((ahead == 0).all(0).tril(-1) & options.unsqueeze(1)).any(2)
        here = candidates[0] + torch.einsum("r,ruk->uk", node.nearest.flatten(), candidates[1:])
        top = here.masked_fill(~options, -torch.inf).topk(min(2, here.shape[1]), 1).values
        clear = (top[:, 0] - top[:, -1]) / candidates[1:].abs().sum((0, 2)).clamp_min(1e-300)
        return options, torch.where(options.sum(1) > 1, clear, -torch.inf)

    def _contested(self, candidates: Tensor, options: Tensor) -> bool:
        """Whether any class may overtake within reach, by a linear bound of its lead over the last units.

        A unit between two candidates is at most their chord, and at least the one that is more often the larger; where
        there are more, it is between its least and its most.
        """
        first, second = options.long().topk(min(2, options.shape[1]), 1).indices.sort(1).values.unbind(1)
        pair, more = options.sum(1) == 2, options.sum(1) > 2
        first = torch.where(pair, first, options.long().argmax(1))
        one = take(candidates, first).masked_fill(more, 0)
        gain = torch.where(pair, take(candidates, second) - one, 0.0)
        low, high = -self._most(-gain).clamp_min(0), self._most(gain).clamp_min(0)
        chord = torch.where(pair & (high > 0), high / (high - low), 0.0)
        most = self._most(candidates).masked_fill(~options, -torch.inf).amax(1)
        least = -self._most(-candidates).amin(1)
        ceiling, floor = torch.where(more, most, -chord * low), torch.where(more, least, 0.0)
        weight = self._leads(push(self.network.tail, self._unit_frame()))
        slope = torch.where(weight[1:] > 0, chord[:, None], (high > -low).double()[:, None])
        leads = one @ weight[1:] + gain @ (slope * weight[1:])
        leads[0] += weight[0] + ceiling @ weight[1:].clamp_min(0) + floor @ weight[1:].clamp_max(0)
        # Without any limit the bounds are infinite, or no numbers.
        return not bool((self._most(leads) < 0).all())

    def _unit_frame(self) -> Tensor:
        """The frame of the last units' values, at 0."""
        shape = self.network.stages[-1].units.shape
        eye = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
        return torch.cat([0 * eye[:1], eye]).reshape(-1, *shape)

    def _leads(self, logits: Tensor) -> Tensor:
        """``(R, K - 1)`` how far the other classes are ahead."""
        return torch.cat([logits[:, : self.y], logits[:, self.y + 1 :]], 1) - logits[:, self.y, None]

    def _most(self, frame: Tensor) -> Tensor:
        """The largest value within reach of what a frame, ``(1 + d, ...)``, holds."""
        grads = frame[1:].flatten(1).T.reshape(-1, *self.x.shape)
        best = replace(self.threat, eps=self.reach).maximize(grads, self.x.expand_as(grads))
        rise = (grads * best).flatten(1).sum(1).nan_to_num(torch.inf)
        return frame[0] + rise.reshape(frame.shape[1:])

    def _split(self, bound: float, node: _Node, candidates: Tensor, unit: int, options: Tensor) -> None:
        for choice in options[unit].nonzero().flatten().tolist():
            rivals = options[unit].clone()
            rivals[choice] = False
            ahead = candidates[:, unit, choice, None] - candidates[:, unit, rivals]
            normals = torch.cat([node.normals, ahead[1:].T])
            slack = torch.cat([node.slack, ahead[0]])
            child = replace(node, choices={**node.choices, unit: choice}, normals=normals, slack=slack)
            if bool((ahead[0] + node.nearest.flatten() @ ahead[1:] >= 0).all()):
                # The nearest point of all is one of these.
                self._push(bound, child)
            elif (move := self._nearest(normals, slack)) is not None:
                self._push(max(bound, self._size(move)), replace(child, nearest=move))

    def _close(self, normals: Tensor, slack: Tensor, walls: Tensor, leads: Tensor) -> None:
        """The nearest point of a region where another class is ahead."""
        most = self._most(torch.cat([leads[None], walls.T]))
        for wall in (most >= 0).nonzero().flatten().tolist():
            move = self._nearest(torch.cat([normals, walls[wall, None]]), torch.cat([slack, leads[wall, None]]))
            if move is not None and (size := self._size(move)) < self.upper:
                self.upper, self.point = size, self.x + move

    def _nearest(self, normals: Tensor, slack: Tensor) -> Tensor | None:
        self.programs += 1
        return nearest_point(self.threat, self.x, normals, slack)

    def _size(self, move: Tensor) -> float:
        return float(self.threat.length(move[None]))

    def _entered(self, stage: int, frame: Tensor) -> Tensor:
        """The frame before a stage's units, or at the output."""
        stages = self.network.stages
        return push(stages[stage].affine if stage < len(stages) else self.network.tail, frame)

    def _push(self, bound: float, node: _Node) -> None:
        if bound < self.reach:
            heapq.heappush(self.queue, (bound, next(self.order), node))
