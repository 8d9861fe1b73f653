"""What holds for every set an adversary may choose from, norm ball or not."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from holdfast.draws import Draws
from holdfast.threats import Climbable, Coverable, Recognisable, Threat, parse_threat
from holdfast.threats.box import TOLERANCE


@dataclass(frozen=True)
class Case:
    """A set, inputs it is about, and the same set with no budget at all where there is one.

    ``smooth`` says that ``apply`` can be differentiated at random choices, so that finite differences mean something.
    """

    threat: Threat
    x: Tensor
    none: Threat | None = None
    smooth: bool = True
    parses: bool = True


def draws(x: Tensor, draw: int = 0) -> Draws:
    return Draws(7, torch.arange(len(x)), 3, draw)


def check_nothing(case: Case) -> None:
    threat, x = case.threat, case.x
    z = threat.nothing(x)
    assert len(z) == len(x)
    assert torch.equal(threat.apply(x, z), x), "the choice that changes nothing changes something"
    assert bool(threat.contains(x, z).all())
    assert bool((threat.distance(x, z) == 0).all())
    assert threat.distance(x, z).shape == threat.contains(x, z).shape == threat.budget(x).shape == (len(x),)
    assert threat.contains(x, z).dtype == torch.bool
    if case.none is not None:
        here = case.none
        assert torch.equal(here.apply(x, here.sample(x, draws(x))), x)
        moved = threat.distance(x, threat.sample(x, draws(x))) > 0
        assert bool(moved.any())
        if z.shape == here.nothing(x).shape:
            assert not bool(here.contains(x, threat.sample(x, draws(x)))[moved].any())


def check_samples(case: Case) -> None:
    threat, x = case.threat, case.x
    seen = []
    for draw in range(8):
        z = threat.sample(x, draws(x, draw))
        x_adv = threat.apply(x, z)
        assert x_adv.shape == x.shape
        assert x_adv.dtype == x.dtype
        assert bool(threat.contains(x, z).all()), "a random choice is not contained"
        assert bool((threat.distance(x, z) <= threat.budget(x) * (1 + 1e-5) + TOLERANCE).all())
        box: Any = getattr(threat, "box", None)
        if hasattr(box, "excess"):
            assert float(box.excess(x_adv).max()) <= 0, "apply leaves the box"
        assert torch.equal(z, threat.sample(x, draws(x, draw))), "the same draw gives another choice"
        seen.append(z)
    assert any(not torch.equal(seen[0], other) for other in seen[1:]), "all draws are the same"
    assert not bool(threat.contains(x, seen[0] * torch.nan).any()), "a choice that is no number is contained"


def check_rows(case: Case) -> None:
    """A row's choice, input and verdict are its own, whatever its neighbours and their order."""
    threat, x = case.threat, case.x
    order = torch.arange(len(x)).flip(0)
    z = threat.sample(x, draws(x))
    other = threat.at(order)
    rows = Draws(7, order, 3, 0)
    assert torch.equal(other.sample(x[order], rows), z[order])
    assert torch.equal(other.apply(x[order], z[order]), threat.apply(x, z)[order])
    assert torch.equal(other.distance(x[order], z[order]), threat.distance(x, z)[order])
    one = torch.tensor([len(x) - 1])
    assert torch.equal(threat.at(one).apply(x[one], z[one]), threat.apply(x, z)[one])
    near = threat.near(x)
    assert torch.equal(near.apply(x, z), threat.apply(x, z))
    assert torch.equal(near.sample(x, draws(x)), z)


def check_words(case: Case) -> None:
    threat = case.threat
    assert json.loads(json.dumps(threat.to_dict(), allow_nan=False)) == threat.to_dict()
    assert threat.name == threat.name.strip()
    if case.parses:
        assert parse_threat(threat.name).name == threat.name
        again = parse_threat(threat.name).to_dict()
        assert {key: again[key] for key in again if key != "box"} == {
            key: value for key, value in threat.to_dict().items() if key != "box"
        }


