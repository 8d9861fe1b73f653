"""Ascent on patches: the optimum of linear models, enumeration of small ones, and the places that it looks at."""

import itertools

import pytest
import torch
from torch import nn

from helpers.attacks import check_company, check_counts, check_forms, check_knowledge, examples, predict
from helpers.tiny import Fn
from helpers.zoo import convnet, uniform
from holdfast import SettingError
from holdfast.attacks import PatchPGD, craft
from holdfast.attacks.patch_pgd import _grid
from holdfast.data import load_data
from holdfast.engine import Problem
from holdfast.threats import Linf, Patch

SHORT = PatchPGD(looks=6, climbs=2, steps=3)


def test_keeps_the_promises_of_every_attack():
    model = convnet()
    x, y = examples(model)
    threat = Patch(1, 1)
    result = craft(SHORT, model, x, y, threat=threat)
    assert torch.equal(predict(model, result.x_adv) != y, result.success)
    assert 4 < int(result.success.sum()) < len(x)
    assert bool(threat.admits(result.x_adv, x).all())
    assert bool((result.distance <= 1).all())
    check_forms(SHORT, model, threat, x, y, result)
    check_company(SHORT, model, threat, x[:16], y[:16])
    check_counts(SHORT, model, threat, x, y, 1 + 6 + 2 * 4, 1 + 2 * 3, exact=True)
    check_knowledge(SHORT, model, threat, x, y, result)


def worst(weight, x, height, width):
    """The largest value of a linear function over all patches: at each pixel black or white, at the best place."""
    gain = torch.maximum(weight * (1 - x), -weight * x)
    places = itertools.product(range(x.shape[2] - height + 1), range(x.shape[3] - width + 1))
    gains = [gain[:, :, top : top + height, left : left + width].sum((1, 2, 3)) for top, left in places]
    return (weight * x).sum((1, 2, 3)) + torch.stack(gains).amax(0)


@pytest.mark.parametrize("looks", [1, 1000])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 2)])
def test_finds_the_worst_patch_of_a_linear_model(size, looks):
    weight = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(1)).double()
    x = uniform(30, 2, 5, 6, dtype=torch.float64)
    level = float(worst(weight, x, *size).median()) + 1e-3
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 2).double())
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([0 * weight.flatten(), weight.flatten()]))
        model[1].bias.copy_(torch.tensor([level, 0.0], dtype=torch.float64))
    y = torch.zeros(30, dtype=torch.int64)
    # A place is known by its gradient, and the first look is at the best content there.
    result = craft(PatchPGD(looks=looks, climbs=1, steps=1), model, x, y, threat=Patch(*size))
    best = worst(weight, x, *size) - level
    assert torch.equal(result.success, best > 0)
    assert 5 < int(result.success.sum()) < 25
    stands = ~result.success
    if looks > 1:
        torch.testing.assert_close(result.objective[stands], best[stands])


def small_network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


@pytest.mark.parametrize("size", [(1, 1), (1, 2)])
def test_breaks_whatever_an_enumeration_of_grey_levels_breaks(size):
    model = small_network()
    x = next(iter(load_data("digits", examples=":20").batches(20))).x.float()
    with torch.no_grad():
        model[3].weight *= 4
        y = model(x).argmax(1)
        broken = torch.zeros(20, dtype=torch.bool)
        for top, left in Patch(*size).places(x).tolist():
            for levels in itertools.product((0.0, 0.5, 1.0), repeat=size[0] * size[1]):
                x_adv = x.clone()
                x_adv[:, 0, top : top + size[0], left : left + size[1]] = torch.tensor(levels).view(size)
                broken |= model(x_adv).argmax(1) != y
    assert 3 < int(broken.sum()) < 17
    result = craft(PatchPGD(), model, x, y, threat=Patch(*size))
    assert bool((result.success >= broken).all())


