"""One tester for every threat: what must hold of any norm ball and box, judged by arithmetic of its own."""

import copy
import json
import pickle
from dataclasses import replace

import torch

from holdfast.draws import Draws

# Relative room for rounding, by the precision of the inputs.
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2}


def flat(d):
    return d.reshape(len(d), d.shape[1:].numel()).double()


def norm_of(name, d):
    """``(N,)`` float64 norms, written out."""
    size = flat(d).abs()
    if name == "linf":
        return torch.tensor([max(row, default=0.0) for row in size.tolist()], dtype=torch.float64)
    return {"l2": (size**2).sum(1) ** 0.5, "l1": size.sum(1), "l0": (size > 0).sum(1).double()}[name]


def dual_of(name, g):
    return norm_of({"linf": "l1", "l2": "l2", "l1": "linf", "l0": "linf"}[name], g)


def inner(g, d):
    return (flat(g) * flat(d)).sum(1)


def bounds(threat, x):
    """The box around every input, as large as the batch."""
    return tuple(torch.as_tensor(b, dtype=x.dtype).expand_as(x) for b in (threat.box.lower, threat.box.upper))


def budgets(threat, x):
    return torch.as_tensor(threat.eps, dtype=torch.float64).expand(len(x))


def assert_admissible(threat, x, z):
    """The perturbation is in the ball up to rounding, and ``apply`` keeps it in the box exactly."""
    assert z.shape == x.shape
    assert z.dtype == x.dtype
    assert bool((norm_of(threat.norm, z) <= budgets(threat, x) * (1 + ROUNDING[x.dtype])).all())
    lower, upper = bounds(threat, x)
    x_adv = threat.apply(x, z)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert bool(((lower <= x_adv) & (x_adv <= upper)).all())
    # The box holds for z too: applying must not need to clip more than the last bit.
    rounding = torch.finfo(x.dtype).eps * (x.abs() + z.abs())
    assert bool(((x + z - x_adv).abs() <= rounding).all())
    assert bool(threat.admits(x_adv, x).all())


def random_admissible(threat, x, count, generator):
    """``(count, N, D)`` float64 points of the set: dense and sparse, inside and on the boundary, box faces included."""
    n, d = len(x), x.shape[1:].numel()
    lower, upper = (flat(b) - flat(x) for b in bounds(threat, x))
    eps = budgets(threat, x).reshape(1, n, 1)
    order = torch.rand(count, n, d, generator=generator, dtype=torch.float64).argsort(2).argsort(2)
    # Unlike a uniform draw, powers of a normal have coordinates of very different sizes.
    power = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)[torch.arange(count) % 3].reshape(-1, 1, 1)
    normal = torch.randn(count, n, d, generator=generator, dtype=torch.float64)
    v = normal.sign() * normal.abs() ** power
    if threat.norm == "l0":
        place = torch.where(v > 0, upper, lower) * normal.abs().clamp_max(1)
        return torch.where(order < eps, place, 0)
    v = v * (order < torch.randint(1, d + 1, (count, n, 1), generator=generator))
    size = norm_of(threat.norm, v.reshape(count * n, d)).reshape(count, n, 1)
    return (eps * v / size).clamp(lower, upper)


