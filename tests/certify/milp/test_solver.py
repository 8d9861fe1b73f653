"""Mixed-integer programs of networks against enumeration of activation patterns, dense grids, and one another."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.margins import crown_margins, specification
from holdfast.certify.bounds.operations.kink import Kink
from holdfast.certify.bounds.region import Region
from holdfast.certify.milp.encoding import encode
from holdfast.certify.milp.solver import lp_bound, margin, milp_margin, proved, safe_bound, solve
from holdfast.errors import ModelError, SettingError
from holdfast.threats import L0, L1, L2, Linf


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs()


def spread(model):
    """The model in float64 with weights large enough for neurons of both signs."""
    for parameter in model.parameters():
        parameter.data *= 2
    return model.double().eval()


def networks(seed):
    """Networks of two inputs, so that a grid can cover them."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(2)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return {
        "relu": spread(nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))),
        "leaky": spread(nn.Sequential(nn.Linear(2, 6), nn.LeakyReLU(0.2), nn.Linear(6, 3))),
        "absolute": spread(nn.Sequential(nn.Linear(2, 4), Absolute(), nn.Linear(4, 3))),
        "residual": spread(
            nn.Sequential(
                nn.Linear(2, 4), Residual(nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.ReLU())), nn.Linear(4, 3)
            )
        ),
        "convolutional": spread(
            nn.Sequential(
                nn.Linear(2, 16),
                nn.Unflatten(1, (1, 4, 4)),
                nn.Conv2d(1, 2, 3, padding=1),
                norm,
                nn.ReLU(),
                nn.MaxPool2d(2, stride=1, padding=1),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(8, 3),
            )
        ),
    }


def margins(model, x, y):
    logits = model(x).detach()
    others = logits.clone()
    others[:, y] = -torch.inf
    return logits[:, y] - others.amax(1)


@pytest.mark.parametrize("name", list(networks(0)))
def test_a_minimum_is_proved_again_without_the_solver(name):
    """As much as the solver says and no more, whatever is asked for; out of time, less."""
    model = networks(1)[name]
    x = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    y = int(model(x).argmax())
    graph, region = capture(model, x), Region.around(Linf(0.4), x)
    encoding = encode(graph, region, crown(graph, region).intervals)
    for k in {0, 1, 2} - {y}:
        cost = margin(encoding, y, k)
        found = solve(encoding.program, cost, seconds=60)
        for above in (-1.0, -1e-6, 1e-3):
            bound = proved(encoding.program, cost, goal=found.upper + above, seconds=60)
            assert bound == pytest.approx(min(found.upper, found.upper + above), abs=1e-5)
            assert bound <= found.upper + 1e-12
        assert proved(encoding.program, cost, goal=found.upper, seconds=0.0) == -np.inf


THREATS = [Linf(0.3), L1(0.4), L0(1), Linf(0.5, None)]


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", list(networks(0)))
def test_the_minimum_is_that_of_a_grid(name, threat):
    model = networks(1)[name]
    x = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    y = int(model(x).argmax())
    graph, region = capture(model, x), Region.around(threat, x)
    found = milp_margin(graph, region, crown(graph, region).intervals, y, seconds=60)
    assert found.status == "optimal"
    assert found.upper - found.lower < 1e-5
    ticks = [
        torch.linspace(float(a), float(b), 301).double() for a, b in zip(region.lower[0], region.upper[0], strict=True)
    ]
    grid = torch.cartesian_prod(*ticks)
    if threat.norm == "l0":
        grid = torch.cat([torch.where(torch.arange(2) == i, grid, x) for i in range(2)])
    grid = grid[threat.admits(grid, x.expand_as(grid))]
    least = float(margins(model, grid, y).min())
    # Between the points of the grid the network falls by no more than its slope allows.
    assert found.lower <= least + 1e-6
    assert found.upper >= least - 0.05
    point = torch.from_numpy(found.variables[:2].copy())[None]
    # The solver may leave a coordinate a little changed.
    near = torch.where((point - x).abs() <= 1e-5, x, point)
    assert bool(threat.admits(near, x).all())
    assert float(margins(model, point, y)) == pytest.approx(found.upper, abs=1e-5)
    assert float(crown_margins(graph, region, torch.tensor([y])).lower) <= found.lower + 1e-6


