"""Exact distances against closed forms, subsets, grids and attacks."""

import sys
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from helpers.minimum import exact_distance as of_linear
from helpers.minimum import fewest_coordinates
from holdfast.attacks import FMN, craft
from holdfast.certify.distance import exact_distance
from holdfast.errors import DataError, ModelError
from holdfast.threats import L0, L1, L2, Linf

BALLS = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}


# How far beyond the boundary the rounding of float32 makes a witness go.
ROUNDING = 5e-6


class Absolute(nn.Module):
    def forward(self, x):
        return x.abs()


class Tangent(nn.Module):
    def forward(self, x):
        return x.tan()


def balanced(model, inputs):
    """Every class is somewhere the likeliest."""
    model[-1].bias.data -= model(torch.rand(1000, inputs)).mean(0).detach()
    return model.eval()


def linear(inputs, classes, seed=0):
    torch.manual_seed(seed)
    return balanced(nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)), inputs)


def hidden(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    for parameter in model.parameters():
        parameter.data *= 2
    return balanced(model, 2)


def check(model, x, y, threat, found):
    """Both ends agree, and the witness is misclassified by a plain forward pass and strictly inside the set."""
    for i, one in enumerate(found):
        assert one.status == "exact"
        assert 0 <= one.lower <= one.upper
        change = one.x_adv.double() - x[i].double()
        size = {"linf": change.abs().amax(), "l2": change.norm(), "l1": change.abs().sum(), "l0": (change != 0).sum()}[
            threat.norm
        ]
        assert float(size) == pytest.approx(one.upper, rel=1e-12)
        assert float(size) <= float(torch.as_tensor(threat.eps))
        low, high = threat.box.lower, threat.box.upper
        assert bool(((one.x_adv >= low) & (one.x_adv <= high)).all())
        with torch.no_grad():
            assert int(model(one.x_adv[None]).argmax()) != int(y[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_linear_models_have_a_closed_form(norm, dual, dtype):
    model = linear(6, 4).to(dtype)
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = model(x).argmax(1)
    # A box that is too far away to matter.
    threat = BALLS[norm]("inf", (-100.0, 100.0))
    found = exact_distance(model, x, y, threat)
    check(model, x, y, threat, found)
    expected = of_linear(model, x, y, dual)
    torch.testing.assert_close(torch.tensor([one.upper for one in found]), expected.float(), rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(torch.tensor([one.lower for one in found]), expected.float(), rtol=2e-4, atol=1e-6)


def test_what_rounding_takes_from_a_distance_is_little_and_no_more_than_it_must():
    """Of float32 networks, whose proofs in exact arithmetic end at the distance."""
    model, x = hidden(), torch.rand(6, 2, generator=torch.Generator().manual_seed(4))
    y = model(x).argmax(1)
    exact, executed = (
        exact_distance(model, x, y, Linf("inf"), arithmetic=arithmetic) for arithmetic in ("exact", "executed")
    )
    for ideal, one in zip(exact, executed, strict=True):
        assert one.upper == ideal.upper
        assert ideal.lower * (1 - 1e-4) <= one.lower < ideal.lower
    # In float64 there is next to nothing to take.
    for ideal, one in zip(
        *(exact_distance(model.double(), x.double(), y, Linf("inf"), arithmetic=a) for a in ("exact", "executed")),
        strict=True,
    ):
        assert ideal.lower * (1 - 1e-8) <= one.lower <= ideal.lower


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_box_is_part_of_the_closed_form(norm):
    """With two classes the shortest move to one plane inside the box is known exactly."""
    model = linear(5, 2, seed=3)
    x = torch.rand(6, 5, generator=torch.Generator().manual_seed(2))
    x[:, 0] = 0.0
    y = model(x).argmax(1)
    threat = BALLS[norm]("inf")
    weight, logits = model[1].weight.detach(), model(x).detach()
    towards = weight[1 - y] - weight[y]
    gap = logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]
    move = threat.to_plane(torch.zeros_like(x), x, towards, gap)
    reachable = ((towards * move).sum(1) - gap).abs() < 1e-5
    assert bool(reachable.any())
    found = exact_distance(model, x, y, threat)
    check(model, x[reachable], y[reachable], threat, [one for one, ok in zip(found, reachable, strict=True) if ok])
    for i, one in enumerate(found):
        if bool(reachable[i]):
            assert one.upper == pytest.approx(float(threat.length(x + move - x)[i]), rel=2e-4)
        else:
            assert (one.status, one.x_adv) == ("none", None)


def test_the_fewest_coordinates_of_a_linear_model():
    model = linear(6, 3, seed=4)
    x = torch.rand(6, 6, generator=torch.Generator().manual_seed(3))
    y = model(x).argmax(1)
    threat = L0("inf")
    found, expected = exact_distance(model, x, y, threat), fewest_coordinates(model, x, y)
    for one, count in zip(found, expected, strict=True):
        assert (one.status, one.lower) == (("none", torch.inf) if count > 6 else ("exact", count))
    possible = [count <= 6 for count in expected]
    assert any(possible)
    for i, count in enumerate(expected):
        if possible[i]:  # a budget that is just enough
            (one,) = exact_distance(model, x[i : i + 1], y[i : i + 1], L0(count))
            assert (one.status, one.lower, one.upper) == ("exact", count, count)
    check(model, x[possible], y[possible], threat, [one for one in found if one.status == "exact"])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_hidden_layers_against_a_grid_and_an_attack(norm):
    model = hidden()
    x = torch.rand(8, 2, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        y = model(x).argmax(1)
        ticks = torch.linspace(0, 1, 501)
        grid = torch.cartesian_prod(ticks, ticks)
        wrong = model(grid).argmax(1) != y[:, None]
    threat = BALLS[norm]("inf")
    found = exact_distance(model, x, y, threat)
    check(model, x, y, threat, found)
    change = (grid[None] - x[:, None]).abs()
    size = {"linf": change.amax(2), "l2": change.norm(dim=2), "l1": change.sum(2)}[norm]
    nearest = torch.where(wrong, size, torch.inf).amin(1)
    attack = craft(FMN(), model, x, y, threat=threat)
    assert bool(attack.success.all())
    for i, one in enumerate(found):
        # The grid has a point within half a step of each coordinate, though not always on the far side.
        assert float(nearest[i]) - 0.02 <= one.lower <= one.upper <= float(nearest[i]) + ROUNDING
        assert one.upper <= float(attack.distance[i]) + ROUNDING


@pytest.mark.parametrize("norm", ["linf", "l1", "l0"])
def test_each_way_leads_to_the_same_distance(norm, monkeypatch):
    model, threat = hidden(seed=1), BALLS[norm]("inf")
    module = sys.modules[exact_distance.__module__]
    x = torch.rand(2, 2, generator=torch.Generator().manual_seed(5))
    y = model(x).argmax(1)
    found = exact_distance(model, x, y, threat)
    monkeypatch.setattr(module, "_descended", lambda example, bracket, until: bracket)
    programs = exact_distance(model, x, y, threat)
    monkeypatch.setattr(module, "_MANY", -1)
    balls = exact_distance(model, x, y, threat)
    assert {one.method for one in programs} == {"mixed-integer programming"}
    for way in [balls, found] if norm != "l0" else [balls]:
        assert "branch and bound" in {one.method for one in way}
    check(model, x, y, threat, balls)
    check(model, x, y, threat, programs)
    for one, *others in zip(found, programs, balls, strict=True):
        for other in others:
            assert one.upper == pytest.approx(other.upper, rel=3e-4, abs=ROUNDING)
            assert other.lower >= one.upper * (1 - 1e-3) - ROUNDING


def nearest_of_all_patterns(model, x, y, norm):
    """The distance to each wrong class by a linear program for every pattern of signs; the least of them."""
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)]
    hidden_sizes, d = [len(b) for _, b in layers[:-1]], len(x)
    parts = 1 if norm == "linf" else d
    # The variables are the input and bounds of its change, of all of it or of each coordinate.
    spread = -np.ones((d, 1)) if norm == "linf" else -np.eye(d)
    frame = np.block([[np.eye(d), spread], [-np.eye(d), spread]])
    best = np.inf
    for pattern in product([0, 1], repeat=sum(hidden_sizes)):
        matrix, shift, rows, limits = np.eye(d), np.zeros(d), [], []
        for (weight, bias), sign in zip(
            layers[:-1], np.split(np.array(pattern), np.cumsum(hidden_sizes)[:-1]), strict=True
        ):
            matrix, shift = weight @ matrix, weight @ shift + bias
            rows.append(np.where(sign, -1, 1)[:, None] * matrix)
            limits.append(np.where(sign, 1, -1) * shift)
            matrix, shift = sign[:, None] * matrix, sign * shift
        matrix, shift = layers[-1][0] @ matrix, layers[-1][0] @ shift + layers[-1][1]
        for k in set(range(len(shift))) - {y}:
            piece = np.concatenate([*rows, matrix[y : y + 1] - matrix[k : k + 1]])
            result = linprog(
                np.concatenate([np.zeros(d), np.ones(parts)]),
                np.concatenate([frame, np.pad(piece, ((0, 0), (0, parts)))]),
                np.concatenate([x, -x, *limits, shift[k : k + 1] - shift[y : y + 1]]),
                bounds=[(0, 1)] * d + [(0, None)] * parts,
                options={"primal_feasibility_tolerance": 1e-10},
            )
            best = min(best, result.fun) if result.status == 0 else best
    return best


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_distance_is_that_of_all_activation_patterns_to_a_millionth(norm):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    for parameter in model.parameters():
        parameter.data *= 2
    model = balanced(model, 3).double()
    x = torch.rand(3, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    y = model(x).argmax(1)
    found = exact_distance(model, x, y, BALLS[norm]("inf"))
    check(model, x, y, BALLS[norm]("inf"), found)
    assert "branch and bound" in {one.method for one in found}
    for i, one in enumerate(found):
        expected = nearest_of_all_patterns(model, x[i].numpy(), int(y[i]), norm)
        assert one.upper == pytest.approx(expected, rel=1e-6)
        assert one.lower == pytest.approx(expected, rel=3e-6)
        assert one.lower <= expected * (1 + 1e-9)


def test_a_needle_is_found_or_ruled_out():
    """Misclassified only in a diamond a thousandth wide, on which the gradients around say nothing."""
    model = nn.Sequential(nn.Linear(2, 2), Absolute(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2))
    center = torch.tensor([0.731, 0.222])
    for layer, weight, bias in (
        (model[0], torch.eye(2), -center),
        (model[2], torch.tensor([[-1000.0, -1000.0]]), torch.tensor([1.0])),
        (model[4], torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0])),
    ):
        layer.weight.data, layer.bias.data = weight, bias
    x, y = torch.tensor([[0.3, 0.4]]), torch.tensor([0])
    (one,) = exact_distance(model, x, y, Linf("inf"))
    assert one.status == "exact"
    assert one.upper == pytest.approx(0.4307, abs=5e-4)
    assert int(model(one.x_adv[None]).argmax()) == 1
    (near,) = exact_distance(model, x, y, Linf(0.42))
    assert (near.status, near.lower, near.upper, near.x_adv) == ("none", pytest.approx(0.42), torch.inf, None)


def test_a_finite_budget_is_a_limit():
    model = hidden()
    x = torch.rand(8, 2, generator=torch.Generator().manual_seed(4))
    y = model(x).argmax(1)
    everywhere = exact_distance(model, x, y, Linf("inf"))
    middle = sorted(one.upper for one in everywhere)[4]
    budgets = torch.full((8,), middle * 0.999)
    for one, far in zip(exact_distance(model, x, y, Linf(budgets)), everywhere, strict=True):
        if far.upper > middle * 0.9995:
            assert (one.status, one.upper) == ("none", torch.inf)
            assert one.lower == float(budgets[0])
        else:
            assert one.upper == pytest.approx(far.upper, rel=2e-4)


def test_without_time_nothing_is_claimed():
    model = hidden()
    x = torch.rand(3, 2, generator=torch.Generator().manual_seed(4))
    y = model(x).argmax(1)
    for one in exact_distance(model, x, y, Linf("inf"), seconds=0):
        assert (one.status, one.lower) == ("bounded", 0)
        assert int(model(one.x_adv[None]).argmax()) != int(y[0]) or one.upper > 0
    for one in exact_distance(model, x, y, Linf(1e-3), seconds=0):
        assert one.status in ("unknown", "none")


def test_what_is_misclassified_already_is_at_distance_0():
    model = hidden()
    x = torch.rand(2, 2, generator=torch.Generator().manual_seed(4))
    y = (model(x).argmax(1) + 1) % 3
    for one, clean in zip(exact_distance(model, x, y, Linf(0.1)), x, strict=True):
        assert (one.status, one.lower, one.upper, one.method) == ("exact", 0, 0, "clean pass")
        assert torch.equal(one.x_adv, clean)


def test_what_cannot_be_asked():
    model, x = hidden(), torch.rand(2, 2)
    with pytest.raises(ModelError, match="no bound is known for node"):
        exact_distance(nn.Sequential(model, Tangent()), x, torch.tensor([0, 0]), L2(0.1))
    with pytest.raises(DataError, match="must hold 2 class numbers"):
        exact_distance(model, x, torch.tensor([0]), Linf(0.1))
