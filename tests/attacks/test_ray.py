import pytest
import torch

from helpers.attacks import NORMS, check_attack, examples
from helpers.zoo import convnet, random_linear, uniform
from holdfast.attacks.ray import Ray
from holdfast.errors import SettingError

DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


@pytest.mark.parametrize("norm", NORMS)
def test_shared(norm):
    check_attack(Ray(probes=6, bisections=8), norm, forwards=7, backwards=1)


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("classes", [2, 5])
def test_linear_models_without_a_box_in_closed_form(norm, classes):
    model = random_linear(8, classes)
    weight, x = model[1].weight.detach(), uniform(20, 8, seed=3, dtype=torch.float64)
    logits = model(x).detach()
    y, rival = logits.topk(2).indices.unbind(1)
    # The ray follows the gradient of the margin towards the runner-up; the first class it meets need not be that one.
    slope = weight[rival] - weight[y]
    if norm == "linf":
        direction = slope.sign()
    elif norm == "l2":
        direction = slope / slope.norm(dim=1, keepdim=True)
    else:
        top = slope.abs().argmax(1, keepdim=True)
        direction = torch.zeros_like(slope).scatter(1, top, slope.gather(1, top).sign())
    gaps = logits.gather(1, y[:, None]) - logits
    speeds = direction @ weight.T - (direction * weight[y]).sum(1, keepdim=True)
    expected = torch.where(speeds > 0, gaps / speeds, torch.inf).scatter(1, y[:, None], torch.inf).amin(1)
    result = Ray(bisections=40, tolerance=1e-8)(model, x, y, threat=NORMS[norm]("inf", box=None))
    assert result.success.all()
    torch.testing.assert_close(result.distance, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_two_classes_in_a_box_are_exact(norm):
    # With two classes the bent ray passes through the nearest input of every linear model.
    model = random_linear(6, 2)
    weight, x = model[1].weight.detach(), uniform(30, 6, seed=5, dtype=torch.float64)
    logits = model(x).detach()
    y = logits.argmax(1)
    slope, gap = weight[1 - y] - weight[y], (logits.amax(1) - logits.amin(1))
    result = Ray(probes=30, bisections=40, tolerance=1e-9)(model, x, y, threat=NORMS[norm]("inf"))
    corner = torch.where(slope > 0, 1 - x, -x)
    reachable = (slope * corner).sum(1) > gap
    assert torch.equal(result.success, reachable)
    assert reachable.sum() >= 10
    for i in reachable.nonzero()[:, 0]:
        # Bisection over lengths, each filled by its definition.
        low, high = 0.0, float(len(x[i]))
        for _ in range(60):
            size = (low + high) / 2
            gain = best_gain(norm, slope[i], corner[i].abs(), size)
            low, high = (low, size) if gain > gap[i] else (size, high)
        nearest = round(high) if norm == "l0" else high
        assert float(result.distance[i]) == pytest.approx(nearest, rel=1e-6)


def best_gain(norm, slope, room, size):
    """The most that ``<slope, z>`` can gain from a change of a length, by its definition."""
    rate = slope.abs()
    if norm == "linf":
        return (rate * room.clamp_max(size)).sum()
    if norm == "l0":
        return (rate * room).sort(descending=True).values[: int(size)].sum()
    if norm == "l1":
        gain, left = 0.0, size
        for k in rate.argsort(descending=True):
            used = min(left, float(room[k]))
            gain, left = gain + float(rate[k]) * used, left - used
        return gain
    low, high = 0.0, 1e6
    for _ in range(200):
        scale = (low + high) / 2
        low, high = (scale, high) if (scale * rate).minimum(room).norm() < size else (low, scale)
    return (rate * (low * rate).minimum(room)).sum()


def test_random_directions_find_more():
    model = convnet()
    x, y = examples(model)
    threat = NORMS["l2"](2.0)
    once, often = (Ray(restarts=n)(model, x, y, threat=threat) for n in (1, 8))
    assert (once.success <= often.success).all()
    assert often.success.sum() >= once.success.sum()
    assert (often.forwards[~often.success] == 1 + 8 * 21).all()
    assert (often.backwards[~often.success] == 8).all()
    small = Ray(probes=3, restarts=4)(model, x, y, threat=NORMS["l2"](1e-4))
    assert (small.forwards[~small.success] == 1 + 4 * 4).all()


def test_it_stops_at_the_tolerance():
    model = random_linear(6, 2)
    x = uniform(10, 6, dtype=torch.float64)
    y = model(x).argmax(1)
    rough, fine = (Ray(tolerance=t)(model, x, y, threat=NORMS["l2"]("inf", box=None)) for t in (0.1, 0.0))
    assert (rough.forwards < fine.forwards).all()
    assert (fine.forwards == 1 + 1 + 1 + 20 + 1).float().mean() > 0.5
    assert (rough.distance <= 1.1 * fine.distance * (1 + 1e-6)).all()


@pytest.mark.parametrize("settings", [{"probes": 0}, {"restarts": 0}, {"bisections": -1}, {"tolerance": -1e-3}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="ray: "):
        Ray(**settings)
