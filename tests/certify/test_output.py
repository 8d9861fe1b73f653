"""Bounds of outputs by every method: never wrong, in order, exact where they can be."""

from fractions import Fraction
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import nn

from helpers.tiny import CLASSES, KINDS, Fn, points_of, random_region, tiny
from holdfast import L1, L2, DataError, Linf, SettingError
from holdfast.certify.bounds.region import Region
from holdfast.certify.output import BoundMethod, output_bounds

METHODS = get_args(BoundMethod)


@pytest.mark.parametrize("seeds", [(0,), pytest.param((1,), marks=pytest.mark.slow)], ids=["one", "more"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_input_leaves_the_bounds_of_any_method(kind, seeds):
    for seed in seeds:
        net = tiny(kind, seed)
        region = random_region(net.shape, seed)
        functions = torch.randn(5, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        points = points_of(region, 200, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            values = net.model(points.flatten(0, 1)).unflatten(0, points.shape[:2]) @ functions.T
        for method in METHODS:
            found = output_bounds(net.model, region.center, region, method=method, functions=functions, steps=2)
            room = 1e-9 * (1 + found.upper.abs().clamp_max(1e6))
            ahead = (values.amin(1) >= found.lower - room) & (values.amax(1) <= found.upper + room)
            assert bool(ahead.all()), f"{net.label}, seed {seed}, {method}"


def test_methods_are_never_looser_than_intervals_and_optimised_slopes_never_than_plain_ones():
    for seed in range(5):
        net = tiny("mlp relu", seed)
        region = random_region(net.shape, seed)
        width = {
            method: (found := output_bounds(net.model, region.center, region, method=method)).upper - found.lower
            for method in METHODS
        }
        for method in METHODS:
            assert bool((width[method] <= width["ibp"] + 1e-9).all())
        assert bool((width["alpha-crown"] <= width["crown"] + 1e-9).all())


@pytest.mark.parametrize(("kind", "seed", "eps"), [("mlp relu6", 9008, 0.4), ("mlp steps", 9023, 0.4)])
def test_costlier_methods_are_never_looser(kind, seed, eps):
    """These networks' slopes are worse on tighter ranges of hidden neurons."""
    net = tiny(kind, seed, torch.float32)
    x = torch.rand(2, *net.shape, generator=torch.Generator().manual_seed(seed - 9000))
    found = [output_bounds(net.model, x, Linf(eps, box=None), method=m) for m in ("crown-ibp", "crown", "alpha-crown")]
    for loose, tight in pairwise(found):
        assert bool((tight.lower >= loose.lower).all())
        assert bool((tight.upper <= loose.upper).all())


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ibp"])
@pytest.mark.parametrize(("threat", "dual"), [(Linf(0.3, None), 1), (L2(0.3, None), 2), (L1(0.3, None), torch.inf)])
def test_linear_networks_have_the_dual_norm(method, threat, dual):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    found = output_bounds(model, x, threat, method=method)
    reach = 0.3 * torch.linalg.vector_norm(model[1].weight @ model[0].weight, dual, dim=1)
    torch.testing.assert_close(found.lower, model(x).detach() - reach.detach())
    torch.testing.assert_close(found.upper, model(x).detach() + reach.detach())


def test_functions_of_their_own_for_each_example():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), torch.rand(5, 3)
    own = torch.randn(5, 2, 4)
    together = output_bounds(model, x, Linf(0.1), functions=own)
    for i in range(5):
        alone = output_bounds(model, x[i : i + 1], Linf(0.1), functions=own[i])
        torch.testing.assert_close(together.lower[i : i + 1], alone.lower)


def test_what_makes_no_sense_is_refused():
    model, x = nn.Linear(3, 4), torch.rand(5, 3)
    with pytest.raises(SettingError, match="choose one of ibp"):
        output_bounds(model, x, Linf(0.1), method="magic")
    with pytest.raises(DataError, match=r"give \(S, 4\)"):
        output_bounds(model, x, Linf(0.1), functions=torch.ones(2, 3))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_unbounded_spoils_no_other_output(method):
    model = Fn(lambda x: torch.cat([x.log(), x], 1))
    region = Region.box(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    found = output_bounds(model, region.center, region, method=method)
    assert found.upper[0, 0] >= 0
    assert found.lower[0, 0] == -torch.inf
    torch.testing.assert_close(found.lower[0, 1], torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.upper[0, 1], torch.tensor(1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_functions_of_exact_outputs_are_rounded_outwards(method):
    model, x = Fn(lambda x: x.relu()), torch.tensor([[1.0, 2.0**-25]])
    found = output_bounds(model, x, Region.box(x, x), method=method, functions=torch.ones(1, 2))
    exact = Fraction(1) + Fraction(1, 2**25)
    assert Fraction(found.lower.item()) <= exact <= Fraction(found.upper.item())
