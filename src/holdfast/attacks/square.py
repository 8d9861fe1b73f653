"""Square: random search over square windows, from scores alone."""

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.threats import Threat
from holdfast.threats.needs import needs_ball
from holdfast.threats.norm import column, safe_divide

__all__ = ["Square"]

# The share p of the pixels in a window halves after these proposals of a run of _SCHEDULE.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE = 10_000

# Proposals whose random numbers are drawn together: drawing for many costs hardly more than for one.
_BLOCK = 256

# What the authors add to a norm before dividing by it.
_FLOOR = 1e-12


def window(share: float, height: int, width: int, odd: bool = False) -> tuple[int, int]:
    """Sides of a window with a share of an image's pixels; ``odd`` as in L2 and L1, where they are odd and at least 3.

    A square, as published. Where that is taller (wider) than the image, the window spans the image's whole height
    (width) and is as much longer as it takes to have its share.
    """

    def fit(side: float) -> int:
        return max(round(side), 3) // 2 * 2 + 1 if odd else max(round(side), 1)

    area, (short, long) = share * height * width, sorted((height, width))
    side = fit(math.sqrt(area))
    sides = min(side, short), min(max(side, fit(area / short)), long)
    return sides if height <= width else (sides[1], sides[0])


@functools.cache
def bump(height: int, width: int, power: int) -> Tensor:
    """``(height, width)`` the window's two halves, upper and lower, as mounds of opposite sign; its norm is 1.

    A mound sums concentric squares, the ``k``-th around its middle with the weight ``k ** -2`` in L2 and ``k ** -4``
    in L1. ``power`` is that of the norm: 2 or 1.
    """

    def unit(heights: Tensor) -> Tensor:
        return heights / heights.abs().pow(power).sum() ** (1 / power)

    def mound(rows: int) -> Tensor:
        away = torch.maximum(*(_from_middle(n).reshape(shape) for n, shape in ((rows, (-1, 1)), (width, (1, -1)))))
        rings = torch.arange(1, max(rows // 2, width // 2) + 2, dtype=torch.float64) ** (-4 // power)
        heights = rings.flip(0).cumsum(0).flip(0)[away]
        return unit(heights)

    lower = -mound(height - height // 2)
    whole = lower if height < 2 else torch.cat([mound(height // 2), lower])
    return unit(whole)


def _from_middle(count: int) -> Tensor:
    return (torch.arange(count) - count // 2).abs()


def bumps(height: int, width: int, power: int) -> Tensor:
    """``(2, height, width)`` split across and along; a window a single pixel high or wide has only one way."""
    across, along = bump(height, width, power), bump(width, height, power).T
    return torch.stack([along if height == 1 else across, across if width == 1 else along])


@functools.cache
def _all_bumps(p: float, height: int, width: int, power: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(2 * levels, ...)`` the bumps of every window size, in the corner of a common frame."""
    sides = _windows(p, height, width, odd=True)
    frame = torch.zeros(2 * len(sides), *map(max, zip(*sides, strict=True)), dtype=torch.float64)
    for level, (h, w) in enumerate(sides):
        frame[2 * level : 2 * level + 2, :h, :w] = bumps(h, w, power)
    return frame.to(device, dtype)


def _windows(p: float, height: int, width: int, odd: bool) -> list[tuple[int, int]]:
    return [window(p / 2**level, height, width, odd) for level in range(len(_HALVINGS) + 1)]


def _images(x: Tensor) -> Tensor:
    """``(N, C, H, W)``: a flat vector is one row of pixels, and dimensions beyond the last two are channels."""
    height, width = (1, 1, *x.shape[1:])[-2:]
    return x.reshape(len(x), math.prod(x.shape[1:-2]), height, width)


def _span(start: Tensor, length: Tensor, count: int) -> Tensor:
    """``(N, count)`` bool, true from ``start`` on for ``length``."""
    after = torch.arange(count, device=start.device, dtype=start.dtype) - start.unsqueeze(1)
    return (after >= 0) & (after < length.unsqueeze(1))


@dataclass(frozen=True)
class _State:
    z: Tensor  # the perturbation to look at next
    best: Tensor
    value: Tensor  # the margin there
    looks: Tensor
    end: Tensor  # the looks after which the run is over
    plan: Tensor  # (N, _BLOCK, ...) where the next proposals lie, and their signs: see Square._plan


@dataclass(frozen=True)
class Square:
    """Random search on the margin: what raises it in a random window stays.

    In L-infinity a run starts from vertical stripes at the ends of the budget and each proposal moves one window to
    them, every channel to an end of its own; so all it looks at are corners of ball and box. In L2 and L1 it starts
    from a grid of bumps, and a proposal adds a bump to one window and pays for it with the change in another. Windows
    shrink on the schedule of a run of 10,000 queries, whatever ``queries`` is.

    Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial attack via
    random search", ECCV 2020, arXiv:1912.00049, algorithms 1 to 3; L1 as in Croce and Hein, "Mind the box: l1-APGD for
    sparse adversarial attacks on image classifiers", ICML 2021, arXiv:2103.01208. Where it departs from the authors'
    code: every example has windows and signs of its own (there a batch shares them); a window may touch every edge (the
    last row and column are never drawn there); and sides that are not equal follow :func:`window`. A flat vector counts
    as an image of one row, in which a window is a stretch of neighbouring features; further leading dimensions count as
    channels.

    Costs ``queries`` forwards a run, the start included (the authors' code counts the start apart, and makes 5,001).

    Parameters
    ----------
    queries : int
        Forward passes a run.
    p : float
        The share of the pixels in the first windows.
    restarts : int
        Runs for an example that stays unbroken.
    schedule : int
        The windows shrink as in a run of so many queries: 10,000 as published, whatever ``queries`` is.
    rounds : int
        Parts that a run is cut into, each going on from the best choice seen. A stage's polish acts between them.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is neither L-infinity nor L2 nor L1.
    """

    queries: int = 5000
    p: float = 0.8
    restarts: int = 1
    schedule: int = _SCHEDULE
    rounds: int = 1
    name: ClassVar[str] = "square"
    knowledge: ClassVar[Knowledge] = "score"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.queries < 1 or self.restarts < 1 or self.schedule < 1 or not 0 < self.p <= 1:
            raise SettingError(f"square: queries, restarts and schedule must be positive and p in (0, 1], got {self}")
        if self.rounds < 1 or self.queries % self.rounds:
            raise SettingError(f"square: {self.queries} queries do not divide into {self.rounds} rounds")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts * self.rounds

    def init(self, problem: Problem) -> _State:
        power = _power(problem.threat)
        z = self._stripes(problem) if power is None else self._grid(problem, power)
        length = self.queries // self.rounds
        looks = problem.rows.run % self.rounds * length
        channels = _images(problem.x).shape[1]
        plan = problem.x.new_zeros(len(problem), _BLOCK, (4 if power is None else 7) + channels)
        value = problem.x.new_full((len(problem),), -torch.inf)
        state = _State(z, z, value, looks, looks + length, plan)
        later = (looks > 0).nonzero()[:, 0]
        return self._resumed(problem, state, later) if len(later) else state

    def _resumed(self, problem: Problem, state: _State, later: Tensor) -> _State:
        """The rows ``later``, which are past their first round, at a proposal from the best choice seen."""
        rows, last = problem.rows, state.looks[later] - 1
        plan = state.plan.index_copy(0, later, self._plan(problem, later, last // _BLOCK * _BLOCK))
        best = state.best.index_copy(0, later, rows.best[later])
        value = state.value.index_copy(0, later, rows.value[later])
        z = self._proposed(problem, best, plan, (state.looks - 1).clamp_min(0))
        return replace(state, z=overlay(state.z, z, state.looks > 0), best=best, value=value, plan=plan)

    def step(self, problem: Problem, state: _State) -> _State:
        values = problem.evaluate(state.z, problem.objective("margin"))
        better = values > state.value
        best = overlay(state.best, state.z, better)
        plan = self._planned(problem, state)
        z = self._proposed(problem, best, plan, state.looks)
        return _State(z, best, torch.where(better, values, state.value), state.looks + 1, state.end, plan)

    def done(self, state: _State) -> Tensor:
        return state.looks >= state.end

    def _proposed(self, problem: Problem, best: Tensor, plan: Tensor, number: Tensor) -> Tensor:
        """``best`` changed as the plan has it for proposal ``number``."""
        place = plan[torch.arange(len(plan), device=plan.device), number % _BLOCK]
        power = _power(problem.threat)
        return self._paint(problem, best, place) if power is None else self._shift(problem, best, place, power)

    def _planned(self, problem: Problem, state: _State) -> Tensor:
        """The plan, filled anew in the rows that have come to its end."""
        due = (state.looks % _BLOCK == 0).nonzero()[:, 0]
        if not len(due):
            return state.plan
        fresh = self._plan(problem, due, state.looks[due])
        return fresh if len(due) == len(state.plan) else state.plan.index_copy(0, due, fresh)

    def _plan(self, problem: Problem, rows: Tensor, looks: Tensor) -> Tensor:
        """Block by block ``(top, left, height, width)`` of a window and a sign a channel.

        In L2 and L1, between the two, top and left of the second window and the number of the bump.
        """
        linf = _power(problem.threat) is None
        _, channels, height, width = _images(problem.x).shape
        device = looks.device
        sides = torch.tensor(_windows(self.p, height, width, not linf), device=device)
        proposal = looks.unsqueeze(1) + torch.arange(_BLOCK, device=device)
        level = torch.bucketize(proposal * _SCHEDULE // self.schedule, torch.tensor(_HALVINGS, device=device))
        size = sides[level]
        room = torch.tensor([height, width], device=device) - size + 1
        words = (2 if linf else 5) + channels
        blocks = -(-self.queries // _BLOCK)
        draws = problem.draws(0)
        run = problem.rows.run[rows] // self.rounds
        draws = replace(draws, index=draws.index[rows], draw=run * blocks + looks // _BLOCK)
        bits = draws.bits(_BLOCK * words).reshape(-1, _BLOCK, words)
        parts = [bits[..., :2] * room >> 32, size]
        if not linf:
            parts += [bits[..., 2:4] * room >> 32, (2 * level + (bits[..., 4] & 1)).unsqueeze(2)]
        parts.append((bits[..., -channels:] & 1) * 2 - 1)
        return torch.cat(parts, 2).to(problem.x.dtype)

    def _signs(self, problem: Problem, count: int) -> Tensor:
        """``(N, count)`` random signs of the start."""
        draws = problem.draws(problem.rows.run // self.rounds * -(-self.queries // _BLOCK))
        return ((draws.bits(count, lane=1) & 1) * 2 - 1).to(problem.x.dtype)

    def _stripes(self, problem: Problem) -> Tensor:
        x = problem.x
        n, channels, height, width = _images(x).shape
        signs = self._signs(problem, channels * width).reshape(n, channels, 1, width)
        z = (column(problem.threat.budget(x), signs) * signs).expand(-1, -1, height, -1).reshape(x.shape)
        return problem.ball.retract(z, x)

    def _paint(self, problem: Problem, best: Tensor, place: Tensor) -> Tensor:
        """``best`` with a window moved to the ends of the budget."""
        images = _images(best)
        top, left, height, width = place[:, :4].unbind(1)
        rows = _span(top, height, images.shape[2]) * (2 * problem.threat.budget(problem.x)).unsqueeze(1)
        columns = _span(left, width, images.shape[3]).unsqueeze(1) * place[:, 4:].unsqueeze(2)
        moved = torch.addcmul(images, rows[:, None, :, None], columns.unsqueeze(2))
        return problem.ball.retract(moved.reshape(best.shape), problem.x)

    def _grid(self, problem: Problem, power: int) -> Tensor:
        """Bumps of random sign and direction on a grid of about 5 x 5 tiles."""
        x = problem.x
        n, channels, height, width = _images(x).shape
        (tall, top, rows), (wide, left, columns) = _tiles(height), _tiles(width)
        signs = self._signs(problem, (channels + 1) * rows * columns).reshape(n, channels + 1, rows, 1, columns, 1)
        across, along = bumps(tall, wide, power).to(x).reshape(2, tall, 1, wide)
        grid = torch.where(signs[:, :1] > 0, across, along) * signs[:, 1:]
        field = x.new_zeros(n, channels, height, width)
        bottom, right = top + rows * tall, left + columns * wide
        field[:, :, top:bottom, left:right] = grid.reshape(n, channels, rows * tall, columns * wide)
        field = field.reshape(x.shape)
        length = column(problem.ball.length(field), field)
        scale = column(problem.threat.budget(x), field) / length
        # In L1 the projection makes a field that is too long sparse, as scaling would not.
        return _inside(problem, field * (scale if power == 2 else scale.clamp_min(1)), power)

    def _shift(self, problem: Problem, best: Tensor, place: Tensor, power: int) -> Tensor:
        """``best`` with a bump added to one window, which takes over the change in another."""
        d = _images(best)
        channels, height, width = d.shape[1:]
        top, left, tall, wide, other_top, other_left, number = place[:, :7].unbind(1)
        first = _mask(top, left, tall, wide, d)
        either = first | _mask(other_top, other_left, tall, wide, d)
        table = _all_bumps(self.p, height, width, power, d.dtype, d.device)
        down = (torch.arange(height, device=d.device) - top.long().unsqueeze(1)).clamp(0, table.shape[1] - 1)
        along = (torch.arange(width, device=d.device) - left.long().unsqueeze(1)).clamp(0, table.shape[2] - 1)
        shape = table[number.long()[:, None, None], down[:, :, None], along[:, None, :]].unsqueeze(1)

        def mass(change: Tensor) -> Tensor:
            """The norm of each channel, to the power."""
            return change.abs().pow(power).sum((2, 3), keepdim=True)

        def unit(change: Tensor) -> Tensor:
            return change / (mass(change) ** (1 / power) + _FLOOR)

        there = d * first
        added = unit(place[:, 7:, None, None] * shape * first + unit(there))
        budget = column(problem.threat.budget(problem.x), d)
        unspent = (budget**power - mass(d).sum(1, keepdim=True)).clamp_min(0)
        # The published L1 version multiplies by the number of channels, and leaves the rest to the projection.
        length = (unspent / channels + mass(d * either)) ** (1 / power) * (channels if power == 1 else 1)
        moved = d * ~either + added * length
        if power == 2:
            moved = safe_divide(moved, mass(moved).sum(1, keepdim=True).sqrt()) * budget
        return _inside(problem, moved, power)


def _power(threat: Threat) -> int | None:
    """The power whose sum is the norm: 2 or 1, None for L-infinity."""
    ball = needs_ball("square", threat, "sparse-rs", ("linf", "l2", "l1"))
    return {"linf": None, "l2": 2, "l1": 1}[ball.norm]


def _tiles(side: int) -> tuple[int, int, int]:
    """Length, start and number of the tiles along a side: about five, in the middle."""
    length = max(side // 5, 1)
    start = max(side - 5 * length, 0) // 2
    return length, start, (side - start) // length


def _mask(top: Tensor, left: Tensor, height: Tensor, width: Tensor, like: Tensor) -> Tensor:
    """``(N, 1, H, W)`` bool, true in the window."""
    rows, columns = _span(top, height, like.shape[2]), _span(left, width, like.shape[3])
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def _inside(problem: Problem, images: Tensor, power: int) -> Tensor:
    """Back into ball and box, as published: in L1 by the projection onto both."""
    z, threat = images.reshape(problem.x.shape), problem.ball
    return threat.retract(z, problem.x) if power == 2 else threat.project(z, problem.x)
