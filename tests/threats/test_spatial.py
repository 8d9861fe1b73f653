"""Turned, moved and resized images, against torch's own rotations, rolls and sampling."""

import json

import pytest
import torch
from torch.nn import functional

from holdfast.draws import Draws
from holdfast.errors import DataError, HoldfastError
from holdfast.threats import Spatial


def images(count=6, shape=(1, 9, 9), dtype=torch.float32, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def choices(threat, x, seed=0):
    return threat.sample(x, Draws(seed, torch.arange(len(x))))


def one(*parts):
    return torch.tensor([parts], dtype=torch.float64)


def sampled(x, z):
    """The same by affine_grid and grid_sample, for square images, zeros around them."""
    angle, right, down, growth = z.double().unbind(1)
    sin, cos, size = torch.deg2rad(angle).sin(), torch.deg2rad(angle).cos(), 1 + growth
    right, down = 2 * right / x.shape[3], 2 * down / x.shape[2]
    rows = [cos, -sin, -cos * right + sin * down, sin, cos, -sin * right - cos * down]
    matrix = (torch.stack(rows, dim=1) / size.unsqueeze(1)).reshape(-1, 2, 3)
    grid = functional.affine_grid(matrix, x.shape, align_corners=False)
    return functional.grid_sample(x.double(), grid, align_corners=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 8, 8), (2, 5, 12), (7, 4), (1, 1, 1)])
@pytest.mark.parametrize("padding", ["zeros", "edge"])
def test_nothing_changes_nothing(padding, shape, dtype):
    x, threat = images(3, shape, dtype), Spatial(30, 3, 0.2, padding)
    made = threat.apply(x, threat.nothing(x))
    assert torch.equal(made, x)
    assert made.dtype == dtype
    assert bool(threat.contains(x, threat.nothing(x)).all())


@pytest.mark.parametrize("padding", ["zeros", "edge"])
@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("quarters", range(-4, 5))
def test_quarter_turns_are_those_of_torch(quarters, size, padding):
    x = images(2, (3, size, size))
    turned = Spatial(180, padding=padding).apply(x, one(90 * quarters, 0, 0, 0).repeat(2, 1))
    assert torch.equal(turned, torch.rot90(x, quarters, (2, 3)))


@pytest.mark.parametrize(("right", "down"), [(2, 0), (-3, 1), (0, -4), (9, 0), (12, -3), (-40, 40)])
def test_whole_pixel_moves_roll_and_fill(right, down):
    x = images(2, (1, 6, 9))
    z = one(0, right, down, 0).repeat(2, 1)
    rows, columns = torch.arange(6) - down, torch.arange(9) - right
    rolled = x[:, :, rows.clamp(0, 5)][..., columns.clamp(0, 8)]
    assert torch.equal(Spatial(translation=50, padding="edge").apply(x, z), rolled)
    inside = ((rows >= 0) & (rows < 6))[:, None] & ((columns >= 0) & (columns < 9))
    assert torch.equal(Spatial(translation=50).apply(x, z), torch.where(inside, rolled, 0))


def test_angles_are_counter_clockwise_moves_go_right_and_down_and_growth_enlarges():
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 8] = 1  # at three o'clock
    threat = Spatial(90, 4, 0.9)

    def brightest(*z):
        return divmod(int(threat.apply(x, one(*z)).flatten().argmax()), 9)

    assert brightest(90, 0, 0, 0) == (0, 4)
    assert brightest(45, 0, 0, 0) == (1, 7)
    assert brightest(0, -3, 2, 0) == (6, 5)
    assert brightest(0, 0, 0, -0.5) == (4, 6)
    assert brightest(90, -2, 1, -0.5) == (3, 2)  # turned and shrunk about the centre, then moved


