"""Patches, against loops over places and pixels."""

import itertools
import json
import pickle

import pytest
import torch

from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError
from holdfast.threats import parse_threat
from holdfast.threats.patch import Patch

SHAPES = [(3, 1, 4, 5), (4, 3, 5, 4), (2, 6, 7), (0, 2, 4, 4)]


def images(shape, seed=0, dtype=torch.float64):
    """Some pixels at the faces of the box."""
    u = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (u * 1.2 - 0.1).clamp(0, 1).to(dtype)


def draws(count, seed=0, draw=0):
    return Draws(seed, torch.arange(count) * 7 + 1, 2, draw)


def paste(x, place, content, height, width):
    """What a patch in front of one image looks like, pixel by pixel."""
    out = x.clone()
    planes = out if out.dim() == 3 else out[None]
    values = iter(content.tolist())
    for plane in planes:
        for row, column in itertools.product(range(height), range(width)):
            plane[place[0] + row, place[1] + column] = next(values)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_choices_become_the_images_that_they_tell_of(shape, size, dtype):
    threat, x = Patch(*size), images(shape, dtype=dtype)
    z = threat.sample(x, draws(len(x)))
    assert z.shape == (len(x), 2 + (shape[1] if len(shape) == 4 else 1) * size[0] * size[1])
    assert z.dtype == dtype
    x_adv = threat.apply(x, z)
    assert x_adv.shape == x.shape
    for row in range(len(x)):
        assert torch.equal(x_adv[row], paste(x[row], z[row, :2].int().tolist(), z[row, 2:], *size))
    assert bool(((x_adv >= 0) & (x_adv <= 1)).all())
    assert bool(threat.contains(x, z).all() & threat.admits(x_adv, x).all())
    assert bool((threat.distance(x, z) <= threat.budget(x)).all())
    assert torch.equal(threat.project(z, x), z)
    still = threat.nothing(x)
    assert torch.equal(threat.apply(x, still), x)
    assert threat.distance(x, still).tolist() == [0] * len(x)


def test_all_places_and_contents_are_drawn_and_each_example_draws_its_own():
    threat, x = Patch(2, 3), images((400, 1, 3, 4), dtype=torch.float32)
    z = threat.sample(x, draws(400))
    counted = torch.unique(z[:, :2], dim=0, return_counts=True)
    assert counted[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert int(counted[1].min()) > 70
    assert float(z[:, 2:].mean()) == pytest.approx(0.5, abs=0.03)
    some = torch.tensor([5, 1])
    assert torch.equal(threat.sample(x[some], Draws(0, some * 7 + 1, 2)), z[some])
    assert not torch.equal(threat.sample(x, draws(400, seed=1)), z)
    assert not torch.equal(threat.sample(x, draws(400, draw=1)), z)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_the_nearest_choice(shape):
    threat, x = Patch(2, 2, (-0.5, 1.5)), images(shape)
    z = torch.randn(len(x), threat.nothing(x).shape[1], generator=torch.Generator().manual_seed(1)).double() * 3
    near = threat.project(z, x)
    last = torch.tensor(shape[-2:]) - 2
    assert torch.equal(near[:, :2], z[:, :2].round().clamp_min(0).minimum(last.double()))
    assert torch.equal(near[:, 2:], z[:, 2:].clamp(-0.5, 1.5))
    assert torch.equal(threat.apply(x, z), threat.apply(x, near))
    assert bool(threat.contains(x, z).all())


def test_bounds_of_every_pixel_go_with_the_place():
    lower = torch.arange(12.0, dtype=torch.float64).reshape(1, 3, 4)
    threat, x = Patch(1, 2, (lower, lower + 1)), (lower + 0.5)[None]
    z = torch.tensor([[2.0, 1.0, 0.0, 99.0]], dtype=torch.float64)
    assert threat.project(z, x).tolist() == [[2, 1, 9, 11]]
    assert threat.apply(x, z)[0, 0, 2].tolist() == [8.5, 9, 11, 11.5]
    stepped = threat.ascend(threat.nothing(x), x, torch.tensor([[0.0, 0, 1, -1]]), torch.tensor([0.25]))
    assert stepped.tolist() == [[0, 0, 0.75, 1.25]]
    lower, _ = threat.box(x[0], threat.cells(x[0])[1:2])
    assert lower[0, 0, 0].tolist() == [0.5, 1, 2, 3.5]


def test_steps_cross_the_box_at_length_one():
    threat, x = Patch(1, 1, (0, 255)), torch.full((3, 1, 2, 2), 100.0)
    z = torch.tensor([[0.0, 1, 100]] * 3)
    grad = torch.tensor([[9.0, -9, 0.1], [0, 0, -3], [0, 0, 0]])
    assert threat.ascend(z, x, grad, torch.tensor([0.1, 0.2, 1])).tolist() == [[0, 1, 125.5], [0, 1, 49], [0, 1, 100]]
    assert threat.ascend(z, x, grad, torch.ones(3)).tolist() == [[0, 1, 255], [0, 1, 0], [0, 1, 100]]


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_gradients_are_those_of_the_image_behind_apply(shape):
    threat, x = Patch(2, 3), images(shape)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)).double()
    z = (threat.sample(x, draws(len(x))) * 1).requires_grad_()
    (grad,) = torch.autograd.grad((threat.apply(x, z).sin() * weight).sum(), z)
    pulled = threat.pull(x, z.detach(), threat.apply(x, z.detach()).cos() * weight)
    assert torch.equal(pulled[:, :2], torch.zeros_like(pulled[:, :2]))
    torch.testing.assert_close(pulled[:, 2:], grad[:, 2:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gains_are_those_of_the_best_content_at_each_place(shape):
    threat, x = Patch(3, 2), images(shape)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(3)).double()
    gains, places = threat.gains(x, grad), threat.places(x)
    assert gains.shape == (len(x), len(places))
    for row, (number, (top, left)) in itertools.product(range(len(x)), enumerate(places.tolist())):
        best = torch.where(grad[row] > 0, 1 - x[row], -x[row]) * grad[row]
        assert float(gains[row, number]) == pytest.approx(float(best[..., top : top + 3, left : left + 2].sum()))


def test_inputs_are_recognised_by_the_rectangle_that_covers_what_differs():
    threat, x = Patch(2, 3), torch.zeros(1, 4, 5)
    for mask in itertools.islice(itertools.product((0.0, 1.0), repeat=20), 0, 2**20, 997):
        x_adv = torch.tensor(mask).reshape(1, 4, 5)
        inside = [x_adv[0, top : top + 2, left : left + 3].sum() for top in range(3) for left in range(3)]
        assert threat.admits(x_adv, x).tolist() == [bool(max(inside) == x_adv.sum())]


def test_what_lies_outside_the_box_or_is_no_number_is_refused():
    threat, x = Patch(2), torch.full((1, 1, 4, 4), 0.5)
    assert not bool(threat.admits(x + torch.nan, x))
    x_adv = x.clone()
    x_adv[0, 0, 1, 1] = 1.1
    assert not bool(threat.admits(x_adv, x))
    for number in range(6):
        z = threat.nothing(x)
        z[0, number] = torch.nan
        assert not bool(threat.contains(x, z))
        threat.project(z, x)
    for outside in (x + 1, x_adv):
        assert not bool(threat.contains(outside, threat.nothing(outside)))
        assert torch.equal(threat.apply(outside, threat.nothing(outside)), outside)


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 4), (4, 5)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4)])
def test_boxes_hold_every_choice_and_give_every_point_back(shape, size):
    threat, x = Patch(*size), images(shape)
    cells = threat.cells(x)
    assert len(cells) == (shape[-2] - size[0] + 1) * (shape[-1] - size[1] + 1)
    assert len(torch.unique(cells, dim=0)) == len(cells)
    lower, upper = threat.box(x, cells)
    assert lower.shape == upper.shape == (len(cells), *shape)
    many = x.expand(200, *shape)
    z = threat.sample(many, draws(200))
    x_adv = threat.apply(many, z)
    number = (z[:, :1] * (shape[-1] - size[1] + 1) + z[:, 1:2]).long()[:, 0]
    assert bool(((lower[number] <= x_adv) & (x_adv <= upper[number])).all())
    # Nothing else is in a box: its corners are choices, and those of no larger set.
    ends = x.expand_as(lower)
    for point in (lower, upper, (lower + upper) / 2):
        chosen = threat.choose(x, cells, point)
        assert torch.equal(threat.apply(ends, chosen), point)
        assert bool(threat.contains(ends, chosen).all())
        assert torch.equal(chosen[:, :2], cells)
    assert threat.split(cells).shape == (0, 2)


