"""The exact distance to the nearest adversarial input.

An attack goes first: nothing farther than what it finds matters. Where few neurons can have either sign within that
distance, in L-infinity and L1, a linear program moves the witness to the nearest input of its linear piece, and
branch and bound verifies the ball just inside: a counterexample is moved in turn, until there is none. What that leaves
open, and L0, goes to a mixed-integer program that finds the nearest input of each wrong class (Tjeng, Xiao and Tedrake,
"Evaluating robustness of neural networks with mixed integer programming", ICLR 2019, section 3). Where many neurons
can, and in L2, which is no linear program, complete verification decides ball after ball half-way between what is
certified and what is broken.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.arguments import ball_of, choice, inputs, labels, real
from holdfast.attacks import FMN
from holdfast.certify.bounds.crown import crown, lower_bounds
from holdfast.certify.bounds.margins import each_margin, specification
from holdfast.certify.bounds.operations.kink import Kink
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import Arithmetic, check_precision
from holdfast.certify.bounds.rows import Rows
from holdfast.certify.certificate import RUNS
from holdfast.certify.certifier import Certifier
from holdfast.certify.milp.encoding import constant, encode, largest_change
from holdfast.certify.milp.solver import TOLERANCE, margin, proved, solve
from holdfast.certify.search.branch import branch_and_bound
from holdfast.certify.search.domains import Problem
from holdfast.engine import craft
from holdfast.errors import ModelError
from holdfast.models.query import Query
from holdfast.tasks import objectives

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from holdfast.certify.bounds.graph import Graph
    from holdfast.certify.certificate import Runs
    from holdfast.certify.milp.encoding import Encoding
    from holdfast.certify.search.branch import Proof
    from holdfast.threats import Ball

__all__ = ["Distance", "exact_distance"]

# Both ends of a distance count as one number when they are this near, relative to it and absolutely.
_AGREE = (1e-4, 1e-5)
# Programs with more whole numbers than this are hard: balls are verified first.
_MANY = 100
# How much smaller than the distance of a witness the ball is that is to hold none, relatively: at first and at most.
_GAPS = (1e-6, 1e-5)
# How far below the solver's minimum a proof need not come: elsewhere, and in L0, whose distances are whole numbers.
_SHORT = (2 * TOLERANCE, 0.5)
# Balls that are smaller are tried for the network as executed, which rounding keeps apart from the exact one: how much
# smaller relative to the radius at least and at most, by which factor more at first, how near to the largest that
# fails is enough, and what share of the time spent so far may go to that; and the step that slopes are taken from.
_FINE, _MOST, _GROWTH, _NEAR, _MORE, _STEP = 1e-9, 0.3, 4.0, 1.5, 0.15, 1e-3
# How near to a ball that stays open, relative to its radius, others are tried.
_CLOSE = 0.01
# A ball may take this part of the time that is left for all.
_BALLS = 8
# In units in the last place of the largest number in the network: how far ahead the wrong class of a witness must be.
_ROUNDINGS = 4
# How much farther than the boundary a witness may be moved to be clearly beyond it, relative to the whole way.
_PUSHES = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, eq=False)
class Distance:
    """The distance from one example to the nearest input that is misclassified.

    Parameters
    ----------
    status : str
        ``"exact"``: in exact arithmetic, the bounds agree to 1e-4 of the distance, or to 1e-5; ``"bounded"``: they do
        not, for want of time; ``"none"``: no admissible input is misclassified; ``"unknown"``: no misclassified input
        was found and not all was searched.
    lower, upper : float
        ``lower`` is the radius of the largest ball found in which it is proved that the network as executed
        misclassifies nothing, whatever the order of its sums; it falls short of the distance in exact arithmetic by
        about what rounding may take from a margin, over how fast that falls with the radius. In L0 it is a count: fewer
        changes misclassify nothing, nor do so many where the status is ``"none"``. ``x_adv`` is at ``upper``,
        infinite if there is none: beyond the distance by what clearly misclassifying it asks in the model's precision.
    x_adv : Tensor or None
        ``(*shape)`` the nearest misclassified input found: a plain forward pass misclassifies it, and it lies in the
        set without any tolerance.
    method : str
        What had the last word: ``"branch and bound"``, ``"mixed-integer programming"``, or ``"clean pass"`` where the
        example itself is misclassified.
    seconds : float
        Spent on it, the attack excluded.
    """

    status: Literal["exact", "bounded", "none", "unknown"]
    lower: float
    upper: float
    x_adv: Tensor | None
    method: str
    seconds: float


def exact_distance(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Ball,
    *,
    seconds: float = 60.0,
    seed: int = 0,
    arithmetic: Runs = "executed",
) -> list[Distance]:
    """How far the nearest misclassified inputs are, and which they are.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, *shape)`` inputs to ``(N, K)`` logits; except in L2 by linear operations, ReLU, leaky ReLU, absolute
        values, clamps and max pooling only. It is given back as it was.
    x, y : Tensor
        ``(N, *shape)`` inputs inside the threat's box and ``(N,)`` labels.
    threat : Ball
        The norm, the box, and how far to search, which may be infinite if there is a box.
    seconds : float
        For each example.
    seed : int
        Of the attack.
    arithmetic : str
        ``"executed"``: ``lower`` holds for the network as it runs; ``"exact"``: for the network in exact arithmetic.

    Returns
    -------
    list of Distance
        One for each example.

    Raises
    ------
    ModelError
        When an operation is not piecewise linear, or no bound is known for it; it is named.
    DataError
        When inputs and labels do not fit each other, the box or the model.
    """
    choice("arithmetic", arithmetic, RUNS)
    x, threat, seconds = inputs(x), ball_of(threat), real("seconds", seconds, positive=False)
    y = labels(y, len(x))
    if not len(x):
        return []
    attacked = craft(FMN(), model, x, y, threat=threat, seed=seed)
    with Query(model, seed=seed) as query:
        x = query.prepare(x).contiguous()
        query.bare_logits(x[:1])  # shows whether it has one logit, which is bounded as two
        certifier = Certifier.of(
            query.model, x, "complete", seconds=seconds, logits=query.bare_logits, arithmetic="exact"
        )
        if certifier.graph is None:
            raise ModelError(certifier.fault)
        executed = certifier.graph.within(Arithmetic.of(query.inner_dtype)) if arithmetic == "executed" else None
        if executed is not None:
            check_precision(x.device)
        return [
            _search(
                _Example(query, certifier, certifier.graph.to(torch.float64), executed, x[i : i + 1], int(y[i]), here),
                attacked.x_adv[i],
                seconds,
            )
            for i in range(len(x))
            for here in [threat.at(torch.tensor([i], device=x.device))]
        ]


@dataclass(frozen=True, eq=False)
class _Example:
    """One example, ``(1, *shape)``, what is asked about it, and the network in exact arithmetic and as executed."""

    query: Query
    certifier: Certifier
    graph: Graph
    executed: Graph | None
    x: Tensor
    y: int
    threat: Ball


@dataclass(frozen=True, eq=False)
class _Bracket:
    """Nothing is nearer than ``lower``, and the witness is at ``upper``."""

    lower: float
    upper: float
    witness: Tensor | None

    def nearer(self, upper: float, witness: Tensor | None) -> _Bracket:
        """With another witness, if that is nearer."""
        return replace(self, upper=upper, witness=witness) if upper < self.upper else self

    def closed(self, norm: str) -> bool:
        return self.witness is not None and self.upper - self.lower <= _agreeing(self.upper, norm)


def _agreeing(distance: float, norm: str) -> float:
    """How far apart two numbers may be that count as one distance."""
    return 0.0 if norm == "l0" else _AGREE[0] * distance + _AGREE[1]


def _search(example: _Example, attacked: Tensor, seconds: float) -> Distance:
    """From the best that an attack did to it."""
    began = time.perf_counter()
    x, threat = example.x, example.threat
    if int(example.query.bare_logits(x).argmax(1)) != example.y:
        return Distance("exact", 0.0, 0.0, x[0], "clean pass", time.perf_counter() - began)
    bracket = _Bracket(0.0, np.inf, None).nearer(*_nearest(example, _pushed(x, attacked.to(x).double())))
    method = "branch and bound"
    program = None if threat.norm == "l2" else _program(example, bracket)
    if program is None or program.integers > _MANY:
        bracket = _bisected(example, bracket, began + seconds * (1 if program is None else 0.5))
    elif threat.norm != "l0":
        bracket = _descended(example, bracket, began + seconds * 0.5)
    settled = bracket.closed(threat.norm) or bracket.lower >= _budget(example)
    program = None if threat.norm == "l2" or settled else _program(example, bracket)
    if program is not None:
        method = "mixed-integer programming"
        bracket = _programmed(example, program, bracket, began + seconds)
    return _concluded(example, bracket, method, time.perf_counter() - began)


def _concluded(example: _Example, bracket: _Bracket, method: str, seconds: float) -> Distance:
    status: Literal["exact", "bounded", "none", "unknown"]
    lower = min(bracket.lower, bracket.upper)
    lower = _held(example, lower, bracket.witness is None and lower >= _budget(example), seconds)
    if bracket.witness is not None:
        status = "exact" if bracket.closed(example.threat.norm) else "bounded"
    else:
        status = "none" if lower >= _budget(example) else "unknown"
    return Distance(status, lower, bracket.upper, bracket.witness, method, seconds)


def _held(example: _Example, lower: float, whole: bool, seconds: float) -> float:
    """Of a distance that is proved in exact arithmetic, how much holds of the network as executed.

    It falls short by what rounding may take from a margin, over how fast the margin falls with the radius. Bounds
    without a split say about how much that is, and balls smaller by a few multiples of it are tried.
    """
    if example.executed is None or lower == 0:
        return lower
    graph, patience = example.executed.to(torch.float64), max(0.1 * seconds, 1.0)
    until = time.perf_counter() + _MORE * seconds

    def holds(short: float) -> bool:
        return _proved(example, graph, lower - short, patience)

    if example.threat.norm == "l0" or lower == np.inf:
        # Nothing is misclassified at fewer changes than a distance in L0: the ball has one less.
        return lower if holds(0.0 if whole else 1.0) else 0.0
    short, finest = _shortfall(example, graph, lower), _FINE * lower
    # Where no input is misclassified, the boundary need not be near.
    ends = _first_that_holds(holds, 0.0 if whole else short, max(short, finest), _MOST * lower)
    return 0.0 if ends is None else lower - _least_that_holds(holds, *ends, finest, until)


def _first_that_holds(
    holds: Callable[[float], bool], start: float, least: float, most: float
) -> tuple[float, float] | None:
    """Of numbers that grow ever faster, the last that fails, or 0, and the first that holds; none above ``most``."""
    failed, found, growth = 0.0, start, _GROWTH
    while not holds(found):
        failed, found, growth = found, growth * found if found else least, 2 * growth
        if found > most:
            return None
    return failed, found


def _least_that_holds(
    holds: Callable[[float], bool], failed: float, found: float, finest: float, until: float
) -> float:
    """Between a number that fails and one that holds, the least that is found to hold in the time that there is."""
    while found > _NEAR * failed and time.perf_counter() < until:
        middle = (found * failed) ** 0.5 if failed else found / _GROWTH
        if middle < finest:
            break
        failed, found = (failed, middle) if holds(middle) else (middle, found)
    return found


def _shortfall(example: _Example, graph: Graph, radius: float) -> float:
    """About how much smaller a ball has to be for the network as executed, as far as bounds without a split tell."""
    near = radius * (1 - _STEP)
    exact, executed = (_bounded(example, some, radius)[1] for some in (example.graph, graph))
    slope = (_bounded(example, graph, near)[1] - executed) / (radius - near)
    short = torch.where(executed <= 0, ((exact - executed) / slope).clamp_min(_FINE * radius), 0.0)
    return float(short.nan_to_num(0.0, 0.0, 0.0).amax())


def _bounded(example: _Example, graph: Graph, radius: float) -> tuple[Problem, Tensor]:
    """A ball with its bounds in float64, and those of the margins against all other classes."""
    region = Region.around(replace(example.threat, eps=radius), example.x.double())
    bounds = crown(graph, region)
    margins = each_margin(graph, bounds, region, torch.tensor([example.y]))[0]
    return Problem(graph, region, bounds, graph.output), margins


def _proved(example: _Example, graph: Graph, radius: float, seconds: float) -> bool:
    """Whether nothing in a ball is misclassified, by bounds or by branch and bound."""
    problem, margins = _bounded(example, graph, radius)
    if bool((margins > 0).all()) or not problem.splits:
        return bool((margins > 0).all())
    (rows,) = specification(torch.tensor([example.y]), len(margins) + 1, torch.float64)
    nothing = [rows.new_zeros(len(rows))]
    (proof,) = branch_and_bound(problem, [rows], nothing, lambda place, point: False, seconds=seconds)
    return proof.status == "proved"


def _descended(example: _Example, bracket: _Bracket, until: float) -> _Bracket:
    """Complete verification of a ball just smaller than the witness's distance, again from each counterexample."""
    whole = float(Region.around(example.threat, example.x).eps)
    gap, reach = _GAPS[0], whole
    if bracket.witness is not None:
        reach, bracket = _slid(example, bracket, bracket.witness[None].double(), until)
    radius = whole if bracket.witness is None else reach * (1 - gap)
    while (left := until - time.perf_counter()) > 0:
        proof = _verified(example, radius, left)
        if proof is not None and proof.status == "proved":
            return replace(bracket, lower=_budget(example) if radius >= whole else radius)
        if proof is not None and proof.x is not None:
            reach, bracket = _slid(example, bracket, proof.x[None].double(), until)
        elif proof is None or radius >= whole or gap >= _GAPS[1]:
            break
        else:
            gap *= 10
        radius = reach * (1 - gap)
    return bracket