def test_the_interpolation_is_that_of_grid_sample():
    x, threat = images(200, (2, 11, 11)), Spatial(180, 5, 0.5)
    z = choices(threat, x)
    torch.testing.assert_close(threat.apply(x, z).double(), sampled(x, z), rtol=0, atol=1e-7)
    x, z = x.double(), z.double()
    torch.testing.assert_close(threat.apply(x, z), sampled(x, z), rtol=0, atol=1e-13)


def test_the_edge_goes_on_for_ever():
    x = images(50, (1, 6, 6))
    threat = Spatial(180, 6, 0.5, "edge")
    wide = functional.pad(x.double(), (20, 20, 20, 20), mode="replicate")
    z = choices(threat, x)
    torch.testing.assert_close(threat.apply(x, z).double(), sampled(wide, z)[..., 20:-20, 20:-20], rtol=0, atol=1e-7)


def test_channels_are_moved_alike_and_may_be_missing():
    x, threat = images(8, (3, 6, 7)), Spatial(30, 2, 0.1)
    z = choices(threat, x)
    made = threat.apply(x, z)
    for channel in range(3):
        assert torch.equal(threat.apply(x[:, channel], z), made[:, channel])


def test_no_row_depends_on_its_neighbours():
    x, threat = images(70, (1, 9, 10)), Spatial(30, 2, 0.1)
    z = choices(threat, x)
    made, grad = threat.apply(x, z), images(70, (1, 9, 10), seed=1)
    pulled = threat.pull(x, z, grad)
    for part in (slice(0, 1), slice(13, 16), slice(69, 70), slice(7, 50)):
        assert torch.equal(threat.apply(x[part], z[part]), made[part])
        assert torch.equal(threat.pull(x[part], z[part], grad[part]), pulled[part])
        own = Draws(0, torch.arange(70)[part])
        assert torch.equal(threat.sample(x[part], own), z[part])


def test_the_gradient_of_the_choice_is_that_of_finite_differences():
    x, threat = images(40, (2, 7, 8), torch.float64), Spatial(40, 2, 0.2)
    z, grad = choices(threat, x), images(40, (2, 7, 8), torch.float64, seed=1) - 0.5
    pulled = threat.pull(x, z, grad)
    step = 1e-6
    for place in range(4):
        ends = [(threat.apply(x, z + sign * step * torch.eye(4)[place]) * grad).flatten(1).sum(1) for sign in (1, -1)]
        # Where a pixel passes another one between the ends, both slopes are right.
        close = (pulled[:, place] - (ends[0] - ends[1]) / (2 * step)).abs() < 1e-5
        assert close.double().mean() > 0.9
    assert not z.requires_grad


def test_steps_rise_and_end_at_the_limits():
    x, threat = images(20, (1, 12, 12)), Spatial(10, 2, 0.1)
    goal = threat.apply(x, choices(threat, x, seed=5))
    z = threat.nothing(x)
    start = ((threat.apply(x, z) - goal) ** 2).flatten(1).sum(1)
    for _ in range(60):
        z = threat.ascend(z, x, threat.pull(x, z, goal - threat.apply(x, z)), torch.full((20,), 0.03))
        assert bool(threat.contains(x, z).all())
    assert bool((((threat.apply(x, z) - goal) ** 2).flatten(1).sum(1) < start).all())
    far = threat.ascend(z, x, torch.ones_like(z), torch.full((20,), 5.0))
    assert torch.equal(far, threat.limits(x))
    assert bool((threat.distance(x, far) == 1).all())
    assert torch.equal(threat.ascend(z, x, torch.zeros_like(z), torch.ones(20)), z)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_what_is_drawn_or_projected_is_contained_and_a_little_more_is_not(dtype):
    x = images(64, dtype=dtype)
    limits = {"rotation": torch.arange(64) / 2.0, "translation": 1 / 3, "scale": torch.linspace(0, 0.3, 64)}
    threat = Spatial(**limits)
    z = choices(threat, x)
    assert z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert bool(threat.contains(x, z).all())
    wide = threat.project(z * 100, x)
    assert bool(threat.contains(x, wide).all())
    assert torch.equal(threat.project(z, x), z)
    assert torch.equal(threat.retract(z * 100, x), wide)
    torch.testing.assert_close(threat.distance(x, wide)[1:], torch.ones(63, dtype=z.dtype), rtol=1e-6, atol=0)
    for place in range(4):
        beyond = threat.nothing(x)
        beyond[:, place] = threat.limits(x)[:, place] * 1.0001 + 1e-9
        assert not bool(threat.contains(x, beyond).any())
    assert not bool(threat.contains(x, z * torch.nan).any())


