"""Distances inside a region and the exact one against every activation pattern, dense rays and a convex solver."""

import cvxpy as cp
import pytest
import torch
from torch import nn

from helpers.geometry import of_all_patterns, tiny
from holdfast.errors import DataError, SettingError
from holdfast.geometry import (
    activation_pattern,
    boundary_distance,
    boundary_on_facets,
    facet_distance,
    nearest_adversarial,
    neighbour,
    region_at,
)
from holdfast.threats import L0, L1, L2, Linf

BALLS = {"linf": Linf, "l2": L2, "l1": L1}
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
BOX = (-1.5, 1.5)


def points(seed, count=4):
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 - 1.5


def solved(threat, x, constraints, move):
    problem = cp.Problem(
        cp.Minimize(cp.norm(move, float(ORDER[threat.norm]))),
        [*constraints, move >= BOX[0] - x.numpy(), move <= BOX[1] - x.numpy()],
    )
    return problem.solve(solver=cp.CLARABEL)


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_no_ray_leaves_the_region_before_the_nearest_facet(norm):
    model, threat = tiny(seed=1), BALLS[norm]("inf", box=BOX)
    angle = torch.linspace(0, 2 * torch.pi, 721, dtype=torch.float64)[:-1]
    rays = torch.stack([angle.cos(), angle.sin()], 1)
    rays /= torch.linalg.vector_norm(rays, ORDER[norm], 1, keepdim=True)
    for x in points(seed=1):
        region = region_at(model, x)
        found = facet_distance(region, x, threat)
        assert float(threat.length(found.point[None] - x[None])) == pytest.approx(found.distance, rel=1e-12)
        assert abs(float(region.slack(found.point[None])[0, found.facet])) < 1e-12
        within = (x + 0.999 * found.distance * rays).clamp(*BOX)
        assert bool((activation_pattern(model, within) == region.pattern).all())
        assert torch.equal(
            neighbour(region, found.facet).pattern.ne(region.pattern).nonzero(), region.switches[found.facet, :1, None]
        )


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_both_distances_of_a_region_are_a_convex_solver_s(norm):
    """The boundary inside, and the best point of a facet where the region behind has its boundary."""
    model, threat, reached = tiny(seed=2), BALLS[norm]("inf", box=BOX), 0
    for x in points(seed=2, count=5):
        region, y = region_at(model, x), int(model(x[None]).argmax())
        inside, crossing = boundary_distance(region, x, y, threat), boundary_on_facets(region, x, y, threat)
        move = cp.Variable(2)
        z = x.numpy() + move
        here = [region.normals.numpy() @ z + region.offsets.numpy() >= 0]
        logits = region.weight.numpy() @ z + region.bias.numpy()
        others = [k for k in range(3) if k != y]
        expected = min(solved(threat, x, [*here, logits[k] >= logits[y]], move) for k in others)
        assert inside.distance == pytest.approx(expected, rel=1e-6, abs=1e-7)
        on_facets = []
        for facet in range(len(region.normals)):
            behind = neighbour(region, facet)
            theirs = behind.weight.numpy() @ z + behind.bias.numpy()
            on = [*here, region.normals[facet].numpy() @ z + float(region.offsets[facet]) == 0]
            on_facets += [solved(threat, x, [*on, theirs[k] == theirs[y], theirs[k] >= theirs], move) for k in others]
        assert crossing.distance == pytest.approx(min(on_facets), rel=1e-6, abs=1e-7)
        assert inside.distance <= crossing.distance
        if crossing.point is not None:
            reached += 1
            own, theirs = (r.logits(crossing.point[None])[0] for r in (region, neighbour(region, crossing.facet)))
            torch.testing.assert_close(own, theirs)
            top = theirs.topk(2)
            assert y in top.indices.tolist()
            assert float(top.values[0] - top.values[1]) < 1e-8
    assert reached >= 2


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_finds_the_least_of_all_patterns(norm, seed):
    model, threat = tiny(seed, (3, 4, 3, 3)), BALLS[norm]("inf", box=BOX)
    rng = torch.Generator().manual_seed(seed)
    crossed = 0
    for x in torch.rand(2, 3, generator=rng, dtype=torch.float64) * 2 - 1:
        y = int(model(x[None]).argmax())
        expected = of_all_patterns(model, x, y, norm, BOX)
        found = nearest_adversarial(model, x, y, threat)
        assert found.upper == pytest.approx(expected["exact"], rel=1e-8)
        assert found.lower == found.upper
        inside = boundary_distance(region_at(model, x), x, y, threat)
        assert inside.distance == pytest.approx(expected["inside"], rel=1e-8)
        crossed += inside.distance > found.upper * (1 + 1e-9)
        if found.point is not None:
            assert float(threat.length(found.point[None] - x[None])) == pytest.approx(found.upper, rel=1e-12)
            top = model(found.point[None])[0].topk(2)
            assert float(top.values[0] - top.values[1]) < 1e-8
    assert crossed or seed != 0


