"""Lipschitz constants from below and above, around what brute force finds between them."""

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