def _verified(example: _Example, radius: float, seconds: float) -> Proof | None:
    """Branch and bound over a ball in float64; None where there is nothing to split."""
    graph, threat = example.graph, replace(example.threat, eps=radius)
    region = Region.around(threat, example.x.double())
    bounds = crown(graph, region)
    problem = Problem(graph, region, bounds, graph.output)
    if not problem.splits:
        return None
    (rows,) = specification(torch.tensor([example.y]), graph.nodes[graph.output].shape[0], torch.float64)

    def judge(place: int, point: Tensor) -> bool:
        admissible = threat.admits(point[None], region.center)
        return bool(admissible & (rows @ graph(point[None])[0] <= 0).any())

    (proof,) = branch_and_bound(problem, [rows], [rows.new_zeros(len(rows))], judge, seconds=seconds)
    return proof


def _slid(example: _Example, bracket: _Bracket, point: Tensor, until: float) -> tuple[float, _Bracket]:
    """To the nearest misclassified input of the linear piece that a misclassified one is in: a linear program."""
    graph, x, norm = example.graph, example.x.double(), example.threat.norm
    reach = float(example.threat.length(point - x))
    region = Region.around(replace(example.threat, eps=reach * (1 + _AGREE[0])), x)
    values = graph.values(point)
    signs = {
        number: torch.where(values[node.inputs[0]] >= 0, 1, -1)
        for number, node in enumerate(graph.nodes)
        if isinstance(node.operation, Kink)
    }
    encoding = encode(graph, region, crown(graph, region).intervals, signs)
    size = largest_change(encoding, region) if norm == "linf" else encoding.size
    others = values[-1][0].detach().clone()
    others[example.y] = -torch.inf
    ahead = -1.0 * margin(encoding, example.y, int(others.argmax()))
    found = solve(encoding.program, size, ahead, seconds=until - time.perf_counter())
    if found.variables is None:
        return reach, bracket
    bracket = bracket.nearer(*_nearest(example, _pushed(example.x, _input(example.x, found.variables))))
    return min(reach, found.upper), bracket


