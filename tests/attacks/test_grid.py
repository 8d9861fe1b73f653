"""Grids against enumeration: what a grid breaks is known by looking at all of its points."""

import pytest
import torch

from helpers.attacks import examples, outcomes, predict
from helpers.set_attacks import check_set_attack
from helpers.zoo import convnet
from holdfast import Linf, SettingError
from holdfast.attacks import Grid, craft
from holdfast.threats import Spatial


def moves(share):
    return Spatial(rotation=share * 6.0, translation=share * 0.15)


def test_shared():
    check_set_attack(Grid(rotations=5, translations=3), moves, forwards=45, backwards=0)


@pytest.mark.parametrize(
    ("threat", "points"),
    [
        (Spatial(rotation=6, translation=0.1), 775),
        (Spatial(rotation=6), 31),
        (Spatial(translation=3, whole=True), 25),
        (Spatial(translation=1, whole=True), 9),
        (Spatial(rotation=6, scale=0.01), 155),
        (Spatial(), 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_published_grid_has_so_many_points(threat, points):
    model = convnet()
    x, y = examples(model)
    x, y = torch.cat([x, torch.zeros(1, 3, 6, 6)]), torch.cat([y, predict(model, torch.zeros(1, 3, 6, 6))])
    result = craft(Grid(), model, x, y, threat=threat)
    assert set((result.forwards[~result.success] - 1).tolist()) <= {points}
    assert (~result.success).any()


@pytest.mark.parametrize("whole", [False, True])
def test_verdicts_are_those_of_looking_at_every_point(whole):
    model = convnet()
    x, y = examples(model)
    limits = torch.linspace(0, 9, len(x)), torch.linspace(1.2 if whole else 0.1, 0, len(x))
    threat = Spatial(*limits, scale=0.03, whole=whole)
    broken = torch.zeros(len(x), dtype=torch.bool)
    for i in range(len(x)):
        here = threat.at(torch.tensor([i]))
        points = here.lattice(x[i], (7, 4, 4, 3))
        inputs = here.at(torch.zeros(len(points), dtype=torch.long)).apply(x[i].expand(len(points), 3, 6, 6), points)
        broken[i] = bool((predict(model, inputs) != y[i]).any())
    assert broken.any()
    assert not broken.all()
    result = craft(Grid(rotations=7, translations=4, scales=3), model, x, y, threat=threat)
    assert torch.equal(result.success, broken)


def test_rows_of_different_grids_share_a_batch():
    model = convnet()
    x, y = examples(model)
    threat = Spatial(torch.tensor([0.0, 4.0, 4.0] * 8), torch.tensor([0.0, 0.0, 0.1] * 8))
    together = outcomes(Grid(rotations=5, translations=3), model, threat, x, y, batch_size=8)
    standing = {i: outcome for i, outcome in together.items() if outcome.verdict == "robust"}
    assert {standing[i].forwards - 1 for i in standing} <= {1, 5, 45}
    assert len({standing[i].forwards for i in standing}) == 3


def test_what_is_broken_is_broken_early():
    """The first looks are spread over the grid: a tenth of them finds most of what all of them find."""
    model = convnet()
    x, y = examples(model)
    threat = Spatial(rotation=6.0, translation=0.15)
    whole, part = (outcomes(Grid(), model, threat, x, y, max_forwards=budget) for budget in (None, 78))
    broken = [{i for i, outcome in found.items() if outcome.verdict == "broken"} for found in (whole, part)]
    assert broken[1] <= broken[0]
    assert len(broken[1]) >= 0.8 * len(broken[0]) > 0


def test_refuses_what_has_no_grid_and_numbers_that_make_no_sense():
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match=r"grid looks through .* linf:0.1 .* worst-of-k"):
        craft(Grid(), model, x, y, threat=Linf(0.1))
    for settings in ({"rotations": 0}, {"translations": -1}, {"scales": 0}, {"scales": 1.5}):
        with pytest.raises(SettingError, match="grid"):
            Grid(**settings)
