"""The minimum over a zonotope, against its vertices."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.zonotope import Zonotope

N, K = 3, 2


def zonotopes(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(N, 2, 2, generator=generator, dtype=dtype)
    rest = Region.box(centre - 0.01, centre + 0.02)
    return Zonotope(rest, torch.randn(N, K, 2, 2, generator=generator, dtype=torch.float64))


def vertices(zonotope, n):
    """All sums of a corner of the box and of generators, each one way or the other."""
    low, high = zonotope.rest.lower[n].double().flatten(), zonotope.rest.upper[n].double().flatten()
    corners = torch.stack(
        [torch.where(torch.tensor(pick), high, low) for pick in product((False, True), repeat=len(low))]
    )
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=K)), dtype=torch.float64)
    moves = signs @ zonotope.generators[n].flatten(1)
    return (corners.unsqueeze(0) + moves.unsqueeze(1)).flatten(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_minimum_is_that_of_the_vertices(dtype, scale):
    zonotope = zonotopes(dtype)
    a = scale * torch.randn(N * 5, 2, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)
    found = zonotope.minimum(a).double()
    exact = torch.stack([(vertices(zonotope, r // 5) @ a[r].double().flatten()).amin() for r in range(len(a))])
    assert bool((found <= exact).all()), "a minimum is above what a vertex reaches"
    torch.testing.assert_close(found, exact, rtol=1e-4 if dtype == torch.float32 else 1e-11, atol=0)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(2))
    of = (torch.arange(len(a)) // 5)[order]
    mixed = zonotope.minimum(a[order], of).double()
    assert bool((mixed <= exact[order]).all())
    torch.testing.assert_close(mixed, exact[order], rtol=1e-4 if dtype == torch.float32 else 1e-11, atol=0)


def test_parts_are_those_of_their_examples():
    zonotope = zonotopes(torch.float64)
    a = torch.randn(N, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = torch.tensor([2, 0])
    assert torch.equal(zonotope.take(rows).minimum(a[rows]), zonotope.minimum(a)[rows])
    window = (slice(0, 1), slice(None))
    outside = a.clone()
    outside[:, 1:] = 0
    torch.testing.assert_close(zonotope.crop(window).minimum(a[:, :1]), zonotope.minimum(outside), rtol=1e-12, atol=0)


def test_a_region_takes_the_better_of_box_and_zonotope():
    zonotope = zonotopes(torch.float64)
    reach = zonotope.generators.abs().sum(1)
    lower, upper = zonotope.rest.lower - reach, zonotope.rest.upper + reach
    # Cut on one side: there the box knows more, elsewhere the zonotope does.
    region = Region.box(lower.maximum(zonotope.rest.lower), upper, zonotope)
    box = replace(region, swept=None)
    a = torch.randn(N * 40, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found, plain, swept = region.minimum(a), box.minimum(a), zonotope.minimum(a)
    assert torch.equal(found, plain.maximum(swept))
    assert bool((plain > swept).any())
    assert bool((plain < swept).any())
    assert region.take(torch.tensor([1])).swept is not None
    assert region.to(torch.float64).swept is not None


def test_bounds_of_a_network_hold_and_are_tighter():

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    ).double()
    zonotope = zonotopes(torch.float64)
    reach = zonotope.generators.abs().sum(1)
    region = Region.box(zonotope.rest.lower - reach, zonotope.rest.upper + reach, zonotope)
    graph = capture(net, region.center)
    low, high = crown(graph, region).intervals[graph.output]
    loose, _ = crown(graph, replace(region, swept=None)).intervals[graph.output]
    t = 2 * torch.rand(2000, N, K, generator=torch.Generator().manual_seed(5), dtype=torch.float64) - 1
    u = torch.rand(2000, N, 2, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    rest = zonotope.rest
    points = rest.lower + u * (rest.upper - rest.lower) + (t[..., None, None] * zonotope.generators).sum(2)
    with torch.no_grad():
        values = net(points.flatten(0, 1)).unflatten(0, (2000, N))
    assert bool((values >= low).all() & (values <= high).all())
    assert bool((low >= loose - 1e-9).all())
    assert bool((low > loose + 1e-3).any())
