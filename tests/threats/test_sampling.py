"""Random starts follow the law they claim: uniform in the ball, or on its sphere, before the box clips them."""

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.threats import norm_of
from holdfast.draws import Draws
from holdfast.threats import L0, L1, L2, Linf

BALLS = [Linf, L2, L1]
COUNT = 4000


def draw(threat, d, method="sample", seed=5, dtype=torch.float64, middle=0.0):
    x = torch.full((COUNT, d), middle, dtype=dtype)
    return getattr(threat, method)(x, Draws(seed, torch.arange(COUNT)))


def law(ball, d):
    """The distribution of ``|z_1| / |z|``, by exact formulas, for a point uniform on the sphere."""
    if ball is L2:
        return stats.beta(0.5, (d - 1) / 2), 2  # of the square
    assert ball is L1
    return stats.beta(1, d - 1), 1  # a spacing of uniforms


@pytest.mark.parametrize("d", [1, 2, 3, 10])
@pytest.mark.parametrize("ball", BALLS)
def test_the_radius_of_a_sample_is_that_of_a_uniform_point(ball, d):
    threat = ball(1.7, None)
    radius = norm_of(threat.norm, draw(threat, d)) / 1.7
    assert float(radius.max()) <= 1
    assert stats.kstest((radius**d).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("method", ["sample", "sample_boundary"])
@pytest.mark.parametrize("d", [2, 3, 10])
@pytest.mark.parametrize("ball", BALLS)
def test_directions_are_uniform(ball, d, method):
    threat = ball(1.7, None)
    z = draw(threat, d, method)
    unit = (z / norm_of(threat.norm, z)[:, None]).numpy()
    for i in (0, d - 1):
        if ball is Linf:
            # One coordinate is at a face, the same one as often as any other; the rest are uniform.
            at_face = np.abs(unit[:, i]) > 1 - 1e-12
            assert stats.binomtest(int(at_face.sum()), COUNT, 1 / d).pvalue > 1e-3
            assert stats.kstest(unit[~at_face, i], stats.uniform(-1, 2).cdf).pvalue > 1e-3
        else:
            expected, power = law(ball, d)
            assert stats.kstest(np.abs(unit[:, i]) ** power, expected.cdf).pvalue > 1e-3
        assert stats.binomtest(int((unit[:, i] > 0).sum()), COUNT).pvalue > 1e-3
    # Signs are independent of each other, and no coordinate is larger than another.
    assert stats.binomtest(int((unit[:, 0] * unit[:, 1] > 0).sum()), COUNT).pvalue > 1e-3
    assert stats.binomtest(int((np.abs(unit[:, 0]) > np.abs(unit[:, -1])).sum()), COUNT).pvalue > 1e-3


@pytest.mark.parametrize("ball", BALLS)
def test_length_and_direction_are_independent(ball):
    threat = ball(1.0, None)
    z = draw(threat, 4)
    length = norm_of(threat.norm, z)
    share = (z / length[:, None]).numpy()
    for feature in (share[:, 0], np.abs(share[:, 0]), np.abs(share).argmax(1)):
        assert stats.spearmanr(feature, length).pvalue > 1e-3


@pytest.mark.parametrize("d", [1, 2, 5, 3072])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ball", BALLS)
def test_a_boundary_point_has_norm_eps_exactly(ball, dtype, d):
    eps = torch.linspace(0, 9, 50, dtype=dtype)
    threat, x = ball(eps, None), torch.zeros(50, d, dtype=dtype)
    z = threat.sample_boundary(x, Draws(1, torch.arange(50)))
    room = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(norm_of(threat.norm, z), eps.double(), rtol=room, atol=0)


@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("method", ["sample", "sample_boundary"])
def test_a_box_clips_the_same_point(ball, method):
    free, boxed = (draw(ball(0.8, box), 5, method, middle=0.25) for box in (None, (0.0, 1.0)))
    assert torch.equal(boxed, free.clamp(-0.25, 0.75))
    assert not torch.equal(boxed, free) or ball is L1


def test_l0_draws_change_as_many_coordinates_as_allowed_anywhere_in_the_box():
    z = draw(L0(3, (-1.0, 1.0)), 6, middle=0.5).numpy()
    assert ((z != 0).sum(1) == 3).all()
    for i in range(6):
        moved = z[z[:, i] != 0, i]
        assert stats.binomtest(len(moved), COUNT, 0.5).pvalue > 1e-3
        assert stats.kstest(moved, stats.uniform(-1.5, 2).cdf).pvalue > 1e-3
    faces = draw(L0(3, (-1.0, 1.0)), 6, "sample_boundary", middle=0.5).numpy()
    assert ((faces != 0).sum(1) == 3).all()
    assert set(np.unique(faces)) == {-1.5, 0.0, 0.5}
    assert stats.binomtest(int((faces == 0.5).sum()), 3 * COUNT).pvalue > 1e-3
    assert all(stats.binomtest(int((faces[:, i] != 0).sum()), COUNT, 0.5).pvalue > 1e-3 for i in range(6))