def test_a_limit_of_nothing_allows_nothing():
    x = images(3)
    threat = Spatial(0, 2, 0)
    assert threat.distance(x, one(0, 1, -0.5, 0).repeat(3, 1)).tolist() == [0.5] * 3
    assert threat.distance(x, one(1e-30, 0, 0, 0).repeat(3, 1)).tolist() == [torch.inf] * 3
    drawn = choices(threat, x)
    assert bool((drawn[:, [0, 3]] == 0).all())
    assert bool((drawn[:, [1, 2]] != 0).all())
    nothing = Spatial()
    assert torch.equal(choices(nothing, x), nothing.nothing(x))
    assert nothing.name == "rotate:0deg"


def test_limits_are_looked_up_by_example():
    x = images(4)
    threat = Spatial(torch.tensor([0.0, 10.0, 20.0, 30.0]), 2, torch.tensor([0.1, 0.2, 0.3, 0.4]))
    here = threat.at(torch.tensor([3, 1]))
    assert here.limits(x[:2]).tolist() == torch.tensor([[30, 2, 2, 0.4], [10, 2, 2, 0.2]]).tolist()
    assert Spatial(30).at(torch.tensor([7])).rotation == 30
    assert threat.budget(x).tolist() == [1.0] * 4
    with pytest.raises(DataError, match="example 9 has no limit: rotation holds only 4"):
        threat.at(torch.tensor([9]))
    with pytest.raises(DataError, match="4 limits for 2 examples"):
        threat.limits(x[:2])


def test_whole_moves():
    x = images(600)
    threat = Spatial(10, 2.7, whole=True)
    z = choices(threat, x)
    assert bool(threat.contains(x, z).all())
    assert z[:, 1].unique().tolist() == z[:, 2].unique().tolist() == [-2, -1, 0, 1, 2]
    assert min(z[:, 1].unique(return_counts=True)[1].tolist()) > 80
    assert len(z[:, 0].unique()) > 590
    half = one(3, 0.5, 1, 0).repeat(600, 1).float()
    assert not bool(threat.contains(x, half).any())
    assert bool((threat.distance(x, half) == torch.inf).all())
    near = threat.project(one(-70, 1.2, 8, 0).float().repeat(600, 1), x)
    assert near.unique(dim=0).tolist() == [[-10, 1, 2, 0]]
    grad = one(1.0, -1.0, 0.0, 1.0).repeat(600, 1)
    assert threat.ascend(near, x, grad, torch.full((600,), 0.01)).unique(dim=0)[0, 1:].tolist() == [0, 2, 0]
    assert torch.equal(Spatial(translation=0.9, whole=True).limits(x), threat.nothing(x))
    assert threat.lattice(x[0], (1, 100, 2, 3)).tolist() == [[0, a, b, 0] for a in range(-2, 3) for b in (-2, 2)]


def test_the_published_grid():
    threat, x = Spatial(30, 3), images(1)[0]
    grid = threat.lattice(x, (31, 5, 5, 1))
    assert grid.shape == (775, 4)
    assert len(grid.unique(dim=0)) == 775
    assert grid[:, 0].unique().tolist() == [2.0 * k for k in range(-15, 16)]
    assert grid[:, 1].unique().tolist() == [-3, -1.5, 0, 1.5, 3]
    assert bool((grid == 0).all(1).any())
    assert grid[0].tolist() == [-30, -3, -3, 0]
    assert grid[1].tolist() == [-30, -3, -1.5, 0]
    assert bool(threat.contains(x.expand(775, 1, 9, 9), grid).all())
    assert Spatial(30).lattice(x, (3, 5, 5, 9)).tolist() == [[-30, 0, 0, 0], [0, 0, 0, 0], [30, 0, 0, 0]]
    assert Spatial(torch.tensor([1 / 3]), scale=0.1).lattice(x, (4, 1, 1, 2)).shape == (8, 4)


