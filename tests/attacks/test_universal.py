import json
import math

import pytest
import torch
from torch.nn import functional

from helpers.attacks import EPS, NORMS, lengths, predict, snapshot
from helpers.zoo import Counting, Moody, convnet, linear, mlp, uniform
from holdfast.attacks.universal import universal_perturbation
from holdfast.data import load_data
from holdfast.draws import Draws
from holdfast.errors import DataError, ModelError, SettingError
from holdfast.threats import Linf

FAR = {"linf": 0.2, "l2": 1.0, "l1": 4.0, "l0": 4.0}


def binary(features=10):
    """A linear model with two classes that mirror each other, and its weights."""
    weight = 2 * uniform(1, features, seed=5, dtype=torch.float64) - 1
    bias = -weight.sum(1) / 2
    return linear(torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2), weight[0], bias[0]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_on_one_class_of_a_linear_model_it_is_the_dual_vector(norm, side):
    """Nothing can do more than move every logit by the budget times the dual norm, and one perturbation can."""
    model, w, b = binary()
    x = uniform(300, 10, seed=6, dtype=torch.float64)
    f = x @ w + b
    x, f = x[(f > 0) == bool(side)], f[(f > 0) == bool(side)]
    y = torch.full((len(x),), side)
    eps = {"linf": 0.1, "l2": 0.3, "l1": 0.6}[norm]
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
    threat = NORMS[norm](eps, None)
    result = universal_perturbation(model, (x, y), threat, objective="margin", ceiling=math.inf, batch_size=32)
    sign = -1 if side else 1
    assert float(result.z @ w) == pytest.approx(sign * eps * float(dual), rel=1e-5)
    broken = float((f.abs() < eps * dual).double().mean())
    assert 0.1 < broken < 0.9
    assert result.clean_accuracy == 1
    assert result.robust_accuracy == pytest.approx(1 - broken, abs=1.5 / len(x))
    assert result.fooling_rate == pytest.approx(broken, abs=1.5 / len(x))
    assert result.distance == pytest.approx(eps, rel=1e-6)


def test_the_ceiling_turns_it_to_the_class_that_can_be_had():
    """Of class 1 all are lost already and could be lost by more; of class 0 all can be had, by going the other way."""
    model, w, b = binary()
    x = uniform(4000, 10, seed=6, dtype=torch.float64)
    f, reach = x @ w + b, float(0.1 * w.abs().sum())
    lost, near = x[f < -1.2 * reach], x[(f < 0) & (f > -0.8 * reach)]
    count = len(lost) * 2 // 3
    assert len(near) > count > 50
    x = torch.cat([lost, near[:count]])
    y = torch.cat([torch.ones(len(lost), dtype=torch.int64), torch.zeros(count, dtype=torch.int64)])
    options = {"objective": "margin", "batch_size": 5000, "epochs": 20}
    plain = universal_perturbation(model, (x, y), Linf(0.1, None), ceiling=math.inf, **options)
    capped = universal_perturbation(model, (x, y), Linf(0.1, None), ceiling=0.05, **options)
    assert plain.robust_accuracy == plain.clean_accuracy == count / len(x)
    assert float(plain.z @ w) <= 0
    assert capped.robust_accuracy == 0
    assert capped.fooling_rate == count / len(x)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_what_it_says(norm):
    model = convnet()
    x = uniform(150, 3, 6, 6, seed=1)
    y = predict(model, x)
    y[::10] = (y[::10] + 1) % 5
    threat = NORMS[norm](FAR[norm])
    result = universal_perturbation(model, (x, y), threat, batch_size=50)
    assert result.z.shape == (3, 6, 6)
    assert lengths(norm, result.z[None]) <= FAR[norm] * (1 + 1e-6)
    assert result.distance == pytest.approx(float(lengths(norm, result.z[None])), rel=1e-5)
    moved = (x + result.z).clip(0, 1)
    assert torch.equal(threat.apply(x, result.z), moved)
    assert threat.admits(moved, x).all()
    assert result.examples == 150
    assert result.clean_accuracy == pytest.approx(float((predict(model, x) == y).double().mean())) == 0.9
    assert result.robust_accuracy == pytest.approx(float((predict(model, moved) == y).double().mean()))
    assert result.fooling_rate == pytest.approx(float((predict(model, moved) != predict(model, x)).double().mean()))
    # It does a good deal more than random ones of the same size, but in L0, where these are at the corners as well.
    sphere = NORMS[norm](FAR[norm], (-1, 1))
    for seed in range(5):
        noise = sphere.sample_boundary(torch.zeros(1, 3, 6, 6), Draws(seed, torch.tensor([0])))
        random = float((predict(model, (x + noise).clip(0, 1)) == y).double().mean())
        assert result.robust_accuracy < random - (0.0 if norm == "l0" else 0.1)
    numbers = json.loads(json.dumps(result.to_dict()))
    assert set(numbers) == {"distance", "examples", "clean_accuracy", "robust_accuracy", "fooling_rate"}


