"""Training on the worst of random choices, told again for every example, and against sets that are no balls."""

import pytest
import torch
from torch.nn import functional

import holdfast
from helpers.training import perturbed
from helpers.zoo import mlp, uniform
from holdfast import Linf, SettingError
from holdfast.draws import Draws
from holdfast.threats import Spatial
from holdfast.train import Step, WorstOfKTraining
from holdfast.train.recipes import default_recipe, is_large

X, INDEX = uniform(9, 1, 3, 4, dtype=torch.float64), torch.arange(9)


@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("threat", [Spatial(40.0, 1.0), Linf(0.3)], ids=lambda threat: threat.name)
def test_takes_the_choice_of_the_highest_loss(threat, k):
    net, y, step = mlp(12).double(), INDEX % 4, Step(4, 7, INDEX)
    x_adv = perturbed(WorstOfKTraining(threat, k), net, X, y, step)
    looks = [threat.apply(X, threat.sample(X, Draws(7, INDEX, 1000 + number, 4))) for number in range(k)]
    with torch.no_grad():
        losses = torch.stack([functional.cross_entropy(net(look), y, reduction="none") for look in looks])
    worst = losses.argmax(0)
    assert k == 1 or len(worst.unique()) > 2
    assert torch.equal(x_adv, torch.stack(looks)[worst, INDEX])


def test_a_set_that_has_no_smaller_ones_is_trained_against_as_a_whole():
    threat = Spatial(30.0, 3.0)
    assert not is_large(threat)
    recipe = default_recipe("conv-small", "worst-of-k", 60_000, large=is_large(threat))
    assert (recipe.warmup, recipe.reach) == (0.0, 1.0)
    with pytest.raises(SettingError, match=r"rotate:30deg,shift:3px has no budget to scale"):
        Step(0, 0, INDEX, share=0.5).around(threat, X)


def test_withstands_turns_that_ordinary_training_does_not():
    """Which class it is, is which half of the image is bright: a turn by a right angle must not matter too early."""
    x = 0.1 * uniform(200, 1, 4, 4)
    y = torch.arange(200) % 2
    x[y == 0, 0, :2] += 0.8
    x[y == 1, 0, 2:, :2] += 0.8
    threat = Spatial(rotation=60.0)
    settings = {"epochs": 12, "batch_size": 20, "validation": 20, "guard": False}
    standing = {}
    for method in ("standard", "worst-of-k"):
        found = holdfast.train("mlp", (x, y), threat, method=method, settings=settings, seed=1)
        audited = holdfast.audit(found.model, (x, y), threat, examples=":40")
        standing[method] = audited.bracket[1]
        assert audited.clean_accuracy == 1
    assert standing["standard"] + 0.2 < standing["worst-of-k"]


def test_a_number_of_choices_is_positive():
    with pytest.raises(SettingError, match=r"^worst-of-k: k must be positive, got 0$"):
        WorstOfKTraining(Linf(0.1), k=0)