@pytest.mark.parametrize("targets", [0, 1])
@pytest.mark.parametrize("looks", [1, 4, 7, 20, 50, 99])
def test_shows_so_much_and_each_once(looks, targets, monkeypatch):
    shown, look = [], Problem.input_gradient

    def recorded(problem, z, objective, needed=None):
        shown.append((*z[0, :2].int().tolist(), tuple(z[0, 2:].tolist())))
        return look(problem, z, objective, needed)

    monkeypatch.setattr(Problem, "input_gradient", recorded)
    slopes = torch.tensor([1.0, -1, 2, -2, 3, -3]).expand(5, 6)
    model = Fn(lambda x: torch.stack([1000 + 0 * x.sum((1, 2, 3)), (x[:, 0] * slopes).sum((1, 2))], 1))
    x, y = torch.full((1, 1, 5, 6), 0.5), torch.zeros(1, dtype=torch.int64)
    craft(PatchPGD(looks=looks, climbs=2, steps=3, targets=targets), model, x, y, threat=Patch(2, 2))
    count = min(looks, 20 if targets else 60)
    clean, scanned, climbed = shown[0], shown[1 : 1 + count], shown[1 + count :]
    assert clean[:2] == (0, 0)
    assert scanned[0][1:] == (4, (1.0, 0.0, 1.0, 0.0))
    assert len(set(scanned)) == count
    odd, even = (0.0, 1.0, 0.0, 1.0), (1.0, 0.0, 1.0, 0.0)
    flat = set() if targets else {(1.0,) * 4, (0.0,) * 4}
    everything = {(top, left, z) for top in range(4) for left in range(5) for z in (flat | {odd if left % 2 else even})}
    assert set(scanned) <= everything
    assert count < len(everything) or set(scanned) == everything
    # The gradient's content is the best there is, and better the farther to the right.
    best = sorted(((z[1], z[:2]) for z in scanned if z[2] in (odd, even)), key=lambda found: -found[0])
    assert len(climbed) == 4 * min(looks, 2)
    assert climbed[0][1] == best[0][0]


def test_finds_what_no_gradient_points_to():
    # Nothing but a patch that is light all over moves this model, whose gradients are 0.
    model = Fn(
        lambda x: torch.stack([0 * x.sum((1, 2, 3)) + 0.5, (torch.relu(x[:, 0].mean((1, 2)) - 0.3) > 0) * 1.0], 1)
    )
    x = torch.full((3, 1, 4, 4), 0.2)
    result = craft(
        PatchPGD(looks=12, climbs=1, steps=1), model, x, torch.zeros(3, dtype=torch.int64), threat=Patch(2, 2)
    )
    assert bool(result.success.all())


@pytest.mark.parametrize(
    ("height", "width", "most"), [(26, 26, 676), (26, 26, 675), (26, 26, 10), (1, 40, 7), (3, 3, 1)]
)
def test_grids_are_the_finest_that_fit(height, width, most):
    grid = _grid(height, width, most).view(height, width)
    assert int(grid.sum()) <= max(most, 4)
    assert bool(grid[0, 0] & grid[-1, -1])
    rows, columns = grid.any(1).nonzero()[:, 0], grid.any(0).nonzero()[:, 0]
    assert torch.equal(grid, torch.zeros_like(grid).index_put((rows[:, None], columns), torch.tensor(True)))
    assert bool(grid.all()) == (most >= height * width)


def test_restarts_show_something_else_and_targets_lead_elsewhere():
    model = convnet()
    x, y = examples(model)
    once, twice = (craft(PatchPGD(5, 1, 2, restarts=n), model, x, y, threat=Patch(1)) for n in (1, 2))
    assert bool((once.success <= twice.success).all())
    assert bool((twice.forwards > once.forwards)[~twice.success].all())
    target = (y + 1) % 5
    result = craft(PatchPGD(), model, x, y, threat=Patch(4), target=target)
    assert torch.equal(predict(model, result.x_adv) == target, result.success)
    steered = craft(PatchPGD(5, 1, 2, targets=3), model, x, y, threat=Patch(1))
    assert int(steered.forwards.max()) == 1 + 3 * (1 + 5 + 3)


def test_bad_settings():
    with pytest.raises(SettingError, match="patch-pgd: looks, climbs, steps and restarts must be positive"):
        PatchPGD(climbs=0)
    with pytest.raises(
        SettingError, match=r"patch-pgd moves a patch over images, and linf:0.1 is none: use worst-of-k"
    ):
        craft(PatchPGD(), convnet(), *examples(convnet()), threat=Linf(0.1))
