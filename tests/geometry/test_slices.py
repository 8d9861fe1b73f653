"""Segments and slices against dense sampling."""

import pytest
import torch
from torch import nn

from helpers.geometry import networks, tiny
from holdfast.errors import SettingError
from holdfast.geometry import activation_pattern, draw_slice, regions_in_slice, regions_on_segment

NAMES = sorted(networks())


def plane(shape, seed):
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_a_segment_has_the_regions_that_sampling_meets_in_their_order(name):
    model, shape = networks()[name]
    start, end = 6 * plane(shape, 1)[:2]
    found = regions_on_segment(model, start, end)
    ends = found.breakpoints
    assert float(ends[0]) == 0
    assert float(ends[-1]) == 1
    assert bool((ends.diff() > 0).all())
    at = start + ends.reshape(-1, *[1] * len(shape)) * (end - start)
    torch.testing.assert_close(found.logits, model(at), rtol=1e-9, atol=1e-9)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:-1]
    near = (t[:, None] - ends).abs().amin(1) < 1e-9
    samples = activation_pattern(model, start + t.reshape(-1, *[1] * len(shape)) * (end - start))
    place = torch.searchsorted(ends, t) - 1
    assert torch.equal(samples[~near], found.patterns[place[~near]])
    assert name in ("linear", "leaky", "max pool 1d") or len(ends) > 3
    if found.patterns.shape[1]:
        assert bool((found.patterns.diff(dim=0) != 0).any(1).all())


@pytest.mark.parametrize("name", NAMES)
def test_a_slice_has_every_region_that_a_grid_meets(name):
    model, shape = networks()[name]
    origin, across, up = plane(shape, 2)
    found = regions_in_slice(model, origin, across, up, extent=(-2.0, 1.5, -1.0, 2.0))
    patterns = torch.stack([cell.pattern for cell in found.cells])
    assert len(found.cells) == len({tuple(p.tolist()) for p in patterns})
    areas = [area(cell.corners) for cell in found.cells]
    assert min(areas) > 0
    assert sum(areas) == pytest.approx(3.5 * 3, rel=1e-9)
    assert sum(area(cell.corners) for _, cell in found.decisions) == pytest.approx(3.5 * 3, rel=1e-9)

    def points(corners):
        return origin + torch.tensordot(corners, torch.stack([across, up]), 1)

    for label, cell in found.decisions:
        inside = points(cell.corners.mean(0)[None])
        assert int(model(inside).argmax()) == label
        assert torch.equal(activation_pattern(model, inside)[0], cell.pattern)
        torch.testing.assert_close(cell.logits, model(points(cell.corners)), rtol=1e-8, atol=1e-8)
    grid = torch.cartesian_prod(
        *(torch.linspace(a, b, 101, dtype=torch.float64) for a, b in ((-1.99, 1.49), (-0.99, 1.99)))
    )
    seen = {tuple(p.tolist()) for p in activation_pattern(model, points(grid))}
    assert seen <= {tuple(p.tolist()) for p in patterns}
    assert name == "linear" or len(seen) > 3


def area(corners):
    x, y = corners.unbind(1)
    return 0.5 * abs(float((x * y.roll(-1) - y * x.roll(-1)).sum()))


def test_the_picture_shows_every_cell_and_where_the_prediction_changes(tmp_path):
    pytest.importorskip("matplotlib")
    model = tiny(seed=1)
    origin, directions = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    found = regions_in_slice(model, origin, *directions, extent=(-2.0, 2.0, -2.0, 2.0))
    figure = draw_slice(found)
    figure.savefig(tmp_path / "slice.png")
    assert (tmp_path / "slice.png").stat().st_size > 1000
    classes, regions, boundary = figure.axes[0].collections
    assert len(classes.get_paths()) == len(found.decisions)
    assert len(regions.get_paths()) == len(found.cells)
    middles = torch.tensor([segment.mean(0).tolist() for segment in boundary.get_segments()], dtype=torch.float64)
    top = model(middles).topk(2).values
    assert bool((top[:, 0] - top[:, 1] < 1e-9).all())
    assert len(middles) >= 1


def test_the_xor_of_two_units_is_drawn_as_four_regions():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    model[0].weight.data, model[0].bias.data = torch.eye(2).double(), torch.zeros(2).double()
    found = regions_in_slice(model, torch.zeros(2), torch.tensor([1.0, 0]), torch.tensor([0, 1.0]))
    squares = {tuple(cell.pattern.tolist()): sorted(cell.corners.tolist()) for cell in found.cells}
    assert squares[1, 0] == [[0, -1], [0, 0], [1, -1], [1, 0]]
    assert set(squares) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    line = regions_on_segment(model, torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(line.breakpoints, torch.tensor([0, 0.5, 0.75, 1]).double())
    assert line.patterns.tolist() == [[0, 0], [1, 0], [1, 1]]


def test_what_is_no_plane_is_refused():
    model, x = tiny(seed=1), torch.ones(2)
    with pytest.raises(SettingError, match="span no plane"):
        regions_in_slice(model, x, x, 2 * x)
    with pytest.raises(SettingError, match="extent"):
        regions_in_slice(model, x, x, torch.tensor([0.0, 1]), extent=(1, -1, 0, 1))