def check_climbing(case: Case) -> None:
    threat, x = case.threat, case.x
    if not isinstance(threat, Climbable):
        return
    generator = torch.Generator().manual_seed(0)
    z = threat.sample(x, draws(x))
    grad = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    for far in (z, z + grad, z - 100 * grad, 0 * z):
        for found in (threat.project(far, x), threat.retract(far, x)):
            assert found.shape == z.shape
            assert bool(threat.contains(x, found).all()), "a projection is not contained"
    settled = threat.project(z, x)
    torch.testing.assert_close(threat.apply(x, settled), threat.apply(x, z), rtol=1e-5, atol=1e-5)
    for share in (0.01, 0.3, 2.0):
        moved = threat.ascend(z, x, grad, share * threat.budget(x).clamp_max(10.0))
        assert moved.shape == z.shape
        assert bool(threat.contains(x, moved).all()), "a step leaves the set"
    still = threat.ascend(z, x, torch.zeros_like(grad), 0.1 * threat.budget(x).clamp_max(10.0))
    torch.testing.assert_close(threat.apply(x, still), threat.apply(x, z), rtol=1e-5, atol=1e-5)


def check_gradients(case: Case) -> None:
    """The gradient with respect to the choice is that of finite differences through ``apply``."""
    threat, x = case.threat, case.x.double()
    if not isinstance(threat, Climbable) or not case.smooth:
        return
    generator = torch.Generator().manual_seed(1)
    z = threat.sample(x, draws(x)).double()
    inward = 0.5 * z + 0.5 * threat.nothing(x)  # away from the edges, where clipping has a kink
    weights = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    # Inputs strictly inside the box, lest it clip.
    pulled = threat.pull(x, inward, weights)
    assert pulled.shape == z.shape
    for _ in range(4):
        way = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        size = 1e-6
        up, down = (threat.apply(x, inward + side * size * way) for side in (1, -1))
        slope = (weights * (up - down)).flatten(1).sum(1) / (2 * size)
        torch.testing.assert_close((pulled * way).flatten(1).sum(1), slope, rtol=2e-3, atol=2e-3)


def check_cover(case: Case) -> None:
    """Cells together hold every choice; boxes hold what any choice of their cell gives; finer cells hold the same."""
    threat, x = case.threat, case.x
    if not isinstance(threat, Coverable):
        return
    for i in range(min(len(x), 3)):
        here, one = threat.at(torch.tensor([i])), x[i]
        cells = here.cells(one)
        lower, upper = here.box(one, cells)
        assert lower.shape == upper.shape == (len(cells), *one.shape)
        assert bool((lower <= upper).all())
        inputs = torch.cat(
            [here.apply(x[i : i + 1], here.sample(x[i : i + 1], draws(one[None], d))) for d in range(64)]
        )
        assert bool(_held(inputs, lower, upper).all()), "a choice is in no cell"
        few = cells[: min(len(cells), 50)]
        low, high = lower[: len(few)], upper[: len(few)]
        z = here.choose(one, few, (low + high) / 2)
        many = one.expand(len(few), *one.shape)
        assert bool(here.contains(many, z).all())
        chosen = here.apply(many, z)
        assert bool(((chosen >= low) & (chosen <= high)).all()), "a cell's choice is outside its box"
        finer = here.split(few)
        if len(finer):
            parts = len(finer) // len(few)
            assert len(finer) == parts * len(few) > len(few)
            below, above = here.box(one, finer)
            below, above = below.unflatten(0, (-1, parts)).amin(1), above.unflatten(0, (-1, parts)).amax(1)
            # On the average: a bound of a part may be by other means than that of the whole.
            widths, whole = (above - below).flatten(1).mean(1), (high - low).flatten(1).mean(1)
            assert bool((widths <= whole + 1e-5).all()), "parts are larger than the whole"


def _held(inputs: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.stack([((row >= lower) & (row <= upper)).flatten(1).all(1).any() for row in inputs])


def check_recognition(case: Case) -> None:
    threat, x = case.threat, case.x
    if isinstance(threat, Recognisable):
        assert bool(threat.admits(threat.apply(x, threat.sample(x, draws(x))), x).all())
        assert bool(threat.admits(x, x).all())
        assert not bool(threat.admits(x * torch.nan, x).any())
        assert not bool(threat.admits(x + 1000, x).any())


CHECKS = (
    check_nothing,
    check_samples,
    check_rows,
    check_words,
    check_climbing,
    check_gradients,
    check_cover,
    check_recognition,
)
