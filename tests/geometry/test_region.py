"""Patterns and regions against the network itself, by forward passes and by differentiation."""

import pytest
import torch
from torch import nn

from helpers.geometry import networks, tiny
from holdfast.errors import DataError, ModelError, SettingError
from holdfast.geometry import Network, activation_pattern, facet_distance, neighbour, region_at
from holdfast.threats import L2


@pytest.mark.parametrize("name", sorted(networks()))
def test_the_affine_map_is_the_network_and_its_jacobian(name):
    model, shape = networks()[name]
    points = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    patterns = activation_pattern(model, points)
    for x, pattern in zip(points, patterns, strict=True):
        region = region_at(model, x)
        assert torch.equal(region.pattern, pattern)
        torch.testing.assert_close(region.logits(x[None]), model(x[None]), rtol=1e-10, atol=1e-10)
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z[None])[0], x)
        torch.testing.assert_close(region.weight, jacobian.flatten(1), rtol=1e-9, atol=1e-10)
        assert bool((region.slack(x[None]) >= 0).all())
    assert name == "linear" or len(patterns.unique(dim=0)) > 1


@pytest.mark.parametrize("name", sorted(networks()))
def test_inputs_are_inside_exactly_when_they_share_the_pattern(name):
    model, shape = networks()[name]
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(*shape, generator=rng, dtype=torch.float64)
    size = torch.logspace(-3, 0.5, 300, dtype=torch.float64).reshape(-1, *[1] * len(shape))
    others = x + size * torch.randn(300, *shape, generator=rng, dtype=torch.float64)
    region = region_at(model, x)
    inside = (region.slack(others) >= 0).all(1)
    assert torch.equal(inside, (activation_pattern(model, others) == region.pattern).all(1))
    assert bool(inside.any())
    assert name == "linear" or not bool(inside.all())
    torch.testing.assert_close(region.logits(others[inside]), model(others[inside]), rtol=1e-9, atol=1e-9)


def test_patterns_are_the_signs_that_hooks_see():
    model = tiny(seed=3)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen = []
    hooks = [
        m.register_forward_hook(lambda _, given, out: seen.append(given[0] > 0)) for m in model if type(m) is nn.ReLU
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    assert torch.equal(activation_pattern(model, x), torch.cat(seen, 1).long())


@pytest.mark.parametrize("name", ["mlp", "leaky", "max pool"])
def test_the_neighbour_is_what_lies_behind_a_facet(name):
    model, shape = networks()[name]
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    region = region_at(model, x)
    found = facet_distance(region, x, L2("inf", box=None))
    beyond = x + (found.point - x) * (1 + 1e-6)
    behind = neighbour(region, found.facet)
    assert torch.equal(behind.pattern, activation_pattern(model, beyond[None])[0])
    torch.testing.assert_close(behind.logits(beyond[None]), model(beyond[None]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(behind.logits(found.point[None]), region.logits(found.point[None]))
    with pytest.raises(SettingError, match="numbered from 0"):
        neighbour(region, len(region.normals))


def test_the_model_is_left_alone():
    model = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(3, 2)
    ).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(2)
    region = region_at(model, x)
    assert model.training
    assert model[0].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(region.logits(x[None].double()).float(), model.eval()(x[None]))


class Residual(nn.Module):
    def forward(self, x):
        return x + x.relu()


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.Tanh(), r"1\.0, Tanh\(\)"),
        (Residual(), "1.0, Residual"),
        (nn.LeakyReLU(1.5), r"LeakyReLU\(negative_slope=1.5\)"),
        (nn.BatchNorm1d(3, track_running_stats=False), "BatchNorm1d"),
    ],
)
def test_other_layers_are_refused_by_name(layer, named):
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(layer), nn.Linear(3, 2))
    with pytest.raises(ModelError, match=named) as error:
        region_at(model, torch.zeros(2))
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused():
    model = tiny(seed=0)
    with pytest.raises(DataError, match="inputs do not fit 0, Linear"):
        region_at(model, torch.zeros(5))
    with pytest.raises(DataError, match="without a batch"):
        Network.of(model, (2,)).fits(torch.zeros(1, 2))
    with pytest.raises(DataError, match="not finite"):
        region_at(model, torch.tensor([0.0, torch.nan]))
    with pytest.raises(DataError, match="the batch first"):
        activation_pattern(model, torch.zeros(2))
