"""Lipschitz constants from below and above, around what brute force finds between them."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from helpers.geometry import networks, tiny
from holdfast.errors import SettingError
from holdfast.geometry import layer_norms, lipschitz_above, lipschitz_below, region_at
from holdfast.threats import L0, L1, L2, Linf

BALLS = {"linf": Linf, "l2": L2, "l1": L1}
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


@pytest.mark.parametrize("norm", sorted(BALLS))
@pytest.mark.parametrize("name", sorted(networks()))
def test_every_pair_is_between_the_bounds(name, norm):
    model, shape = networks()[name]
    threat = BALLS[norm](0.4, box=None)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(*shape, generator=rng, dtype=torch.float64)
    below = float(lipschitz_below(model, x[None], threat, steps=5, restarts=2))
    above, everywhere = lipschitz_above(model, x, threat), layer_norms(model, shape, threat)
    moved = threat.project(torch.randn(2000, *shape, generator=rng, dtype=torch.float64) * 0.3, x.expand(2000, *shape))
    step = torch.linalg.vector_norm(moved.flatten(1), ORDER[norm], 1)
    ratios = torch.linalg.vector_norm(model(x + moved) - model(x[None]), ORDER[norm], 1) / step
    assert float(ratios.max()) <= above * (1 + 1e-9)
    assert 0 < below <= above * (1 + 1e-9)
    assert float(ratios.max()) <= everywhere * (1 + 1e-9)
    # Jacobians anywhere in the set, too.
    for point in x + moved[:40]:
        assert float(torch.linalg.matrix_norm(region_at(model, point).weight, ORDER[norm])) <= min(
            above, everywhere
        ) * (1 + 1e-9)


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_of_a_linear_map_all_are_its_operator_norm(norm):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    threat = BALLS[norm](0.3, box=None)
    x = torch.zeros(4, dtype=torch.float64)
    expected = float(torch.linalg.matrix_norm(model[1].weight @ model[0].weight, ORDER[norm]))
    assert layer_norms(model, (4,), threat) == pytest.approx(expected)
    assert float(lipschitz_below(model, x[None], threat, steps=40, restarts=8)) == pytest.approx(expected, rel=1e-3)
    if norm != "l2":
        assert lipschitz_above(model, x, threat) == pytest.approx(expected)
    else:  # the norm of absolute values is larger
        assert lipschitz_above(model, x, threat) >= expected


def test_inside_one_region_the_bound_is_its_map_and_a_box_cuts_it():
    model = tiny(seed=1)
    x = torch.tensor([0.3, -0.2], dtype=torch.float64)
    jacobian = region_at(model, x).weight
    assert lipschitz_above(model, x, Linf(1e-6, box=None)) == pytest.approx(
        float(torch.linalg.matrix_norm(jacobian, torch.inf))
    )
    wide = lipschitz_above(model, x, Linf(1.0, box=None))
    assert lipschitz_above(model, x, Linf(1.0, box=(-0.2, 0.3))) < wide
    assert wide < layer_norms(model, (2,), Linf(1.0))


def test_l0_has_no_constant():
    with pytest.raises(SettingError, match="geometry measures in linf"):
        lipschitz_above(tiny(seed=1), torch.zeros(2), L0(1))


def layer(weight, bias):
    made = nn.Linear(len(weight[0]), len(weight)).double()
    made.weight.data, made.bias.data = (torch.tensor(part, dtype=torch.float64) for part in (weight, bias))
    return made


def rational(matrix):
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


def product(a, b):
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def is_norm_at_most(matrix, order, bound):
    """In rational numbers, of a matrix with two columns."""
    if order != 2:
        rows = matrix if order == torch.inf else zip(*matrix, strict=True)
        return max(sum(map(abs, row)) for row in rows) <= bound
    (a, b), (c, d) = product(list(zip(*matrix, strict=True)), matrix)
    square = bound * bound
    return square >= (a + d) / 2 and square * square - (a + d) * square + a * d - b * c >= 0


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_no_rounding_makes_a_constant_too_small(norm):
    """Affine layers one after the other, whose product is known in rational numbers."""
    threat, order, rng = BALLS[norm](0.3, box=None), ORDER[norm], torch.Generator().manual_seed(3)
    for trial in range(150):
        spread = [0, 5, 10][trial % 3]
        parts = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((6, 2), (5, 6))]
        parts = [p * 10 ** (spread * (2 * torch.rand(len(p), 1, generator=rng) - 1).double()) for p in parts]
        if trial % 2:  # so that much cancels
            parts[1][:, 0] = -parts[1][:, 1]
            parts[0][0] = parts[0][1] * (1 + 1e-12)
        model = nn.Sequential(*(layer(p.tolist(), (1e9 * torch.randn(len(p), generator=rng)).tolist()) for p in parts))
        exact = product(rational(parts[1]), rational(parts[0]))
        x = torch.randn(2, generator=rng, dtype=torch.float64)
        for found in (layer_norms(model, (2,), threat), lipschitz_above(model, x, threat)):
            assert is_norm_at_most(exact, order, Fraction(found))
        if trial % 6 == 0:
            assert not is_norm_at_most(
                exact, order, Fraction(layer_norms(model, (2,), threat)) * (1 - Fraction(1, 10**9))
            )


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_what_a_large_constant_swallows_still_counts(norm):
    """1e20 + x - 1e20 is x, and a unit that only rounding seems to settle may switch."""
    threat, zero = BALLS[norm](0.5, box=None), torch.zeros(1, dtype=torch.float64)
    shifted = nn.Sequential(layer([[1.0], [2.0]], [1e20, -1e20]), layer([[1.0, 1.0]], [0.0]))
    assert layer_norms(shifted, (1,), threat) >= 3
    assert lipschitz_above(shifted, zero, threat) >= 3
    switching = nn.Sequential(
        layer([[1.0], [1.0]], [1e17, -1e17]), layer([[1.0, 1.0]], [0.0]), nn.ReLU(), layer([[5.0], [0.0]], [0.0, 0.0])
    )
    # 2 x + 1e17 - 1e17: active right of 0, with slope 10.
    assert lipschitz_above(switching, zero - 0.1, threat) >= 10
    deep = nn.Sequential(layer([[1.0], [1.0]], [1e17, 0.0]), nn.ReLU(), layer([[1.0, 0.0]], [-1e17]), nn.ReLU())
    assert lipschitz_above(deep, zero - 0.1, threat) >= 1


def test_constants_at_the_ends_of_the_scale():
    for scale in (1e-300, 1e-160, 1e160):
        model = nn.Sequential(layer([[3 * scale, 0.0], [4 * scale, 0.0]], [0.0, 0.0]))
        for found in (layer_norms(model, (2,), L2(1.0)), lipschitz_above(model, torch.zeros(2).double(), L2(1.0))):
            assert 5 * scale * (1 - 1e-15) <= found <= 5 * scale * (1 + 1e-5)
    huge = nn.Sequential(layer([[1e200]], [0.0]), layer([[1e200]], [0.0]))
    assert layer_norms(huge, (1,), L2(1.0)) == torch.inf
