"""Attacks that know how each specimen of the zoo is built: what an evaluation of it should come to.

Everything here is written without the attacks of holdfast, so that it can be held against them. An example counts as
broken where the defended network itself, and not what stands for it on the way back, answers wrongly.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast.testing.zoo import activations, detectors, inputs, lookups, purifiers, randomness

Judge = Callable[[Tensor], Tensor]


class Averaged(nn.Module):
    """The mean logits of several passes (expectation over transformation), or of several networks."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = list(nets)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.nets]).mean(0)


class Sum(nn.Module):
    """Logits of a network, and something else made of the input."""

    def __init__(self, *parts: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.parts = list(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum(0)


class Chord(nn.Module):
    """A function of each number by itself, whose derivative is the slope of a chord of some length."""

    def __init__(self, part: nn.Module, reach: float) -> None:
        super().__init__()
        self.part, self.reach = part, reach

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            high, low = (x + self.reach).clamp(0, 1), (x - self.reach).clamp(0, 1)
            slope = (self.part(high) - self.part(low)) / (high - low)
            exact = self.part(x)
        return exact + slope * (x - x.detach())


def sources(name: str, wrapped: nn.Module, net: nn.Module) -> list[nn.Module]:
    """What to differentiate in place of a specimen; the network underneath is always among it."""
    part = wrapped[0] if isinstance(wrapped, nn.Sequential) else wrapped
    match part:
        case randomness.Mixed() | randomness.ResizedAndPadded() | randomness.NoisyInputs() | randomness.Dropped():
            return [Averaged([wrapped] * 8), net]
        case activations.Activated(after=randomness.Dropped() | randomness.Pruned()):
            return [Averaged([wrapped] * 8), net]
        case activations.Activated(after=activations.Winners()):
            return [net, wrapped, Averaged([nn.Sequential(randomness.NoisyInputs(0.05), wrapped)] * 8)]
        case randomness.HashedNoise():
            return [Averaged([nn.Sequential(randomness.NoisyInputs(part.sigma), net)] * 8), net]
        case randomness.Chosen() | detectors.Abstaining():
            return [Averaged(part.nets), *part.nets]
        case activations.BinaryFeatures():
            return [_soft_bits(part), net]
        case lookups.Neighbours():
            return [_soft_votes(part), net]
        case lookups.Forest():
            return [net]
        case purifiers.Inverted():
            return [_module(lambda x: net(_unrolled(part, x))), net]
        case detectors.Squeezed():
            return [Averaged([net, nn.Sequential(part.squeeze, net)]), net]
        case detectors.Odd():
            return [Averaged([net, *(_module(lambda x, z=z: net(x + z)) for z in part.noise)]), net]
        case detectors.Distant():
            return [Sum(net, lambda x: _closeness(part, x)), _module(lambda x: _closeness(part, x)), net]
        case detectors.Dimensional():
            return [net, Averaged([net, nn.Sequential(randomness.NoisyInputs(0.05), net)])]
        case inputs.Quilted():
            return [_module(lambda x, t=t: net(_soft_quilt(part, x, t))) for t in (0.1, 0.5)] + [net]
    if name in _PLACEWISE:
        return [nn.Sequential(Chord(part, reach), net) for reach in (0.05, 0.12, 0.2)] + [net]
    if name in _TRUE:
        return [wrapped, net]
    return [net]


# Their own gradients are true and lead somewhere.
_TRUE = (
    *("median", "total variation", "sparse frequencies", "projection", "autoencoder", "anti-adversary"),
    *("prototypes", "blur", "two views", "noisy logits"),
)


# Each number of their output hangs on the one at its place in the input.
_PLACEWISE = (
    *("rounded inputs", "inputs as bytes", "binary inputs", "thermometer", "one-hot inputs", "pixel-defend"),
    *("ripples", "sawtooth"),
)


def _module(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Sum(function)


def _soft_bits(model: activations.BinaryFeatures) -> nn.Module:
    def logits(x: Tensor) -> Tensor:
        features = model.features(x).unsqueeze(1)
        return ((features - model.thresholds) * 3).sigmoid().flatten(1) @ model.weight + model.offset

    return _module(logits)


def _soft_votes(model: lookups.Neighbours) -> nn.Module:
    def logits(x: Tensor) -> Tensor:
        near = -torch.cdist(model.features(x), model.references).square()
        return (near.unsqueeze(2) + model.votes.clamp_min(1e-30).log()).logsumexp(1) / 10

    return _module(logits)


def _unrolled(part: purifiers.Inverted, x: Tensor) -> Tensor:
    flat = x.flatten(1)
    codes = flat.new_zeros(len(flat), part.basis.shape[1])
    for _ in range(part.steps):
        made = part.generate(codes)
        codes = codes - 4 * ((made - flat) * made * (1 - made)) @ part.basis
    return part.generate(codes).view_as(x)


def _soft_quilt(part: inputs.Quilted, x: Tensor, temperature: float) -> Tensor:
    side = part.side
    blocks = x.unfold(2, side, side).unfold(3, side, side)
    flat = blocks.flatten(4)
    nearer = 2 * flat @ part.patches.T - part.patches.square().sum(1)
    mixed = ((nearer / temperature).softmax(-1) @ part.patches).view_as(blocks)
    return mixed.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def _closeness(model: detectors.Distant, x: Tensor) -> Tensor:
    away = model.features(x).unsqueeze(1) - model.centres
    return -((away @ model.inverse) * away).sum(2) / 100


def judge_of(kind: str, wrapped: nn.Module, net: nn.Module, draws: int = 20) -> Callable[[Tensor, Tensor], Tensor]:
    """Which rows a defended network answers wrongly.

    Of random ones, those that most of ``draws`` passes answer wrongly. Those that remember are asked about one row at
    a time, each time as if for the first.
    """

    @torch.no_grad()
    def judge(x: Tensor, y: Tensor) -> Tensor:
        if kind == "memory":
            fresh = [copy.deepcopy(wrapped)(row.unsqueeze(0)) for row in x]
            return (torch.cat(fresh).argmax(1) != y) if fresh else torch.zeros(0, dtype=torch.bool)
        broken = wrapped(x).argmax(1) != y
        if kind == "randomness" and broken.any():
            passes = torch.stack([wrapped(x[broken]).argmax(1) != y[broken] for _ in range(draws)])
            broken[broken.clone()] = passes.double().mean(0) > 0.5
        return broken

    return judge


@dataclass(frozen=True)
class Effort:
    """How long to search: ascents from how many starts, and rounds of a walk and an ascent from its end."""

    restarts: int = 5
    steps: int = 40
    targets: int = 3
    rounds: int = 10
    walk: int = 60
    last: int = 1000


def broken_by(
    judge: Callable[[Tensor, Tensor], Tensor],
    ways: Sequence[nn.Module],
    scores: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    effort: Effort,
) -> Tensor:
    """``(N,)`` bool: which examples fall to gradients of any of the ways, or to a walk that follows the scores."""
    generator = torch.Generator().manual_seed(0)
    broken = judge(x, y)

    def search(look: Callable[[Search, Tensor], None]) -> None:
        """One look at the rows that stand."""
        left = (~broken).nonzero().flatten()
        if len(left):
            found = Search(judge, x[left], y[left], eps, generator)
            look(found, left)
            broken[left] |= found.broken

    for restart in range(effort.restarts):
        for way in ways:
            for target in range(effort.targets + 1):
                search(lambda found, _, w=way, t=target, r=restart: found.ascend(w, effort.steps, t, jump=r > 0))
    for way in ways:
        best = x.clone()
        for turn in range(effort.rounds):

            def look(
                found: "Search", left: Tensor, way: nn.Module = way, turn: int = turn, best: Tensor = best
            ) -> None:
                if turn:
                    found.z = best[left]
                else:
                    found.stripe()
                found.walk(way, effort.walk, turn * effort.walk, effort.rounds * effort.walk)
                found.ascend(way, effort.steps // 2)
                best[left] = found.z

            search(look)

    def follow(found: "Search", left: Tensor) -> None:
        found.stripe()
        found.walk(scores, effort.last, 0, effort.last)

    search(follow)
    return broken


class Search:
    """Inputs on their way, and which of them have been seen to be answered wrongly."""

    def __init__(
        self, judge: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, eps: float, generator: torch.Generator
    ) -> None:
        self.judge, self.x, self.y, self.eps, self.generator = judge, x, y, eps, generator
        self.z = x.clone()
        self.broken = torch.zeros(len(x), dtype=torch.bool)

    def look(self, rows: Tensor) -> Tensor:
        """Judge some rows, by their numbers; which of them stand."""
        self.broken[rows] |= self.judge(self.z[rows], self.y[rows])
        return ~self.broken[rows]

    def standing(self) -> Tensor:
        return (~self.broken).nonzero().flatten()

    def signs(self, *shape: int) -> Tensor:
        return (2.0 * torch.randint(2, shape, generator=self.generator) - 1).to(self.x)

    def stripe(self) -> None:
        """Start from random vertical stripes."""
        self.z = (self.x + self.eps * self.signs(len(self.x), self.x.shape[1], 1, self.x.shape[3])).clamp(0, 1)

    def ascend(self, way: nn.Module, steps: int, target: int = 0, *, jump: bool = False) -> None:
        """Sign ascent of the margin with momentum, or towards the target-th other class; every third look is judged.

        It ends where the margin was best. ``jump``: from a random point.
        """
        x, y, eps = self.x, self.y, self.eps
        low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        if jump:
            noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype)
            self.z = (x + eps * (2 * noise - 1)).clamp(0, 1)
        z, velocity = self.z, torch.zeros_like(x)
        best, most = z.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype)
        with torch.no_grad():
            rivals = way(x).scatter(1, y.unsqueeze(1), -torch.inf).argsort(1, descending=True)
        for step in range(steps):
            z = z.detach().requires_grad_()
            logits = way(z)
            own = logits.gather(1, y.unsqueeze(1))[:, 0]
            other = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
            wanted = logits.gather(1, rivals[:, target - 1 : target])[:, 0] if target else other
            (slope,) = torch.autograd.grad((wanted - own).sum(), z)
            gain = (other - own).detach()
            better = gain > most
            best[better], most[better] = z.detach()[better], gain[better]
            velocity = 0.75 * velocity + slope.sign()
            size = eps * (1 + math.cos(math.pi * step / steps)) / 2 + 1e-3
            z = torch.clamp(z.detach() + size * velocity.sign(), low, high)
            if step % 3 == 2 or step == steps - 1:
                self.z = z
                if not self.look(self.standing()).any():
                    return
        self.z = best
        self.look(self.standing())

    @torch.no_grad()
    def walk(self, way: nn.Module, queries: int, made: int, whole: int) -> None:
        """Random windows (Andriushchenko et al., ECCV 2020), kept where the margin of a network does not rise."""
        x, y, z = self.x, self.y, self.z.clone()
        height, width = x.shape[-2:]
        best = _margin(way(z), y)
        for query in range(made, made + queries):
            side = max(1, round(min(height, width) * 0.6 * (1 - query / whole) ** 2))
            tried = z.clone()
            tops = torch.randint(height - side + 1, (len(x),), generator=self.generator).tolist()
            lefts = torch.randint(width - side + 1, (len(x),), generator=self.generator).tolist()
            for row, (top, left) in enumerate(zip(tops, lefts, strict=True)):
                window = (row, slice(None), slice(top, top + side), slice(left, left + side))
                tried[window] = x[window] + self.eps * self.signs(x.shape[1], 1, 1)
            tried = tried.clamp(0, 1)
            value = _margin(way(tried), y)
            better = value <= best
            z[better], best[better] = tried[better], value[better]
            if query % 5 == 4 or query == made + queries - 1:
                self.z = z
                if not self.look(self.standing()).any():
                    return


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """By how much the label's logit leads; where it does not, the search goes on all the same."""
    own = logits.gather(1, y.unsqueeze(1))[:, 0]
    return own - logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
