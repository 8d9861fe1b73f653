"""Objectives against their formulas written out with loops, and the signs and invariances they promise."""

import math

import pytest
import torch

from holdfast.errors import SettingError
from holdfast.tasks import objectives
from holdfast.tasks.objectives import objective

KINDS = ["normal", "ties", "constant", "huge"]


def logits_of(kind, classes, n=60, dtype=torch.float64):
    generator = torch.Generator().manual_seed(classes)
    z = torch.randn(n, classes, generator=generator, dtype=torch.float64) * 3
    z = {
        "normal": z,
        "ties": z.div(3).round(),
        "constant": torch.full_like(z, 2.5),
        "huge": torch.where(z > 0, 1e4, -1e4) + z,
    }[kind]
    y = torch.randint(0, classes, (n,), generator=generator)
    target = (y + torch.randint(1, classes, (n,), generator=generator)) % classes
    return z.to(dtype), y, target


def log_softmax(row):
    top = max(row)
    total = math.log(sum(math.exp(v - top) for v in row))
    return [v - top - total for v in row]


def others(row, y):
    return [v for i, v in enumerate(row) if i != y]


def loop_dlr(row, y, _):
    ordered = sorted(row, reverse=True)
    rise = max(others(row, y)) - row[y]
    return rise / (ordered[0] - ordered[2] + 1e-12) if len(row) > 2 else rise


def loop_targeted_dlr(row, y, t):
    ordered = sorted(row, reverse=True)
    if len(row) == 2:
        return row[t] - row[y]
    last = (ordered[2] + ordered[3]) / 2 if len(row) > 3 else ordered[2]
    return (row[t] - row[y]) / (ordered[0] - last + 1e-12)


LOOPS = {
    "cross_entropy": lambda row, y, _: -log_softmax(row)[y],
    "targeted_cross_entropy": lambda row, _, t: log_softmax(row)[t],
    "margin": lambda row, y, _: max(others(row, y)) - row[y],
    "targeted_margin": lambda row, _, t: row[t] - max(others(row, t)),
    "dlr": loop_dlr,
    "targeted_dlr": loop_targeted_dlr,
}


def call(name, z, y, target):
    function = getattr(objectives, name)
    if name == "targeted_dlr":
        return function(z, y, target)
    return function(z, target if name.startswith("targeted") else y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOOPS)
def test_formulas(name, kind, classes, dtype):
    z, y, target = logits_of(kind, classes, dtype=dtype)
    kept = z.clone(), y.clone(), target.clone()
    values = call(name, z, y, target)
    assert values.shape == y.shape
    assert values.dtype == dtype
    assert bool(values.isfinite().all())
    for now, before in zip((z, y, target), kept, strict=True):
        assert torch.equal(now, before)
    expected = [LOOPS[name](row, *labels) for row, *labels in zip(z.tolist(), y.tolist(), target.tolist(), strict=True)]
    room = 1e-12 if dtype == torch.float64 else 1e-5
    # Differences of large float32 logits are exact, but log-sum-exp is rounded at their size.
    torch.testing.assert_close(
        values.double(), torch.tensor(expected, dtype=torch.float64), rtol=room, atol=room * float(z.abs().max())
    )


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_kl_divergence(classes):
    z, *_ = logits_of("normal", classes)
    clean = z.roll(1, 0)
    values = objectives.kl_divergence(z, clean)
    expected = []
    for row, reference in zip(z.tolist(), clean.tolist(), strict=True):
        p, q = log_softmax(reference), log_softmax(row)
        expected.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert bool((values > 0).all())
    assert bool((objectives.kl_divergence(z, z) == 0).all())
    # From the clean prediction to the other, not the reverse.
    assert not torch.allclose(values, objectives.kl_divergence(clean, z))


@pytest.mark.parametrize("kind", KINDS)
def test_kl_divergence_has_no_slope_at_the_clean_logits(kind):
    for dtype, room in ((torch.float32, 1e-6), (torch.float64, 1e-15)):
        z, *_ = logits_of(kind, 10, dtype=dtype)
        moving = z.clone().requires_grad_()
        (grad,) = torch.autograd.grad(objectives.kl_divergence(moving, z).sum(), moving)
        assert float(grad.abs().max()) <= room


@pytest.mark.parametrize("kind", ["normal", "huge", "ties"])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_signs_tell_what_is_predicted(classes, kind):
    z, y, target = logits_of(kind, classes)
    best = z.amax(1)
    alone = (z == best[:, None]).sum(1) == 1
    right, hit = z.argmax(1) == y, z.argmax(1) == target
    assert 0 < int(right[alone].sum()) < int(alone.sum())
    for values in (objectives.margin(z, y), objectives.dlr(z, y)):
        assert torch.equal((values < 0)[alone], right[alone])
        assert torch.equal((values > 0)[alone], ~right[alone])
        # On a tie for the top with its own class, nothing is won yet.
        tied = ~alone & (z.gather(1, y[:, None])[:, 0] == best)
        assert bool((values[tied] == 0).all())
    assert torch.equal((objectives.targeted_margin(z, target) > 0)[alone], hit[alone])
    beats = z.gather(1, target[:, None]) > z.gather(1, y[:, None])
    assert torch.equal(objectives.targeted_dlr(z, y, target) > 0, beats[:, 0])