def _bisected(example: _Example, bracket: _Bracket, until: float) -> _Bracket:
    """Complete verification of ball after ball, each half-way between what is certified and what is broken or open."""
    x, y, norm = example.x, torch.tensor([example.y], device=example.x.device), example.threat.norm
    share = (until - time.perf_counter()) / _BALLS
    # Without a witness the whole set comes first; the box may be what limits it.
    whole = float(Region.around(example.threat, x).eps)
    ceiling = min(whole, bracket.upper)
    radius = whole if bracket.witness is None else _middle(bracket.lower, ceiling, norm)
    while not bracket.closed(norm) and (left := until - time.perf_counter()) > 0:
        ball, certifier = replace(example.threat, eps=radius), replace(example.certifier, seconds=min(share, left))
        (found,) = certifier.bound(x, y, ball)
        if found.verdict == "undecided":
            ((_, found),) = certifier.prove(x, y, ball)
        if found.verdict == "certified":
            if radius >= whole:
                return replace(bracket, lower=_budget(example))
            # Distances in L0 are whole numbers.
            bracket = replace(bracket, lower=radius + 1 if norm == "l0" else radius)
        elif found.x_adv is not None:
            bracket = bracket.nearer(*_nearest(example, _pushed(x, found.x_adv.double())))
        ceiling = ceiling if found.verdict == "certified" else min(ceiling, radius, bracket.upper)
        # Just below what is open everything takes long and gains little.
        if ceiling - bracket.lower <= (_agreeing(ceiling, norm) if ceiling == bracket.upper else _CLOSE * ceiling):
            break
        radius = _middle(bracket.lower, ceiling, norm)
    return bracket


