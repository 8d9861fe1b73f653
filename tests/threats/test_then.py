"""A moved image, and a norm ball of that."""

import pytest
import torch

from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.threats import L0, L1, L2, Ball, Linf, Spatial, Then

X = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
BALLS = {"linf": Linf(0.1), "l2": L2(0.5), "l1": L1(1.0), "l0": L0(3)}


def drawn(threat, x=X):
    return threat.sample(x, Draws(0, torch.arange(len(x))))


@pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
def test_it_is_one_after_the_other(ball):
    spatial = Spatial(20, 1, 0.1)
    threat = spatial.then(ball)
    z = drawn(threat)
    assert z.shape == (40, 40)
    moved, change = spatial.apply(X, z[:, :4]), z[:, 4:].reshape(X.shape)
    assert torch.equal(threat.apply(X, z), (moved + change).clamp(0, 1))
    assert bool(spatial.contains(X, z[:, :4]).all())
    assert bool(ball.contains(moved, change).all())
    shares = torch.maximum(spatial.distance(X, z[:, :4]), ball.distance(moved, change) / ball.eps)
    torch.testing.assert_close(threat.distance(X, z), shares)
    # Either part alone may be too much.
    for places, too_much in ((0, 21.0), (slice(4, None), 0.4)):
        far = threat.nothing(X)
        far[:, places] = too_much
        assert not bool(threat.contains(X, far).any())
    assert bool(threat.contains(X, threat.project(100 * z, X)).all())


def test_what_is_drawn_for_the_two_parts_is_independent():
    z = drawn(Spatial(1, 1, 0.5).then(Linf(1.0, None)), torch.full((2000, 1, 2, 2), 0.5))
    z = z / torch.tensor([1, 1, 1, 0.5, 1, 1, 1, 1])
    assert float((torch.corrcoef(z.T) - torch.eye(8)).abs().max()) < 0.1


def test_a_step_climbs_in_both_parts():
    threat = Spatial(20, 1).then(Linf(0.1))
    grad = torch.ones(40, 40)
    z = threat.ascend(threat.nothing(X), X, grad, torch.full((40,), 0.25))
    assert z[0, :4].tolist() == [5, 0.25, 0.25, 0]
    room = (1 - threat.first.apply(X, z[:, :4])).flatten(1)
    torch.testing.assert_close(z[:, 4:], room.clamp_max(0.025))
    weights = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    pulled = threat.pull(X, z, weights)
    assert torch.equal(pulled[:, :4], threat.first.pull(X, z[:, :4], weights))
    assert torch.equal(pulled[:, 4:], weights.flatten(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
def test_boxes_hold_moved_and_perturbed_images(ball, dtype):
    x = X[0].to(dtype)
    threat = Spatial(15, 1, 0.1).then(ball)
    cells = threat.split(threat.cells(x))
    lower, upper = threat.box(x, cells)
    generator = torch.Generator().manual_seed(0)
    for cell, low, high in list(zip(cells, lower, upper, strict=True))[::7]:
        many = x.expand(200, *x.shape)
        share = torch.rand(200, 4, generator=generator, dtype=torch.float64)
        z = torch.randn(200, 40, generator=generator, dtype=torch.float64) * torch.rand(200, 1, generator=generator)
        z[:, :4] = cell[:4] + share * (cell[4:8] - cell[:4])
        z = threat.project(z, many)
        images = threat.apply(many, z)
        assert bool((low <= images).all() & (images <= high).all())
        planes, middle = threat.planes(x, cell[None]), (cell[:4] + cell[4:8]) / 2
        moved = images - torch.einsum("nz,z...->n...", z[:, :4] - middle, planes.slope[0])
        assert bool((planes.floor <= moved).all() & (moved <= planes.ceiling).all())


def test_whole_moves_and_a_cube_are_boxes_all_of_whose_points_are_chosen():
    x, threat = X[3], Spatial(translation=2, whole=True).then(Linf(0.1))
    cells = threat.cells(x)
    lower, upper = threat.box(x, cells)
    assert len(cells) == 25
    assert not len(threat.split(cells))
    many = x.expand(25, *x.shape)
    point = lower + (upper - lower) * torch.rand(lower.shape, generator=torch.Generator().manual_seed(0))
    for goal in (lower, upper, point):
        z = threat.choose(x, cells, goal)
        assert bool(threat.contains(many, z).all())
        torch.testing.assert_close(threat.apply(many, z), goal, rtol=0, atol=1e-7)


def test_budgets_of_each_example():
    threat = Spatial(torch.arange(40) / 2.0).then(Linf(torch.arange(40) / 100))
    here = threat.at(torch.tensor([30]))
    assert here.first.rotation.tolist() == [15]
    assert here.ball.eps.tolist() == pytest.approx([0.3])
    z = drawn(threat)
    assert bool(threat.contains(X, z).all())
    assert torch.equal(threat.distance(X, z)[30:31], here.distance(X[30:31], z[30:31]))


def test_what_a_result_says():
    threat = Spatial(30, box=None).then(L2(0.5))
    assert threat.name == "rotate:30deg,l2:0.5"
    assert threat.to_dict() == {**Spatial(30, box=None).to_dict(), "then": L2(0.5).to_dict()}
    assert isinstance(threat, Then)
    assert isinstance(threat.ball, Ball)
    with pytest.raises(SettingError, match="l2:inf: a ball that follows something else needs a finite budget"):
        Spatial(30).then(L2("inf"))
