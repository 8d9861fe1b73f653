"""What methods of certified training share: live graphs, statistics of the batch, and what is refused."""

import copy
import gc
import json
import math
import weakref

import pytest
import torch
from torch import nn

from helpers.intervals import two_hidden
from helpers.zoo import random_linear, seeded, uniform
from holdfast import Linf, ModelError, SettingError
from holdfast.data import from_tensors
from holdfast.train import CROWNIBP, IBP, MTLIBP, SABR, Evaluation, Method, Recipe, Standard, Step, bounds, fit, loop

METHODS = {"ibp": IBP, "crown-ibp": CROWNIBP, "sabr": SABR, "mtl-ibp": MTLIBP}
EPS = 0.1
X, Y = uniform(6, 6), torch.arange(6) % 4
STEP = Step(0, 0, torch.arange(6))


def normalised() -> nn.Sequential:
    """Batch normalisation in training mode with affine weights and running statistics that are far off."""
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)))
    net[1].weight.data.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(0))
    net[1].running_mean += 3
    return net.train()


def loss(method: Method, net: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    return method.loss(net, x, (x + 0.05).clamp_max(1), Y, STEP)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_network_is_traced_once_and_followed_from_step_to_step(name, monkeypatch):
    net, method, traced = normalised(), METHODS[name](Linf(EPS)), []
    net[3].p = 0.0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    trace = bounds.trace
    monkeypatch.setattr(bounds, "trace", lambda model, x: traced.append(model) or trace(model, x))
    for _ in range(3):
        value = loss(method, net)
        torch.testing.assert_close(value, loss(method, copy.deepcopy(net)))
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
    assert sum(model is net for model in traced) == 1


def test_a_network_that_is_gone_is_forgotten():
    net = two_hidden()
    loss(IBP(Linf(EPS)), net, X.double())
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None


def test_another_shape_is_traced_anew():
    net = nn.Sequential(nn.AdaptiveAvgPool1d(6), nn.Flatten(), two_hidden().float())
    for x in (uniform(6, 1, 12), uniform(6, 1, 24)):
        without = loss(IBP(Linf(0.0), kappa=0.0), net, x)
        torch.testing.assert_close(without, Standard().loss(net, x, x, Y, STEP))


def test_bounds_take_the_statistics_of_the_batch():
    """Without a budget the worst logits are those of the pass in training mode, gradients included."""
    net = normalised()
    net[3].p = 0.0
    method = IBP(Linf(0.0), kappa=0.0)
    expected = Standard().loss(net, X, X, Y, STEP)
    found = method.loss(net, X, X, Y, STEP)
    torch.testing.assert_close(found, expected)
    parameters = list(net.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_frozen_normalisation_keeps_its_running_statistics():
    net = normalised().eval()
    expected = Standard().loss(net, X, X, Y, STEP)
    torch.testing.assert_close(IBP(Linf(0.0), kappa=0.0).loss(net, X, X, Y, STEP), expected)


@pytest.mark.parametrize("name", list(METHODS))
def test_running_statistics_are_updated_once(name):
    net = normalised()
    expected = 0.9 * net[1].running_mean + 0.1 * net[0](X if "mtl" not in name else (X + 0.05).clamp_max(1)).mean(0)
    loss(METHODS[name](Linf(EPS)), net)
    assert net[1].num_batches_tracked == 1
    # The centres of small boxes lie between the two.
    torch.testing.assert_close(net[1].running_mean, expected, rtol=0, atol=0.1 if name == "sabr" else 1e-6)


def test_dropout_is_left_out_of_bounds():
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)).train()
    method = IBP(Linf(EPS), kappa=0.0)
    assert loss(method, net) == loss(method, net)
    torch.testing.assert_close(loss(IBP(Linf(0.0), kappa=0.0), net), Standard().loss(net.eval(), X, X, Y, STEP))


@pytest.mark.parametrize("name", list(METHODS))
def test_bounds_are_in_float32_whatever_the_precision_of_training(name):
    net = two_hidden().float()
    exact = loss(METHODS[name](Linf(EPS)), net)
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss(METHODS[name](Linf(EPS)), net)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)
    if name == "sabr":  # which has no other part when the whole budget is in force
        assert rough == exact


def test_a_normalisation_that_is_used_twice_is_refused():
    norm = nn.BatchNorm1d(6)
    net = nn.Sequential(norm, nn.ReLU(), norm, nn.Linear(6, 4)).train()
    with pytest.raises(ModelError, match=r"the batch normalisation '0' is used twice in a pass: .*") as raised:
        loss(IBP(Linf(EPS)), net)
    assert "\n" not in str(raised.value)
    assert not norm._forward_pre_hooks


def test_a_normalisation_without_running_statistics_is_refused():
    net = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 4)).train()
    with pytest.raises(ModelError, match=r"statistics of the batch|cannot be captured"):
        loss(IBP(Linf(EPS)), net)


def test_a_network_without_bounds_is_refused():
    class Tangent(nn.Module):
        def forward(self, x):
            return x.tan()

    with pytest.raises(ModelError, match="no bound is known for node 'tan'"):
        loss(IBP(Linf(EPS)), nn.Sequential(Tangent(), nn.Linear(6, 4)))


@pytest.mark.parametrize("name", list(METHODS))
def test_a_threat_that_is_no_ball_is_refused(name):
    class Rotation:
        name = "rotation:30"

    with pytest.raises(SettingError, match=f"{name}: bounds are known of norm balls, not of rotation:30"):
        METHODS[name](Rotation())


def test_bounds_that_overflow_make_no_error_of_their_own():
    """The loop names the step at which a loss is no number."""
    for scale in (1e30, math.nan):
        net = two_hidden().float()
        with torch.no_grad():
            net[1].weight *= scale
            net[3].weight *= scale
        assert not loss(IBP(Linf(EPS)), net).isfinite()


@pytest.mark.parametrize("eps", [0.05, torch.tensor([0.0, 0.02, 0.05, 0.1, 0.2, 0.4])])
def test_certified_accuracy_of_a_linear_model_is_its_robust_accuracy(eps):
    net = random_linear(6, 4)
    x = uniform(6, 6, dtype=torch.float64, seed=5)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    weight, logits = net[1].weight, net(x)
    own = torch.arange(6)
    reach = torch.as_tensor(eps).expand(6).unsqueeze(1) * (weight.unsqueeze(0) - weight[y].unsqueeze(1)).abs().sum(2)
    robust = (logits - logits[own, y].unsqueeze(1) + reach < 0).sum(1) == 3
    assert 0 < robust.sum() < 6
    assert bounds.certified_accuracy(net, Linf(eps, None), x, y) == robust.sum() / 6


def test_a_run_ends_in_the_state_of_which_most_is_proved(monkeypatch):
    found = iter([0.2, 0.9, 0.4])
    monkeypatch.setattr(loop, "certified_accuracy", lambda *arguments: next(found))
    data = from_tensors(uniform(64, 6), torch.arange(64) % 4)
    result = fit(two_hidden().float(), data, IBP(Linf(EPS)), Linf(EPS), Recipe(epochs=3, batch_size=16))
    assert [epoch.evaluation.certified for epoch in result.epochs] == [0.2, 0.9, 0.4]
    assert result.best.number == 2


def test_what_is_proved_goes_through_json():
    for certified in (0.5, math.nan):
        evaluation = Evaluation(0.9, 0.8, 0.7, 0.6, (1.0, math.nan), certified)
        plain = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
        assert repr(Evaluation.from_dict(plain)) == repr(evaluation)
