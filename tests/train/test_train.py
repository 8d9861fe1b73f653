"""From names to a robust model on disk."""

import json

import pytest
import torch
from torch import nn

from helpers.zoo import seeded
from holdfast import Linf, SettingError, audit, load_model, train
from holdfast.data import from_tensors
from holdfast.train import AWP, TRADES, PGDTraining
from holdfast.train.methods import METHODS, WRAPPERS, make_method
from holdfast.train.recipes import default_recipe, is_large

SHORT = {"epochs": 1, "batch_size": 64, "validation": 50}


def _data():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 1, 4, 4, generator=generator)
    return from_tensors(x, (x.flatten(1).mean(1) * 40 - 19).long().clamp(0, 2))


def test_a_run_leaves_a_model_that_can_be_audited(tmp_path):
    found = train("mlp", _data(), "linf:0.05", method="pgd", settings={**SHORT, "steps": 2}, run=tmp_path)
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["network"] == {"name": "mlp", "shape": [1, 4, 4], "classes": 3}
    assert (record["method"], record["settings"], record["threat"]["eps"]) == ("pgd", {"steps": "2"}, 0.05)
    assert [epoch["loss"] for epoch in record["epochs"]] == [epoch.loss for epoch in found.epochs]
    again = load_model(tmp_path)
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(again(x), found.model(x))
    first = audit(tmp_path, _data(), "linf:0.05", examples=":20", max_forwards=0)
    assert first.examples == 20


@pytest.mark.parametrize("method", [*METHODS, "awp:trades", "class-wise:pgd"])
def test_every_method_trains_by_name(method):
    settings = dict(SHORT)
    if method in ("gaussian", "smoothadv"):
        settings["sigma"] = 0.1
    found = train("mlp", _data(), "linf:0.05", method=method, settings=settings)
    assert len(found.epochs) == 1
    assert all(map(torch.isfinite, torch.tensor(found.losses)))


def test_names_of_methods_and_their_settings():
    threat = Linf(0.1)
    made = make_method("awp:trades", threat, {"gamma": "0.02", "beta": 3})
    assert made == AWP(TRADES(threat, beta=3.0), gamma=0.02)
    assert make_method("pgd", threat) == PGDTraining(threat)
    assert set(WRAPPERS) == {"awp", "class-wise"}
    for name, settings, message in (
        ("pdg", {}, "unknown method 'pdg'"),
        ("awp", {}, "write awp:pgd"),
        ("pgd:trades", {}, "goes around no other"),
        ("pgd", {"beta": 1}, "pgd has no setting 'beta'"),
        ("pgd", {"steps": 0}, "must be positive"),
    ):
        with pytest.raises(SettingError, match=message):
            make_method(name, threat, settings)


def test_a_module_is_trained_in_place():
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    before = net[1].weight.detach().clone()
    found = train(net, _data(), "linf:0.05", method="standard", settings=SHORT)
    assert found.model is net
    assert not torch.equal(net[1].weight, before)


def test_recipes_grow_into_large_budgets_and_go_through_small_data_more_often():
    assert is_large(Linf(0.3))
    assert not is_large(Linf("8/255"))
    assert default_recipe("conv-small", "pgd", 60_000, large=True).warmup > 0
    assert default_recipe("conv-small", "pgd", 60_000, large=False).warmup == 0
    assert default_recipe("conv-small", "mtl-ibp", 60_000, large=False).warmup == 0.5
    few, many = (default_recipe("conv-small", "pgd", count, large=True).epochs for count in (600, 60_000))
    assert few > 10 * many
    assert default_recipe("preact-resnet18", "pgd", 50_000, large=False).augmentation == "crop-flip"