def test_what_is_made_stays_in_the_box():
    x = 0.2 + 0.6 * images(30, (3, 6, 6))
    threat = Spatial(30, 2, box=(0.2, torch.tensor([0.8, 0.9, 1.0]).reshape(3, 1, 1)))
    made = threat.apply(x, choices(threat, x))
    assert made.min() == torch.tensor(0.2)
    assert bool(threat.contains(x, choices(threat, x)).all())
    assert not bool(threat.contains(x + 0.7, choices(threat, x)).any())
    assert not bool(threat.contains(x * torch.nan, choices(threat, x)).any())
    normalised = Spatial(30, 2, box=None)
    assert torch.equal(normalised.apply(x - 5, normalised.nothing(x)), x - 5)


@pytest.mark.parametrize("z", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_choices_that_are_no_numbers_are_refused_not_obeyed(z):
    x, threat = images(2), Spatial(30, 3, 0.1)
    for place in range(4):
        choice = threat.nothing(x)
        choice[:, place] = z
        threat.apply(x, choice)
        assert not bool(threat.contains(x, choice).any())


def test_what_a_result_says():
    threat = Spatial(torch.tensor([1.0, 2.0]), "1/2", padding="edge", box=None, whole=True)
    said = json.loads(json.dumps(threat.to_dict(), allow_nan=False))
    assert said == {"set": "spatial", "rotation": [1, 2], "translation": 0.5, "scale": 0, "padding": "edge",
                    "whole": True, "box": [None, None]}  # fmt: skip
    assert repr(threat) == "Spatial(rotation=1..2, translation=0.5, scale=0, padding=edge, box=no box, whole)"
    assert repr(Spatial(30)) == "Spatial(rotation=30, translation=0, scale=0, padding=zeros, box=[0, 1])"
    assert threat.name == "rotate:1..2deg,shift:0.5px,whole,edge"
    with pytest.raises(AttributeError):
        threat.whole = False


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: Spatial(-1), "rotation: a budget must be at least 0, got -1"),
        (lambda: Spatial(181), "rotation: 180 degrees"),
        (lambda: Spatial("thirty"), "rotation: 'thirty' is not a number"),
        (lambda: Spatial(torch.tensor([1.0, 200.0])), "got 200"),
        (lambda: Spatial(torch.ones(2, 2)), "rotation: one budget"),
        (lambda: Spatial(translation="inf"), "translation: a move has to end somewhere, got inf"),
        (lambda: Spatial(translation=torch.nan), "translation"),
        (lambda: Spatial(scale=1), "scale: an image that shrinks"),
        (lambda: Spatial(1, padding="reflect"), "padding: choose one of zeros, edge, not 'reflect'"),
        (lambda: Spatial(1, whole=1), "whole: True or False"),
        (lambda: Spatial(1, box=3), "box"),
        (lambda: Spatial(1).apply(torch.rand(2, 5), torch.zeros(2, 4)), "shape (5,) are no images"),
        (lambda: Spatial(1).lattice(torch.rand(5, 5), (3, 1)), "lattice: four counts"),
        (lambda: Spatial(1).lattice(torch.rand(5, 5), (3, 1, 1, 0)), "lattice: four counts"),
    ],
)
def test_errors_are_one_line_that_names_the_culprit(make, culprit):
    with pytest.raises(HoldfastError) as caught:
        make()
    assert culprit in str(caught.value)
    assert len(str(caught.value)) < 200