def check_threat(threat, x, index=None, seed=0):
    """Everything that must hold of ``threat`` around the inputs ``x``, whose positions in the data are ``index``."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(len(x)) if index is None else index
    here = threat.at(index)
    state, before = torch.get_rng_state(), x.clone()
    check_budgets(threat, here, x, index)
    check_projection(here, x, generator)
    check_draws(threat, here, x, index)
    check_contains(here, x)
    check_duality(here, x, generator)
    check_maximum(here, x, generator)
    check_ascent(here, x, generator)
    check_copies(here, x, generator)
    assert torch.equal(x, before), "the inputs were changed"
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"


def _like(x, generator, scale=1.0):
    """Random numbers in the memory layout of ``x``."""
    wanted = torch.randn(x.shape, generator=generator, dtype=torch.float64) * scale
    return torch.empty_like(x).copy_(wanted)


def check_budgets(threat, here, x, index):
    eps = torch.as_tensor(threat.eps, dtype=torch.float64)
    assert torch.equal(budgets(here, x), eps[index] if eps.dim() else eps.expand(len(x)))
    torch.testing.assert_close(here.budget(x).double(), budgets(here, x), rtol=ROUNDING[x.dtype], atol=0)
    assert here.budget(x).dtype == x.dtype


def check_projection(threat, x, generator):
    room = ROUNDING[x.dtype]
    for scale in (0.0, 1e-3, 0.3, 3.0, 1e3):
        z = _like(x, generator, scale)
        kept = z.clone()
        for move in (threat.project, threat.retract):
            w = move(z, x)
            assert torch.equal(z, kept), "the choice was changed in place"
            assert_admissible(threat, x, w)
            again = move(w, x)
            torch.testing.assert_close(again, w, rtol=room, atol=room / 100)
            torch.testing.assert_close(move(z.contiguous(), x.contiguous()), w.contiguous(), rtol=room, atol=room / 100)
        # The nearest point is at least as near as the other one.
        nearest, other = (((flat(w) - flat(z)) ** 2).sum(1) for w in (threat.project(z, x), threat.retract(z, x)))
        assert bool((nearest <= other * (1 + room) + 1e-12).all())
    if x.dtype == torch.bfloat16:
        return
    for point in random_admissible(threat, x, 6, generator) * (1 - 1e-6 * (threat.norm != "l0")):
        z = point.reshape(x.shape).to(x.dtype)
        lower, upper = bounds(threat, x)
        z = z.clamp(lower - x, upper - x)
        assert torch.equal(threat.project(z, x), z), "an admissible choice was moved"


def check_draws(threat, here, x, index):
    for name in ("sample", "sample_boundary"):

        def draw(rows, number=0, seed=3, name=name):
            return getattr(threat.at(index[rows]), name)(x[rows], Draws(seed, index[rows], stage=1, draw=number))

        everyone = torch.arange(len(x))
        z = draw(everyone)
        assert_admissible(here, x, z)
        assert torch.equal(z, draw(everyone))
        assert torch.equal(z.flip(0), draw(everyone.flip(0)))
        for row in everyone:
            assert torch.equal(z[row : row + 1], draw(row.reshape(1)))
        lower, upper = (flat(b) - flat(x) for b in bounds(here, x))
        movable = (budgets(here, x) > (here.norm == "l0")) & (((upper > 0) & (lower < 0)).sum(1) > 1)
        for other in (draw(everyone, number=1), draw(everyone, seed=4)):
            differs = (flat(z) != flat(other)).any(1)[movable]
            # A few L0 coordinates may be the same by chance, but not in every row.
            assert bool(differs.any() if here.norm == "l0" and len(differs) else differs.all()), f"{name} repeats"


def check_contains(threat, x):
    assert threat.distance(x, threat.nothing(x)).dtype == x.dtype
    assert threat.admits(x, x).dtype == torch.bool
    assert bool(threat.admits(x, x).all())
    assert not bool(threat.admits(x * torch.nan, x).any())
    gap = 0.1 if x.dtype == torch.bfloat16 else 1e-4
    lower, upper = bounds(threat, x)
    inward = torch.where(upper - x > x - lower, 1.0, -1.0).to(x.dtype)
    d, eps = x.shape[1:].numel(), budgets(threat, x)

    def spread(length):
        """A change of that norm that leaves every box where there is room for it."""
        if threat.norm == "l0":
            change = torch.where(torch.arange(d) < length.reshape(-1, 1), 0.1, 0.0)
        else:
            change = (length / {"linf": 1, "l2": d**0.5, "l1": d}[threat.norm]).reshape(-1, 1).expand(len(x), d)
        return (x.double() + inward * change.reshape(x.shape)).to(x.dtype)

    beyond = spread(eps + 1) if threat.norm == "l0" else spread(eps + gap * eps.clamp_min(1))
    if threat.norm != "l0" or bool((eps < d).all()):
        assert not bool(threat.admits(beyond, x).any())
    within = spread(eps if threat.norm == "l0" else (eps - gap * eps.clamp_min(1)).clamp_min(0))
    fits = flat(((lower <= within) & (within <= upper)).double()).bool().all(1)
    assert torch.equal(threat.admits(within, x), fits)
    torch.testing.assert_close(
        threat.length(within - x).double(), norm_of(threat.norm, within - x), rtol=ROUNDING[x.dtype], atol=0
    )
    if threat.box.bounded:
        # Next to the box, however near to the input.
        for face, side in ((upper, 1), (lower, -1)):
            at_face, beside = x.clone(), x.clone()
            at_face[:, :1], beside[:, :1] = face[:, :1], face[:, :1] + side * gap
            assert not bool(threat.admits(beside, at_face).any())


def check_duality(threat, x, generator):
    n, d = len(x), x.shape[1:].numel()
    room = ROUNDING[x.dtype]
    unit = {"l0": "l1"}.get(threat.norm, threat.norm)
    # Gradients of every size: squares of the smallest vanish in float32, and of the largest overflow.
    for scale in (1.0, 1e-30, 1e30):
        g = _like(x, generator, scale)
        kept = g.clone()
        direction, value = threat.steepest(g), threat.dual_norm(g)
        assert torch.equal(g, kept)
        assert direction.shape == x.shape
        assert direction.dtype == value.dtype == x.dtype
        torch.testing.assert_close(value.double(), dual_of(threat.norm, g), rtol=room, atol=0)
        torch.testing.assert_close(inner(g, direction), dual_of(threat.norm, g), rtol=room, atol=0)
        assert bool((norm_of(unit, direction) <= 1 + room).all())
        v = torch.randn(2000 * n, d, generator=generator, dtype=torch.float64) ** 3
        others = (v / norm_of(unit, v).reshape(-1, 1)).reshape(2000, n, d)
        assert bool(((others * flat(g)).sum(2) <= inner(g, direction) * (1 + room)).all())
    still = torch.zeros_like(x)
    assert torch.equal(threat.steepest(still), still)
    assert bool((threat.dual_norm(still) == 0).all())


def check_maximum(threat, x, generator):
    room = ROUNDING[x.dtype]
    for scale in (1.0, 1e-20, 1e20):
        g = _like(x, generator, scale)
        kept = g.clone()
        z = threat.maximize(g, x)
        assert torch.equal(g, kept)
        assert_admissible(threat, x, z)
        value, slack = inner(g, z), room * dual_of("linf", g) * (norm_of("linf", z) + 1)
        others = (random_admissible(threat, x, 500, generator) * flat(g)).sum(2)
        assert bool((others <= value + slack).all()), "a random choice beats the maximum"
        rising = torch.full_like(value, -torch.inf)
        for factor in (0, 1, 2, 3):
            wider = replace(threat, eps=threat.eps * factor)
            wide = inner(g, wider.maximize(g, x))
            assert bool((wide >= rising - slack).all()), "a larger budget gives less"
            rising = wide
            assert factor != 1 or torch.equal(wide, value)
    still = torch.zeros_like(x)
    assert torch.equal(threat.maximize(still, x), still)


def check_ascent(threat, x, generator):
    g = _like(x, generator)
    best = inner(g, threat.maximize(g, x))
    slack = ROUNDING[x.dtype] * dual_of("linf", g) * 10
    z, size = torch.zeros_like(x), threat.budget(x) / 4
    start = threat.ascend(z, x, g, size)
    assert torch.equal(z, torch.zeros_like(x))
    reached = torch.zeros(len(x), dtype=torch.float64)
    z = start
    for _ in range(40):
        assert_admissible(threat, x, z)
        value = inner(g, z)
        assert bool((value <= best + slack).all()), "projected ascent beats the maximum"
        # The sparse steps are no multiples of a Euclidean gradient, so only the best of their run has to rise.
        falls = threat.norm in ("l1", "l0")
        assert falls or bool((value >= reached - slack).all()), "a step on a linear function went down"
        reached, z = torch.maximum(value, reached), threat.ascend(z, x, g, size)
    if threat.norm != "l0" and x.dtype != torch.bfloat16:
        assert bool((reached >= 0.99 * best).all()), "projected ascent stops short of the maximum"


def check_copies(threat, x, generator):
    z = _like(x, generator)
    for twin in (copy.deepcopy(threat), pickle.loads(pickle.dumps(threat))):
        assert torch.equal(twin.project(z, x), threat.project(z, x))
        assert repr(twin) == repr(threat)
    assert "\n" not in repr(threat)
    assert "tensor" not in repr(threat)
    assert repr(threat).lower().startswith(threat.norm)
    assert threat.name.startswith(f"{threat.norm}:")
    said = json.loads(json.dumps(threat.to_dict(), allow_nan=False))
    assert said["norm"] == threat.norm
    assert said["eps"] == (threat.eps if isinstance(threat.eps, float) else threat.eps.tolist())
    assert said["box"][0] == (
        [None, 0.0][threat.box.bounded] if isinstance(threat.box.lower, float) else said["box"][0]
    )
