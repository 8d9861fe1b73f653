"""Projected gradient ascent on what a patch shows, at the places that promise most."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.attacks.targets import pick_target, runs_of
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows, overlay
from holdfast.errors import SettingError
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats import Patch
from holdfast.threats.needs import needs_patch
from holdfast.threats.norm import column

__all__ = ["PatchPGD"]

_MOMENTUM = 0.75  # the share of the new step in a move, as in APGD
_GRID = 2 / 3  # the share of the looks that a grid over the image may take
_FIRST = 2.0  # length of the first step of an ascent, in shares of the box: from anywhere to its ends


@dataclass(frozen=True)
class _State:
    z: Tensor  # the choice to look at next
    last: Tensor  # the one before it in its ascent
    images: Tensor  # (N, K, ...) of which contents are cut
    gain: Tensor  # (N, M) what each place gains to first order
    value: Tensor  # (N, K, M) the objective seen with each content at each place, -inf where nothing was
    number: Tensor  # (N,) which of the K * M that is at z
    target: Tensor | None
    looks: Tensor  # (N,) how many there were


@dataclass(frozen=True)
class PatchPGD:
    """Look at many places once, and climb at the best of them.

    The gradient at the clean image says which value each pixel had better have. A patch cut from that image is shown,
    and one that is as light and one that is as dark as the box allows: first where the gradient promises most, and on a
    grid over the image; then, one after the other, next to the best place seen, with the content that was shown there.
    That makes ``looks``. At the ``climbs`` best places the content is then raised from there by ``steps`` signed
    gradient steps with momentum, whose length falls from twice the box to 0 as in :class:`AnnealedPGD`. With three
    times as many looks as there are places, everything is shown everywhere.

    Places by their gradient, as in Rao, Stutz and Schiele, "Adversarial training against location-optimized
    adversarial patches", ECCV workshops 2020, arXiv:2005.02313, mislead where it vanishes; one look at each does not.
    Nor do the light and the dark one: networks that were trained to be robust fall to them where no gradient points.

    Costs ``1 + looks + climbs * (steps + 1)`` forwards and ``1 + climbs * steps`` backwards a run.

    Parameters
    ----------
    looks : int
        How often something is shown somewhere, at most once each.
    climbs : int
        At how many of them the content is raised.
    steps : int
        Gradient steps of each ascent.
    restarts : int
        Runs an example that stays unbroken, a target; from the second on random black and white is shown, a random
        corner of the colours, and the opposite one.
    objective : str
        ``"ce"``, ``"margin"`` or ``"dlr"``.
    targets : int
        0 raises the objective away from the label. Otherwise a run steers towards one of the ``targets`` classes that
        rank next to the label in the clean logits (at most K - 1), and any wrong class is success; shown is only what
        the gradient towards it says.

    Raises
    ------
    SettingError
        When a number makes no sense, or the threat is no patch.
    """

    looks: int = 1000
    climbs: int = 32
    steps: int = 10
    restarts: int = 1
    objective: ObjectiveName = "margin"
    targets: int = 0
    knowledge: ClassVar[Knowledge] = "gradient"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, "patch-pgd")
        if min(self.looks, self.climbs, self.steps, self.restarts) < 1 or self.targets < 0:
            raise SettingError(
                f"patch-pgd: looks, climbs, steps and restarts must be positive, targets >= 0: got {self}"
            )

    @property
    def name(self) -> str:
        return "patch-pgd" + ("-t" if self.targets else "")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return rows.run + 1 < self.restarts * runs_of(rows, self.targets)

    def init(self, problem: Problem) -> _State:
        threat, x = needs_patch("patch-pgd", problem.threat), problem.x
        z, zero = threat.nothing(x), torch.zeros_like(problem.rows.index)
        contents = 1 if self.targets else 3
        unseen = x.new_full((len(x), contents, len(threat.places(x))), -torch.inf)
        images = x.unsqueeze(1).repeat_interleave(contents, 1)
        return _State(z, z, images, unseen[:, 0], unseen, zero, pick_target(problem, self.targets), zero)

    def step(self, problem: Problem, state: _State) -> _State:
        looks, seen = state.looks, self._seen(state)
        # After the clean image come the looks at places, then the ascents; the last point of each is only looked at.
        clean, scanning = looks == 0, (looks > 0) & (looks <= seen)
        iteration = (looks - seen - 1) % (self.steps + 1) + 1
        climbing = (looks > seen) & (iteration <= self.steps)
        objective = problem.objective(self.objective, state.target)
        answer = problem.input_gradient(state.z, objective, needed=clean | climbing)
        if bool(clean.any()):
            state = self._prepared(problem, state, answer.grad, clean)
        if bool(scanning.any()):
            values = state.value.flatten(1).scatter(1, state.number.unsqueeze(1), answer.values.unsqueeze(1))
            state = replace(state, value=overlay(state.value, values.view_as(state.value), scanning))
        moved = self._climb(problem, state, answer.grad, iteration)
        state = replace(state, z=moved, last=state.z, looks=looks + 1)
        fresh = ~climbing
        return self._elsewhere(problem, state, fresh) if bool(fresh.any()) else state

    def done(self, state: _State) -> Tensor:
        seen = self._seen(state)
        return state.looks > seen + min(self.climbs, seen, state.gain.shape[1]) * (self.steps + 1)

    def _seen(self, state: _State) -> int:
        """How many looks there are before the ascents."""
        return min(self.looks, state.value.shape[1] * state.value.shape[2])

    def _prepared(self, problem: Problem, state: _State, grad: Tensor, which: Tensor) -> _State:
        """After the look at the clean image: what to show, and what each place gains by it."""
        rows, x = problem.rows, problem.x
        threat = needs_patch("patch-pgd", problem.threat)
        wanted = torch.stack([grad, torch.ones_like(x), -torch.ones_like(x)], 1)
        restart = rows.run >= runs_of(rows, self.targets)
        if bool(restart.any()):
            draws, shape = problem.draws(rows.run), (*x.shape[:-2], 1, 1)
            noise = draws.uniform(x.shape[1:].numel()).reshape(x.shape) - 0.5
            colour = (draws.uniform(x.shape[1:-2].numel(), lane=1).reshape(shape) - 0.5).expand_as(x)
            random = torch.stack([noise, colour, -colour], 1).to(x.dtype)
            wanted = torch.where(column(restart, wanted), random, wanted)
        images = [threat.extreme(x, one) for one in wanted[:, : state.value.shape[1]].unbind(1)]
        gain = overlay(state.gain, threat.gains(x, grad), which)
        return replace(state, images=overlay(state.images, torch.stack(images, 1), which), gain=gain)

    def _climb(self, problem: Problem, state: _State, grad: Tensor, iteration: Tensor) -> Tensor:
        """The next point of each ascent, whose first move led from the image itself to the content shown first."""
        threat, x = problem.climbable, problem.x
        share = (1 + torch.cos(torch.pi * iteration / (self.steps + 1))) / 2
        ahead = threat.ascend(state.z, x, threat.pull(x, state.z, grad), _FIRST * share.to(x.dtype))
        return threat.retract(_MOMENTUM * ahead + (1 - _MOMENTUM) * (2 * state.z - state.last), x)

    def _elsewhere(self, problem: Problem, state: _State, which: Tensor) -> _State:
        """The rows ``which`` at the next place to look at, or to climb at."""
        threat, x, seen = needs_patch("patch-pgd", problem.threat), problem.x, self._seen(state)
        scans = state.looks <= seen
        number = self._unseen(threat, x, state) if bool(scans.any()) else state.number
        if not bool(scans.all()):
            number = torch.where(scans, number, self._best(state, (state.looks - seen - 1) // (self.steps + 1)))
        count = state.gain.shape[1]
        place = threat.places(x)[number % count]
        image = state.images[torch.arange(len(x), device=x.device), number // count]
        return replace(
            state,
            number=torch.where(which, number, state.number),
            z=overlay(state.z, threat.choice(x, place, image), which),
            last=overlay(state.last, threat.choice(x, place, x), which),
        )

    def _best(self, state: _State, ascent: Tensor) -> Tensor:
        """``(N,)`` the place that comes next in the order of what was seen there, and the content that did best."""
        value, content = state.value.max(1)
        rank = ascent.clamp(0, value.shape[1] - 1).unsqueeze(1)
        place = value.argsort(dim=1, descending=True, stable=True).gather(1, rank)
        return (content.gather(1, place) * value.shape[1] + place).squeeze(1)

    def _unseen(self, threat: Patch, x: Tensor, state: _State) -> Tensor:
        """``(N,)`` what was not shown where, and promises most."""
        height, width = (threat.places(x)[-1] + 1).tolist()
        value, gain = state.value, state.gain.unsqueeze(1)
        around = functional.max_pool2d(value.unflatten(2, (height, width)), 3, stride=1, padding=1).flatten(2)
        grid = _grid(height, width, int(_GRID * self.looks / value.shape[1])).to(x.device)
        promise = around.masked_fill((gain == gain.amax(2, keepdim=True)) | grid, torch.inf)
        promise = promise.masked_fill(value != -torch.inf, -torch.inf)
        first = (value == -torch.inf) & (promise == promise.amax((1, 2), keepdim=True))
        return torch.where(first, gain, -torch.inf).flatten(1).argmax(1)


def _grid(height: int, width: int, most: int) -> Tensor:
    """``(height * width,)`` bool, the places of the finest even grid, edges included, that has at most so many."""

    def line(size: int, stride: int) -> Tensor:
        number = torch.arange(size)
        return (number % stride == 0) | (number == size - 1)

    stride = 1
    while stride < max(height, width) and line(height, stride).sum() * line(width, stride).sum() > most:
        stride += 1
    return (line(height, stride).unsqueeze(1) & line(width, stride)).flatten()