def pattern_minimum(layers, row, low, high):
    """``min <row, network(x)>`` over a box, by a linear program for every pattern of signs."""
    hidden = [len(b) for _, b in layers[:-1]]
    best = np.inf
    for pattern in product([0, 1], repeat=sum(hidden)):
        signs = np.split(np.array(pattern), np.cumsum(hidden)[:-1])
        matrix, constant = np.eye(len(low)), np.zeros(len(low))
        rows, limits = [], []
        for (weight, bias), sign in zip(layers[:-1], signs, strict=True):
            matrix, constant = weight @ matrix, weight @ constant + bias
            rows.append(np.where(sign, -1, 1)[:, None] * matrix)
            limits.append(np.where(sign, 1, -1) * constant)
            matrix, constant = sign[:, None] * matrix, sign * constant
        weight, bias = layers[-1]
        cost, shift = row @ weight @ matrix, row @ (weight @ constant + bias)
        result = linprog(cost, np.concatenate(rows), np.concatenate(limits), bounds=list(zip(low, high, strict=True)))
        if result.status == 0:
            best = min(best, result.fun + shift)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_the_minimum_is_that_of_all_activation_patterns(seed):
    torch.manual_seed(seed)
    model = spread(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)))
    x = torch.rand(1, 3, dtype=torch.float64)
    y = int(model(x).argmax())
    graph, region = capture(model, x), Region.around(Linf(0.6), x)
    found = milp_margin(graph, region, crown(graph, region).intervals, y, seconds=60)
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)]
    low, high = region.lower[0].numpy(), region.upper[0].numpy()
    rows = specification(torch.tensor([y]), 3, torch.float64)[0].numpy()
    expected = min(pattern_minimum(layers, row, low, high) for row in rows)
    assert found.lower == pytest.approx(expected, abs=2e-5)
    assert found.upper == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("threat", [Linf(0.5), L1(0.8)], ids=str)
def test_leaves_add_up_to_the_minimum(threat):
    torch.manual_seed(5)
    model = spread(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)))
    x = torch.rand(1, 2, dtype=torch.float64)
    y = int(model(x).argmax())
    graph, region = capture(model, x), Region.around(threat, x)
    intervals = crown(graph, region).intervals
    places = [number for number, node in enumerate(graph.nodes) if isinstance(node.operation, Kink)]
    row = specification(torch.tensor([y]), 2, torch.float64)[0, 0]
    leaves = []
    for pattern in product([-1, 1], repeat=5):
        signs = dict(zip(places, torch.tensor(pattern).split([3, 2]), strict=True))
        leaf = lp_bound(graph, region, intervals, signs, row, offset=0.25)
        leaves.append(leaf.bound)
        if leaf.x is None:
            assert leaf.bound == torch.inf
            continue
        assert bool(threat.admits(leaf.x[None], x).all())
        values = graph.values(leaf.x[None])
        for place, sign in signs.items():
            assert bool((values[graph.nodes[place].inputs[0]] * sign >= -1e-6).all())
        # A proved bound, and not far from the value at the point.
        value = float(row @ values[-1][0].detach()) + 0.25
        assert value - 1e-5 <= leaf.bound <= value + 1e-9
    assert min(leaves) - 0.25 == pytest.approx(milp_margin(graph, region, intervals, y, seconds=60).upper, abs=1e-5)
    assert any(bound == torch.inf for bound in leaves)
    assert lp_bound(graph, region, intervals, {}, row).bound <= min(leaves) - 0.25 + 1e-9


def test_any_multipliers_give_a_lower_bound():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, m = rng.integers(1, 6, 2)
        matrix, price = rng.normal(size=(m, n)), rng.normal(size=n)
        floor, low = rng.normal(size=m) - 1, -rng.random(n)
        high = low + rng.random(n)
        result = linprog(price, -matrix, -floor, bounds=list(zip(low, high, strict=True)))
        from_any = safe_bound(price, matrix, floor, low, high, rng.exponential(size=m))
        assert result.status == 2 or from_any <= result.fun
        if result.status == 0:
            best = safe_bound(price, matrix, floor, low, high, np.maximum(-result.ineqlin.marginals, 0))
            assert result.fun - 1e-9 <= best <= result.fun


def test_no_time_is_no_verdict():
    model = networks(0)["relu"]
    x = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    graph, region = capture(model, x), Region.around(Linf(0.3), x)
    found = milp_margin(graph, region, crown(graph, region).intervals, 0, seconds=0)
    assert (found.status, found.lower, found.upper) == ("timeout", -np.inf, np.inf)


def test_what_no_program_holds_is_refused_by_name():
    x = torch.rand(1, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2)).double()
    graph, region = capture(model, x), Region.around(Linf(0.1), x)
    with pytest.raises(ModelError, match="node 'sigmoid' is not piecewise linear"):
        milp_margin(graph, region, crown(graph, region).intervals, 0, seconds=1)
    with pytest.raises(SettingError, match="an l2 ball is no polytope"):
        milp_margin(graph, Region.around(L2(0.1), x), [], 0, seconds=1)
