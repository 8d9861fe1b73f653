"""Bounds over cells of turns, moves and sizes: every choice is inside them, and they are hardly wider than need be."""

from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits

from holdfast.draws import Draws
from holdfast.threats import Spatial

DIGITS = torch.tensor(load_digits().images / 16)


def digit(number, dtype=torch.float32):
    return DIGITS[number].to(dtype)


def inside(cells, count, seed=0):
    """``(M, count, 4)`` choices of each cell: random ones, and its corners, ends included."""
    low, high = cells[:, None, :4], cells[:, None, 4:8]
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(len(cells), count, 4, generator=generator, dtype=torch.float64)
    share[:, ::4] = share[:, ::4].round()
    return low + share * (high - low)


def made(threat, x, z):
    """``(M, count, *shape)`` what is seen after the choices ``(M, count, 4)`` of one image."""
    flat = z.reshape(-1, 4)
    return threat.apply(x.expand(len(flat), *x.shape), flat).reshape(*z.shape[:2], *x.shape)


def thinned(cells, most, seed=0):
    return cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:most]]


FAMILIES = {
    "turns": {"rotation": 30},
    "all turns": {"rotation": 180, "padding": "edge"},
    "moves": {"translation": 3},
    "sizes": {"scale": 0.3},
    "huge sizes": {"scale": 0.95, "padding": "edge"},
    "turns and whole moves": {"rotation": 30, "translation": 2, "whole": True},
    "turns and sizes": {"rotation": 10, "scale": 0.1},
    "all at once": {"rotation": 30, "translation": 1.5, "scale": 0.2},
    "all at once, with edges": {"rotation": 30, "translation": 10, "scale": 0.2, "padding": "edge"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_choice_leaves_the_bounds_of_its_cell(family, dtype):
    threat = Spatial(**FAMILIES[family])
    for number, rounds in enumerate((0, 2, 5, 8, 12)):
        x = digit(number, dtype)
        cells = threat.cells(x)
        for _ in range(rounds):
            cells = threat.split(thinned(cells, 100))
        cells = thinned(cells, 100)
        z = inside(cells, 10_000 // len(cells), number)
        images = made(threat, x, z)
        lower, upper = threat.box(x, cells)
        assert lower.dtype == dtype
        assert lower.shape == (len(cells), *x.shape)
        assert bool((lower.unsqueeze(1) <= images).all())
        assert bool((images <= upper.unsqueeze(1)).all())
        planes = threat.planes(x, cells)
        middle = (cells[:, :4] + cells[:, 4:8]) / 2
        moved = images - torch.einsum("mcz,mz...->mc...", z - middle.unsqueeze(1), planes.slope)
        assert bool((planes.floor.unsqueeze(1) <= moved).all())
        assert bool((moved <= planes.ceiling.unsqueeze(1)).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "scale", "box"),
    [((1, 5, 9), 1.0, (0.0, 1.0)), ((3, 4, 4), 255.0, (0.0, 255.0)), ((2, 3, 2), 1e-6, None), ((1, 1), 1.0, (0.1, 1.0)),
     ((1, 2, 7), 4.0, (torch.full((1, 1, 1), 0.3), 2.9))],
)  # fmt: skip
def test_shapes_scales_boxes_and_precisions(shape, scale, box, dtype):
    x = (torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale).to(dtype)
    threat = Spatial(40, 1.5, 0.2, box=box)
    cells = threat.cells(x)
    for _ in range(4):
        cells = thinned(cells, 40)
        z = inside(cells, 100)
        lower, upper = (bound.unsqueeze(1) for bound in threat.box(x, cells))
        images = made(threat, x, z)
        assert bool((lower <= images).all() & (images <= upper).all())
        planes = threat.planes(x, cells)
        middle = (cells[:, :4] + cells[:, 4:8]) / 2
        moved = images - torch.einsum("mcz,mz...->mc...", z - middle.unsqueeze(1), planes.slope)
        assert bool((planes.floor.unsqueeze(1) <= moved).all() & (moved <= planes.ceiling.unsqueeze(1)).all())
        cells = threat.split(threat.split(cells))


@pytest.mark.parametrize("number", range(3))
def test_a_hundred_thousand_angles(number):
    x, threat = digit(number), Spatial(30)
    cells = threat.split(threat.split(threat.split(threat.cells(x))))
    lower, upper = threat.box(x, cells)
    angles = torch.linspace(-30, 30, 100_001, dtype=torch.float64)
    held = torch.zeros(len(angles), dtype=torch.bool)
    images = threat.apply(x.expand(len(angles), 8, 8), torch.nn.functional.pad(angles[:, None], (0, 3)))
    for cell, low, high in zip(cells, lower, upper, strict=True):
        mine = (cell[0] <= angles) & (angles <= cell[4])
        assert bool((low <= images[mine]).all() & (images[mine] <= high).all())
        held |= mine
        # And they are no wider than a little more than what the angles show.
        needed = images[mine].amax(0) - images[mine].amin(0)
        assert float((high - low).mean()) <= 1.15 * float(needed.mean()) + 1e-6
    assert bool(held.all())


@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_shrink_to_the_image(family):
    x, threat = digit(3, torch.float64), Spatial(**FAMILIES[family])
    generator = torch.Generator().manual_seed(0)
    cells = thinned(threat.cells(x), 20)
    z = inside(cells, 2)[:, 1]
    images = threat.apply(x.expand(len(z), 8, 8), z)
    widths, rests = [], []
    for width in (1e-1, 1e-2, 1e-3, 1e-4, 0):
        share = torch.rand(z.shape, generator=generator, dtype=torch.float64)
        span = width * (cells[:, 4:8] > cells[:, :4])
        near = torch.cat([z - share * span, z + (1 - share) * span, cells[:, 8:]], dim=1)
        lower, upper = threat.box(x, near)
        assert bool((lower <= images).all() & (images <= upper).all())
        widths.append(float((upper - lower).mean()))
        planes = threat.planes(x, near)
        rests.append(float((planes.ceiling - planes.floor).mean()))
    assert widths[-1] == 0
    assert rests[-1] < 1e-12
    for wide, narrow in pairwise(widths[:-1]):
        assert 7 < wide / narrow < 15
    # What planes leave open shrinks with the square of the width, except where a line of pixels is crossed.
    assert rests[0] / rests[3] > 1e5


def test_planes_of_a_slope_leave_what_the_arc_bends():
    # An image that rises evenly stays even, so that only the bend of the way of a pixel is left.
    x = (torch.arange(8.0)[:, None] / 20 + torch.arange(8.0) / 30).double()
    threat, width = Spatial(30, padding="edge"), 0.5
    cells = torch.tensor([[10.0, 0, 0, 0, 10 + width, 0, 0, 0, 3]], dtype=torch.float64)
    planes = threat.planes(x, cells)
    bend = torch.pi / 180 * width
    radius = torch.hypot(*torch.meshgrid(torch.arange(8) - 3.5, torch.arange(8) - 3.5, indexing="ij"))
    rest = (planes.ceiling - planes.floor)[0]
    middle = slice(2, 6)
    assert bool((rest <= 2.02 * (1 / 20 + 1 / 30) * radius * bend**2 / 8 + 1e-12)[middle, middle].all())
    turned = [float(threat.apply(x[None], torch.tensor([[angle, 0, 0, 0]]))[0, 3, 5]) for angle in (10, 10.5)]
    assert float(planes.slope[0, 0, 3, 5]) * width == pytest.approx(turned[1] - turned[0], rel=1e-3)


def test_whole_moves_are_enumerated():
    x, threat = digit(5), Spatial(translation=3.5, whole=True)
    cells = threat.cells(x)
    assert len(cells) == 49
    assert threat.split(cells).shape == (0, 9)
    lower, upper = threat.box(x, cells)
    assert torch.equal(lower, upper)
    padded = torch.nn.functional.pad(x, (3, 3, 3, 3))
    wanted = torch.stack([padded[3 - down : 11 - down, 3 - right : 11 - right]
                          for right in range(-3, 4) for down in range(-3, 4)])  # fmt: skip
    assert torch.equal(lower, wanted)
    z = threat.choose(x, cells, lower)
    assert torch.equal(threat.apply(x.expand(49, 8, 8), z), lower)
    assert bool(threat.contains(x.expand(49, 8, 8), z).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_cells_hold_every_choice_and_so_do_their_parts(family):
    x, threat = digit(0), Spatial(**FAMILIES[family])
    cells = threat.cells(x)
    z = threat.sample(x.expand(300, 8, 8), Draws(0, torch.arange(300))).double()
    ends = threat.lattice(x, (2, 2, 2, 2)).double()

    def holds(cells, z):
        return ((cells[:, None, :4] <= z) & (z <= cells[:, None, 4:8])).all(2)

    assert bool(holds(cells, torch.cat([z, ends])).any(0).all())
    parts = threat.split(thinned(cells, 30))
    z = inside(thinned(cells, 30), 60)
    assert len(parts) == 2 * len(z)
    for row, mine in zip(parts.reshape(-1, 2, 9), z, strict=True):
        assert bool(holds(row, mine).any(0).all())
        assert not bool(holds(row, mine).all())


def test_splits_go_where_pixels_move_most():
    x = torch.zeros(100, 100)
    threat = Spatial(1, 0.1, 0.001)
    whole = torch.tensor([[-1.0, -0.1, -0.1, -0.001, 1, 0.1, 0.1, 0.001, 41]], dtype=torch.float64)
    halves = threat.split(whole)
    assert halves[:, 0].tolist() == [-1, 0]
    assert halves[:, 4].tolist() == [0, 1]
    assert torch.equal(halves[:, [1, 2, 3, 5, 6, 7, 8]], whole[:, [1, 2, 3, 5, 6, 7, 8]].repeat(2, 1))
    assert threat.cells(x)[0, 8] == pytest.approx(100 / 6**0.5)
    assert float((threat.cells(x)[:, 4] - threat.cells(x)[:, 0]).max()) == 1
    assert len(Spatial(180, 100, 0.5).cells(x)) == 256
    assert len(Spatial().cells(x)) == 1


def test_moves_are_cut_at_whole_pixels_first():
    threat, x = Spatial(translation=2.5), digit(0, torch.float64)
    cells = threat.cells(x)
    assert {-2, -1, 0, 1, 2} <= set(cells[:, 1].tolist()) & set(cells[:, 2].tolist())
    assert float((cells[:, 5:7].ceil() - cells[:, 1:3].floor()).max()) == 1
    # Between whole pixels an image moved along one axis is a mixture of two, and planes miss nothing of that.
    along = Spatial(translation=2).cells(x)
    along[:, 2] = along[:, 6] = 1
    planes = threat.planes(x, along)
    assert float((planes.ceiling - planes.floor).max()) < 1e-11
    assert float((planes.upper - planes.lower).mean()) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_choice_is_found_again_from_what_it_shows(family):
    x, threat = digit(7, torch.float64), Spatial(**FAMILIES[family])
    cells = threat.cells(x)
    for _ in range(6):
        cells = threat.split(thinned(cells, 50)) if threat.split(cells).numel() else cells
    z = inside(cells, 3)[:, 1]
    x = x.expand(len(z), 8, 8)
    shown = threat.apply(x, z)
    found = threat.choose(x[0], cells, shown)
    assert bool(threat.contains(x, found).all())
    assert bool(((cells[:, :4] <= found) & (found <= cells[:, 4:8])).all())
    lower, upper = threat.box(x[0], cells)
    missed = (threat.apply(x, found) - shown).abs().mean()
    assert missed <= 0.1 * (upper - lower).mean()


def test_limits_of_examples():
    x, threat = digit(1), Spatial(torch.tensor([5.0, 10.0]))
    assert float(threat.at(torch.tensor([1])).cells(x)[:, 4].max()) == 10
    assert float(threat.at(torch.tensor([0])).cells(x)[:, :1].min()) == -5
