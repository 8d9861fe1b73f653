"""Every ball through the shared tester: budgets, boxes, precisions, shapes and layouts."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from helpers.threats import assert_admissible, check_threat
from holdfast.draws import Draws
from holdfast.errors import DataError
from holdfast.threats import L0, L1, L2, Box, Linf

BALLS = {"linf": (Linf, 0.3), "l2": (L2, 0.7), "l1": (L1, 1.9), "l0": (L0, 3)}


def make(norm, kind="scalar", box=(0.0, 1.0), count=8):
    ball, eps = BALLS[norm]
    if kind == "string":
        return ball("2" if norm == "l0" else "8/255", box)
    if kind == "each":
        scale = torch.arange(count, dtype=torch.float64) % 4
        return ball(scale if norm == "l0" else eps * scale / 2, box)
    return ball({"scalar": eps, "none": 0}[kind], box)


def inputs(shape, dtype=torch.float32, lower=0.0, upper=1.0, seed=0):
    """Random inputs, an eighth of their coordinates at the faces of the box."""
    u = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u = ((u * 8 / 7) - 1 / 14).clamp(0, 1)
    return (lower + (upper - lower) * u).to(dtype)


def features(shape, dtype=torch.float64):
    """A box with bounds of every coordinate's own; one coordinate is fixed."""
    lower = -inputs(shape, seed=1, dtype=dtype)
    upper = 0.2 + inputs(shape, seed=2, dtype=dtype) * 3
    lower.view(-1)[0] = upper.view(-1)[0] = 0.25
    return lower, upper


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["scalar", "string", "each", "none"])
@pytest.mark.parametrize(
    ("norm", "box"), [case for case in product(BALLS, ["unit", "features", "none"]) if case != ("l0", "none")]
)
def test_budgets_boxes_and_precisions(norm, kind, box, dtype):
    shape = (4, 9)
    index = torch.tensor([6, 1, 3, 2])
    if box == "features":
        # In half precision the bounds themselves are rounded, and so are the inputs made from them.
        lower, upper = features(shape[1:], torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
        x = inputs(shape, dtype, lower.double(), upper.double()).clamp(lower.to(dtype), upper.to(dtype))
        check_threat(make(norm, kind, (lower, upper)), x, index)
    else:
        check_threat(make(norm, kind, (0.0, 1.0) if box == "unit" else None), inputs(shape, dtype), index)


@pytest.mark.parametrize(
    "shape", [(3, 1), (3, 5), (2, 1, 4, 3), (2, 3, 2, 5), (0, 4), (0, 3, 2, 2), (1, 7), (1, 1, 3, 2)]
)
@pytest.mark.parametrize("norm", BALLS)
def test_shapes(norm, shape):
    check_threat(make(norm, "each" if shape[0] > 1 else "scalar"), inputs(shape))


@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed", "expanded"])
@pytest.mark.parametrize("norm", BALLS)
def test_layouts(norm, layout):
    x = inputs((4, 3, 4, 2))
    x = {
        "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
        "strided": lambda: x[::2, :, 1:, :],
        "transposed": lambda: x.transpose(2, 3),
        "expanded": lambda: x[:1].expand(3, -1, -1, -1),
    }[layout]()
    check_threat(make(norm), x)


@pytest.mark.parametrize("norm", BALLS)
def test_a_box_of_channels_broadcasts(norm):
    lower, upper = torch.tensor([-1.0, 0.0, 2.0]).reshape(3, 1, 1), torch.tensor([0.0, 0.5, 4.0]).reshape(3, 1, 1)
    x = inputs((2, 3, 3, 2), torch.float64, lower, upper)
    check_threat(make(norm, box=Box(lower, upper)), x)


@pytest.mark.parametrize(
    ("ball", "eps", "box"),
    [(b, e, box) for b, e in ((Linf, 0.7), (L2, 3.3), (L1, 5.3)) for box in ((0, 255), None)] + [(L0, 7, (0, 255))],
)
def test_what_is_admissible_stays_so_at_the_scale_of_pixels(ball, eps, box):
    # Half a unit in the last place of 255 is 8e-6: more than the tolerance, and nobody's fault.
    threat, x = ball(eps, box), inputs((100, 192), upper=255.0)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    rng = Draws(0, torch.arange(len(x)))
    for z in (threat.maximize(g, x), threat.project(30 * g, x), threat.sample_boundary(x, rng), threat.sample(x, rng)):
        assert bool(threat.admits(threat.apply(x, z), x).all())
    beyond = replace(threat, eps=threat.eps + 1 if ball is L0 else threat.eps * 1.001).maximize(g, x)
    assert not bool(threat.admits(threat.apply(x, beyond), x).any())


def test_rounding_never_excuses_another_coordinate():
    x = inputs((1, 300), upper=255.0).clamp(1, 254)
    for steps, within in ((5, True), (6, False)):
        x_adv = x.clone()
        x_adv[:, :steps] = torch.nextafter(x[:, :steps], torch.tensor(0.0))
        assert bool(L0(5, (0, 255)).admits(x_adv, x)) is within


@pytest.mark.parametrize("norm", BALLS)
def test_an_input_outside_the_box_is_never_admissible_and_is_not_pushed_further(norm):
    threat, x = make(norm), torch.tensor([[1.5, 0.5, -0.25]])
    assert not bool(threat.admits(x, x))
    z = threat.maximize(torch.tensor([[1.0, 0.0, -1.0]]), x)
    assert torch.equal(z, torch.zeros_like(x))
    assert not bool(threat.admits(threat.apply(x, z), x)) or norm == "l0" or threat.eps >= 0.5


@pytest.mark.parametrize("norm", BALLS)
def test_at_takes_the_budgets_of_the_examples(norm):
    eps = torch.tensor([1.0, 2.0, 3.0, 0.0])
    threat = BALLS[norm][0](eps)
    assert threat.at(torch.tensor([2, 0, 2])).eps.tolist() == [3.0, 1.0, 3.0]
    assert threat.at(torch.tensor([], dtype=torch.int64)).eps.shape == (0,)
    assert "\n" not in repr(threat.at(torch.tensor([], dtype=torch.int64)))
    one = make(norm)
    assert one.at(torch.tensor([5])) is one
    with pytest.raises(DataError, match="example 4 has no budget: eps holds only 4"):
        threat.at(torch.tensor([0, 4]))
    with pytest.raises(DataError, match="4 budgets for 3 examples"):
        threat.project(torch.zeros(3, 2), torch.zeros(3, 2))


@pytest.mark.parametrize("norm", BALLS)
def test_a_ball_near_its_inputs_is_the_same_ball_and_its_cache_goes_no_further(norm):
    threat, x = make(norm, "each", count=4), inputs((4, 9))
    g, rng = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), Draws(0, torch.arange(4))
    flip = torch.tensor([3, 2, 1, 0])
    wider = {"eps": threat.eps + 1}
    near = threat.near(x)
    for one, other in (
        (near, threat),
        (near.at(flip), threat.at(flip)),
        (replace(near, **wider), replace(threat, **wider)),
        (replace(near, box=Box(-1.0, 2.0)), replace(threat, box=Box(-1.0, 2.0))),
    ):
        for around in (x, x / 2):
            assert torch.equal(one.project(g, around), other.project(g, around))
            assert torch.equal(one.maximize(g, around), other.maximize(g, around))
            assert torch.equal(one.sample(around, rng), other.sample(around, rng))
            size = other.budget(x) / 3
            z = other.sample(around, rng)
            assert torch.equal(one.ascend(z, around, g, size), other.ascend(z, around, g, size))


@pytest.mark.parametrize("norm", BALLS)
def test_budgets_of_examples_are_those_of_single_balls(norm):
    threat, x = make(norm, "each", count=4), inputs((4, 9), torch.float64)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in range(4):
        single, one = BALLS[norm][0](float(threat.eps[row])), slice(row, row + 1)
        for call in (lambda t, r: t.project(3 * g[r], x[r]), lambda t, r: t.maximize(g[r], x[r])):
            torch.testing.assert_close(call(threat, slice(None))[one], call(single, one), rtol=1e-12, atol=1e-14)
        assert_admissible(single, x[one], single.maximize(g[one], x[one]))