def test_the_search_in_l2_and_through_max_pooling_against_a_grid():
    torch.manual_seed(5)
    pooled = nn.Sequential(
        nn.Linear(2, 6),
        nn.Unflatten(1, (1, 6)),
        nn.MaxPool1d(3),
        nn.Flatten(),
        nn.Linear(2, 3),
        nn.ReLU(),
        nn.Linear(3, 2),
    )
    for parameter in pooled.parameters():
        parameter.data *= 3
    ticks = torch.linspace(*BOX, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    for model in (tiny(seed=4), pooled.double().eval()):
        model[-1].bias.data -= model(grid).mean(0)
        labels = model(grid).argmax(1)
        for x in points(seed=3, count=2):
            y = int(model(x[None]).argmax())
            for norm, ball in BALLS.items():
                found = nearest_adversarial(model, x, y, ball("inf", box=BOX))
                wrong = grid[labels != y] - x
                nearest = float(torch.linalg.vector_norm(wrong, ORDER[norm], 1).min())
                # The grid has a point within a step of every boundary point.
                assert nearest - 0.011 <= found.upper <= nearest + 1e-9, (norm, found)


def test_a_linear_model_is_one_region():
    model = nn.Linear(4, 3).double()
    x = torch.zeros(4, dtype=torch.float64)
    y = int(model(x[None]).argmax())
    region = region_at(model, x)
    assert facet_distance(region, x, Linf("inf", box=None)).distance == torch.inf
    assert boundary_on_facets(region, x, y, Linf("inf", box=None)).point is None
    logits = model(x[None])[0].detach()
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", torch.inf)):
        closed = min(
            float((logits[y] - logits[k]) / (model.weight[y] - model.weight[k]).norm(p=dual))
            for k in range(3)
            if k != y
        )
        found = nearest_adversarial(model, x, y, BALLS[norm]("inf", box=None))
        assert found.upper == pytest.approx(closed, rel=1e-9)
        assert found.regions == 1


def test_limits_and_budgets_leave_a_bracket():
    model = tiny(seed=0, widths=(3, 4, 3, 3))
    x = torch.zeros(3, dtype=torch.float64)
    y = int(model(x[None]).argmax())
    exact = nearest_adversarial(model, x, y, Linf("inf", box=BOX))
    near = nearest_adversarial(model, x, y, Linf(exact.upper * 0.99, box=BOX))
    assert (near.lower, near.upper, near.point) == (pytest.approx(exact.upper * 0.99), torch.inf, None)
    cut = nearest_adversarial(model, x, y, Linf("inf", box=BOX), limit=1)
    assert cut.lower <= exact.upper <= cut.upper
    assert cut.programs <= 1 + 2
    wrong = nearest_adversarial(model, x, (y + 1) % 3, Linf("inf", box=BOX))
    assert (wrong.lower, wrong.upper) == (0, 0)
    assert boundary_distance(region_at(model, x), x, (y + 1) % 3, Linf(1.0)).distance == 0


def test_what_cannot_be_asked():
    model, x = tiny(seed=0), torch.zeros(2, dtype=torch.float64)
    y = int(model(x[None]).argmax())
    with pytest.raises(SettingError, match="geometry measures in linf"):
        nearest_adversarial(model, x, y, L0("inf"))
    with pytest.raises(SettingError, match="at least 1 program"):
        nearest_adversarial(model, x, y, Linf("inf"), limit=0)
    with pytest.raises(DataError, match="outside"):
        nearest_adversarial(model, x - 1, y, Linf("inf"))
    with pytest.raises(DataError, match="class 7"):
        nearest_adversarial(model, x, 7, Linf("inf"))
    with pytest.raises(DataError, match="class 7"):
        boundary_distance(region_at(model, x), x, 7, Linf("inf"))
    with pytest.raises(SettingError, match="geometry measures in linf"):
        boundary_on_facets(region_at(model, x), x, y, L0("inf", box=BOX))