def test_text_and_names():
    for text, size in {"patch:5x5": (5, 5), "patch:5": (5, 5), " Patch : 2 x 31 ": (2, 31)}.items():
        threat = parse_threat(text, (-1, 3))
        assert isinstance(threat, Patch)
        assert (threat.height, threat.width) == size
        again = parse_threat(threat.name)
        assert isinstance(again, Patch)
        assert (again.height, again.width) == size
    assert json.loads(json.dumps(Patch(2, 3).to_dict())) == {"patch": [2, 3], "box": [0, 1]}
    assert repr(Patch(2, 3, (torch.zeros(4), 2.0))) == "Patch(2, 3, box=[0 .. 0, 2 .. 2] per feature)"
    assert repr(pickle.loads(pickle.dumps(Patch(4)))) == "Patch(4, 4, box=[0, 1])"


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: parse_threat("patch:"), "patch: write HEIGHTxWIDTH in pixels, such as patch:5x5, not ''"),
        (lambda: parse_threat("patch:5x"), "'5x'"),
        (lambda: parse_threat("patch:-1"), "'-1'"),
        (lambda: parse_threat("patch:2.5"), "'2.5'"),
        (lambda: parse_threat("patch:0x3"), "height: a patch has 1 to 65536 whole pixels a side, not '0'"),
        (lambda: parse_threat("patch:3x99999999"), "width"),
        (lambda: Patch(2.0), "'2.0'"),
        (lambda: Patch(True), "'True'"),
        (lambda: Patch(2, 0), "width"),
        (lambda: Patch(2, box=None), "bounded box"),
        (lambda: Patch(2, box=(0, float("inf"))), "bounded box"),
    ],
)
def test_bad_settings(make, culprit):
    with pytest.raises(SettingError) as caught:
        make()
    assert culprit in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["nothing", "sample", "cells"])
def test_images_that_no_patch_fits_into(method):
    for shape, line in {(2, 1, 3, 9): "does not fit into images of 3 x 9", (2, 30): "not in (2, 30)"}.items():
        x = torch.zeros(shape)
        arguments = {"nothing": (x,), "sample": (x, draws(2)), "cells": (x[0],)}[method]
        with pytest.raises(DataError, match=r"^patch:4x4: .*") as caught:
            getattr(Patch(4), method)(*arguments)
        assert line in str(caught.value) or method == "cells"