def test_more_budget_does_more_and_none_does_nothing():
    model = convnet()
    x = uniform(100, 3, 6, 6, seed=1)
    y = predict(model, x)
    results = [universal_perturbation(model, (x, y), Linf(eps), epochs=5) for eps in (0.0, 0.05, 0.15, 0.4)]
    assert [r.robust_accuracy for r in results] == sorted((r.robust_accuracy for r in results), reverse=True)
    assert results[0].robust_accuracy == results[0].clean_accuracy == 1
    assert results[0].fooling_rate == 0
    assert not results[0].z.any()
    assert results[-1].robust_accuracy < 0.4


def test_the_gradient_knows_of_the_box():
    """At pixels that the box pins only the examples with room count, though the others pull harder."""
    weight = torch.tensor([[5.0, 0.1], [-5.0, -0.1]], dtype=torch.float64)
    model = linear(weight, torch.zeros(2, dtype=torch.float64))
    x = torch.tensor([[0.0, 0.5], [0.0, 0.5], [0.0, 0.5]], dtype=torch.float64)
    result = universal_perturbation(
        model, (x, torch.zeros(3, dtype=torch.int64)), NORMS["l1"](0.5), objective="margin", epochs=10
    )
    # The first coordinate has the larger gradient, and going down it would change nothing.
    assert float(result.z[1]) < -0.3


def test_data_may_be_a_source_and_passes_are_counted():
    model = Counting(mlp(64, 10))
    source = load_data("digits", examples="0:70")
    result = universal_perturbation(model, source, Linf(0.2), epochs=3, batch_size=1)
    assert (model.forwards, model.backwards) == (7 * 70, 3 * 70)
    batch = next(source.batches(70))
    again = universal_perturbation(mlp(64, 10), (batch.x, batch.y), Linf(0.2), epochs=3, batch_size=1)
    assert torch.equal(again.z, result.z)
    assert again.to_dict() == result.to_dict()


def test_it_is_the_loop_of_the_paper():
    model = convnet().double()
    x = uniform(20, 3, 6, 6, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    eps, epochs = 0.1, 3
    result = universal_perturbation(model, (x, y), Linf(eps), epochs=epochs, ceiling=2.0, batch_size=8)
    z, seen, step = torch.zeros(3, 6, 6, dtype=torch.float64), [], 0
    x = x.float().double()  # data are held in float32
    for _ in range(epochs):
        for part in (slice(0, 8), slice(8, 16), slice(16, 20)):
            delta = z.clone().requires_grad_(True)
            loss = functional.cross_entropy(model((x[part] + delta).clip(0, 1)), y[part], reduction="none")
            (grad,) = torch.autograd.grad(loss.clip(max=2.0).mean(), delta)
            z = (z + eps / 4 * (1 - step / 9) * grad.sign()).clip(-eps, eps)
            step += 1
        seen.append((int((model((x + z).clip(0, 1)).argmax(1) == y).sum()), z))
    least = min(right for right, _ in seen)
    expected = next(z for right, z in reversed(seen) if right == least)
    torch.testing.assert_close(result.z, expected, rtol=0, atol=1e-12)
    assert result.robust_accuracy == least / 20


def test_the_model_is_given_back():
    model = Moody()
    before = snapshot(model)
    universal_perturbation(model, (uniform(9, 6), torch.tensor([0, 1, 2] * 3)), Linf(0.1), epochs=2)
    assert snapshot(model) == before
    model = Moody(fail_at=3)
    before = snapshot(model)
    with pytest.raises(ModelError):
        universal_perturbation(model, (uniform(9, 6), torch.tensor([0, 1, 2] * 3)), Linf(0.1), epochs=2)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("options", "threat", "says"),
    [
        ({"epochs": 0}, Linf(0.1), "epochs: a whole number of at least 1"),
        ({"step_size": 0.0}, Linf(0.1), "step_size: a positive, finite number"),
        ({}, Linf("inf"), "one finite budget"),
        ({}, Linf(torch.tensor([0.1, 0.2])), "one finite budget"),
        ({"objective": "nll"}, Linf(0.1), "unknown objective"),
    ],
)
def test_settings_that_make_no_sense(options, threat, says):
    with pytest.raises(SettingError, match=says):
        universal_perturbation(mlp(), (uniform(2, 6), torch.tensor([0, 1])), threat, **options)


def test_data_that_do_not_fit():
    with pytest.raises(DataError, match="outside the box"):
        universal_perturbation(mlp(), (2 * uniform(9, 6), torch.zeros(9, dtype=torch.int64)), Linf(EPS["linf"]))
    with pytest.raises(DataError, match="labels must be classes of the model, 0 to 3"):
        universal_perturbation(mlp(), (uniform(2, 6), torch.tensor([0, 4])), Linf(0.1))