def _middle(lower: float, upper: float, norm: str) -> float:
    """Between two distances; of whole ones, the largest that leaves the upper one open."""
    return float(np.floor((lower + upper - 1) / 2)) if norm == "l0" else (lower + upper) / 2


@dataclass(frozen=True, eq=False)
class _Program:
    """The encoding of a ball, and the classes that backward bounds do not exclude there, the likeliest first."""

    encoding: Encoding
    classes: list[int]
    radius: float

    @property
    def integers(self) -> int:
        return sum(int(part.sum()) for part in self.encoding.program.integral)


def _program(example: _Example, bracket: _Bracket) -> _Program:
    threat, graph, upper = example.threat, example.graph, bracket.upper
    # A little beyond, lest the solver's tolerance decide whether the witness is inside.
    radius = min(_budget(example), upper if threat.norm == "l0" else upper * (1 + _AGREE[0]) + _AGREE[1])
    region = Region.around(replace(threat, eps=radius), example.x.double())
    bounds = crown(graph, region)
    (count,) = graph.nodes[graph.output].shape
    rows = specification(torch.tensor([example.y]), count, torch.float64)[0]
    margins = lower_bounds(graph, graph.output, Rows.whole(rows), bounds.planes, bounds.errors, region)
    others = [k for k in range(count) if k != example.y]
    order = [others[place] for place in margins.argsort().tolist() if float(margins[place]) <= TOLERANCE]
    encoding = encode(graph, region, bounds.intervals)
    if threat.norm == "linf":
        encoding = replace(encoding, size=largest_change(encoding, region))
    return _Program(encoding, order, radius)