@pytest.mark.parametrize("name", LOOPS)
def test_larger_is_better_for_the_adversary(name):
    z, y, target = logits_of("normal", 10)
    z.requires_grad_()
    (grad,) = torch.autograd.grad(call(name, z, y, target).sum(), z)
    if name.endswith("dlr"):
        # Once the label has lost, the denominator may well weigh more.
        right = z.argmax(1) == y
        assert int(right.sum()) > 3
        z, y, target, grad = z[right], y[right], target[right], grad[right]
    own, towards = grad.gather(1, y[:, None]), grad.gather(1, target[:, None])
    if name.startswith("targeted"):
        assert bool((towards > 0).all())
    else:
        # A step along the gradient always lowers the label's logit against the best of the others.
        rival = z.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
        assert bool((own < grad.gather(1, rival[:, None])).all())


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_dlr_does_not_see_shift_nor_scale(classes):
    z, y, target = logits_of("normal", classes)
    for scale, shift in ((1.0, 100.0), (1e3, 0.0), (1e-3, -7.0)):
        moved = scale * z + shift
        torch.testing.assert_close(objectives.dlr(moved, y), objectives.dlr(z, y), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(
            objectives.targeted_dlr(moved, y, target), objectives.targeted_dlr(z, y, target), rtol=1e-6, atol=1e-9
        )
    assert not torch.allclose(objectives.margin(2 * z, y), objectives.margin(z, y))


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_dlr_of_constant_logits_is_zero(classes):
    z, y, target = logits_of("constant", classes)
    z.requires_grad_()
    for values in (objectives.dlr(z, y), objectives.targeted_dlr(z, y, target)):
        assert bool((values == 0).all())
        (grad,) = torch.autograd.grad(values.sum(), z, retain_graph=True)
        assert bool(grad.isfinite().all())


def test_dlr_with_the_top_three_equal_stays_finite():
    z = torch.tensor([[5.0, 5.0, 5.0, 1.0]])
    assert float(objectives.dlr(z, torch.tensor([3]))) == pytest.approx(4e12)
    assert float(objectives.dlr(z, torch.tensor([0]))) == 0


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("name", [*LOOPS, "kl_divergence"])
def test_gradients(name, classes):
    # Numbers a step of the check cannot reorder.
    generator = torch.Generator().manual_seed(classes)
    z = torch.stack([torch.randperm(classes, generator=generator) for _ in range(6)]).double()
    y, target = torch.arange(6) % classes, (torch.arange(6) + 1) % classes
    clean = z.flip(1) / 3

    def value(z):
        return objectives.kl_divergence(z, clean) if name == "kl_divergence" else call(name, z, y, target)

    assert torch.autograd.gradcheck(value, (z.requires_grad_(),))
    # Nothing is averaged: a row's gradient is its own whatever the batch.
    (whole,) = torch.autograd.grad(value(z).sum(), z)
    y, target, clean, part = y[2:3], target[2:3], clean[2:3], z.detach()[2:3].requires_grad_()
    (alone,) = torch.autograd.grad(value(part).sum(), part)
    assert torch.equal(alone[0], whole[2])


@pytest.mark.parametrize("name", LOOPS)
def test_a_tensor_that_the_model_keeps_is_not_written_to(name):
    z, y, target = logits_of("normal", 5)
    version = z._version
    call(name, z, y, target)
    call(name, z.expand(len(z), 5), y, target)
    assert z._version == version


@pytest.mark.parametrize("name", LOOPS)
def test_no_examples(name):
    none = torch.zeros(0, dtype=torch.int64)
    assert call(name, torch.zeros(0, 4), none, none).shape == (0,)


@pytest.mark.parametrize(
    ("short", "away", "towards"),
    [
        ("ce", "cross_entropy", "targeted_cross_entropy"),
        ("margin", "margin", "targeted_margin"),
        ("dlr", "dlr", "targeted_dlr"),
    ],
)
def test_objectives_by_name(short, away, towards):
    z, y, target = logits_of("normal", 6)
    assert torch.equal(objective(short, y, None)(z), call(away, z, y, target))
    assert torch.equal(objective(short, y, target)(z), call(towards, z, y, target))


def test_an_unknown_objective_is_told_the_known_ones():
    with pytest.raises(SettingError, match=r"unknown objective 'cw': choose one of ce, margin, dlr$"):
        objective("cw", torch.zeros(1, dtype=torch.int64), None)
