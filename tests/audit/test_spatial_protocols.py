"""Protocols against moves of images, alone and with a ball after them."""

import pytest
import torch

import holdfast
from helpers.attacks import examples
from helpers.zoo import convnet
from holdfast import Linf, SettingError
from holdfast.attacks import Grid, RefinedGrid, craft
from holdfast.audit.protocols import PROTOCOLS
from holdfast.threats import Spatial

MOVES = Spatial(rotation=6.0, translation=0.15)
NAMES = ("quick", "fast", "standard", "blackbox")


@pytest.mark.parametrize(
    "threat", [MOVES, MOVES.then(Linf(0.002)), Spatial(scale=0.05)], ids=lambda threat: threat.name
)
@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_cascade(name, threat):
    model = convnet()
    x, y = examples(model)
    result = holdfast.audit(model, (x[:8], y[:8]), threat, protocol=name, max_forwards=300)
    assert result.verdicts["misclassified"] == 1
    assert result.verdicts["broken"] >= 2
    assert [stage.name for stage in result.stages] == [stage.name for stage in PROTOCOLS[name](threat).stages]


@pytest.mark.parametrize("name", ["rand", "nearest"])
def test_there_are_no_others(name):
    with pytest.raises(SettingError, match=rf"{name} is not for rotate:6deg,shift:0.15px: choose one of quick"):
        PROTOCOLS[name](MOVES)


def test_standard_looks_at_the_published_grid_first():
    grid = PROTOCOLS["standard"](MOVES).stages[0].attack
    assert isinstance(grid, RefinedGrid)
    assert (grid.rotations, grid.translations) == (Grid().rotations, Grid().translations) == (31, 5)


@pytest.mark.slow
def test_standard_breaks_what_the_grid_breaks_and_a_black_box_needs_no_gradient():
    model = convnet()
    x, y = examples(model)
    standard = holdfast.audit(model, (x, y), MOVES, protocol="standard")
    blackbox = holdfast.audit(model, (x, y), MOVES, protocol="blackbox")
    grid = craft(Grid(), model, x, y, threat=MOVES).success
    assert standard.verdicts["robust"] <= blackbox.verdicts["robust"] <= int((~grid).sum())
    assert blackbox.cost.backwards == 0 < standard.cost.backwards
    assert standard.verdicts["robust"] > 0


def test_an_example_that_stands_costs_what_the_page_says():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    data = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.long)
    result = holdfast.audit(model, data, Spatial(30.0, 3.0), protocol="standard")
    assert (result.cost.forwards, result.cost.backwards) == (3 * 2582, 3 * 440)
    # With a margin that never falls, the effort ends with the first look round.
    fast = holdfast.audit(model, data, Spatial(30.0, 3.0), protocol="fast")
    assert (fast.cost.forwards, fast.cost.backwards) == (3 * (1 + 45 + 36 + 10), 3 * 9)