def _programmed(example: _Example, program: _Program, bracket: _Bracket, until: float) -> _Bracket:
    """The nearest input of each class that is open."""
    encoding, x = program.encoding, example.x
    # No class has an input within the radius that is nearer than this; those left out have none at all.
    lower, reach = program.radius, min(program.radius, bracket.upper)
    for k in program.classes:
        ahead, slack = -1.0 * margin(encoding, example.y, k), constant(np.array([reach])) - encoding.size
        beyond = encoding.size - constant(np.array([bracket.lower]))
        found = solve(encoding.program, encoding.size, ahead, slack, beyond, seconds=until - time.perf_counter())
        goal = reach if found.status == "infeasible" else found.lower - _SHORT[example.threat.norm == "l0"]
        sure = proved(
            encoding.program, encoding.size, ahead, slack, beyond, goal=goal, seconds=until - time.perf_counter()
        )
        lower = min(lower, max(sure, 0.0))
        if found.variables is not None:
            reach = min(reach, found.upper)
            bracket = bracket.nearer(*_nearest(example, _pushed(x, _input(x, found.variables))))
            # Where that is not clearly beyond the boundary: where the class is farthest ahead at hardly more distance.
            slack = constant(np.array([found.upper * (1 + _AGREE[0] / 2) + _AGREE[1] / 2])) - encoding.size
            if not replace(bracket, lower=found.upper).closed(example.threat.norm):
                deepest = solve(encoding.program, -1.0 * ahead, slack, seconds=until - time.perf_counter())
                if deepest.variables is not None:
                    bracket = bracket.nearer(*_nearest(example, _pushed(x, _input(x, deepest.variables))))
    if example.threat.norm == "l0":
        lower = float(np.ceil(lower))  # a count
    return replace(bracket, lower=max(lower, bracket.lower))


def _budget(example: _Example) -> float:
    return float(example.threat.budget(example.x.double()))


def _pushed(x: Tensor, point: Tensor) -> Tensor:
    """Inputs at a point and a little farther, also without the changes that only the tolerance allows."""
    move = point.to(x.device) - x.double()
    moves = torch.cat([move, torch.where(move.abs() <= 10 * TOLERANCE, 0, move)])
    return torch.cat([(x.double() + (1 + push) * moves).to(x.dtype) for push in _PUSHES])


def _input(x: Tensor, variables: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(variables[: x.numel()].copy()).reshape(x.shape)


def _nearest(example: _Example, inputs: Tensor) -> tuple[float, Tensor | None]:
    """Of some inputs, ``(M, *shape)``, the nearest that is misclassified and in the set, no tolerance given."""
    x, threat = example.x, example.threat
    inputs = threat.box.clip(inputs)
    length = threat.length(inputs.double() - x.double())
    logits = example.query.bare_logits(inputs)
    # Beyond what another order of the sums, such as that of another batch size, could undo.
    largest = torch.stack([value.flatten(1).abs().amax(1) for value in example.graph.values(inputs.double())]).amax(0)
    ahead = objectives.margin(logits, torch.full((len(inputs),), example.y, device=logits.device))
    fooled = ahead > _ROUNDINGS * torch.finfo(logits.dtype).eps * largest
    length = torch.where(fooled & (length <= _budget(example)), length, torch.inf)
    best = int(length.argmin())
    return (float(length[best]), inputs[best]) if bool(length[best].isfinite()) else (np.inf, None)
