"""Certification of batches: closed forms, what rounding may not decide, and faults that stay with their example."""

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn

from helpers.zoo import convnet, linear, mlp, random_linear, uniform
from holdfast import L1, L2, DataError, Linf, ModelError, SettingError
from holdfast.certify import certify
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.margins import Margins, crown_margins, interval_margins
from holdfast.certify.bounds.region import Region
from holdfast.certify.certificate import LOOSE
from holdfast.certify.certifier import BOUNDS, proven


def worst(model: nn.Module, x: torch.Tensor, y: torch.Tensor, threat) -> torch.Tensor:
    """The worst margin of a linear model in closed form."""
    weight, margins = model[1].weight, []
    for k in range(len(weight)):
        z = threat.maximize((weight[k] - weight[y]).view_as(x), x)
        logits = model(x + z)
        margins.append(torch.where(y == k, torch.inf, logits.gather(1, y[:, None])[:, 0] - logits[:, k]))
    return torch.stack(margins).amin(0)


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.3), L1(0.2, box=None)], ids=str)
def test_a_linear_model_is_decided_by_the_closed_form(method, threat):
    model = random_linear(8, 3)
    x = uniform(50, 8, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    truth = worst(model, x, y, threat)
    assert 5 < int((truth > 0).sum()) < 45
    for certificate, margin in zip(certify(model, x, y, threat, method=method), truth.tolist(), strict=True):
        assert (certificate.verdict == "certified") == (margin > 0)
        assert certificate.bound == pytest.approx(margin, abs=1e-9)
        assert certificate.note == ("" if margin > 0 else LOOSE)


def test_intervals_merge_the_margin_with_the_last_layers():
    model = mlp()
    x, y = uniform(20, 6), model(uniform(20, 6)).argmax(1)
    graph, region = capture(model, x), Region.around(Linf(0.02), x)
    merged = interval_margins(graph, region, y).lower
    low, high = interval_bounds(graph, region)[-1]
    rivals = high.masked_fill(torch.eye(4, dtype=torch.bool)[y], -torch.inf).amax(1)
    apart = low.gather(1, y[:, None])[:, 0] - rivals
    assert bool((merged >= apart - 1e-6).all())
    assert bool((merged > apart + 1e-3).any())


@pytest.mark.parametrize("margins", [interval_margins, crown_margins])
def test_bounds_hold_at_corners_and_samples(margins):
    model = convnet()
    x = uniform(6, 3, 6, 6)
    y = model(x).argmax(1)
    threat = Linf(0.05)
    lower = margins(capture(model, x), Region.around(threat, x), y).lower
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        z = 0.05 * torch.empty_like(x).uniform_(-1, 1, generator=generator).sign()
        logits = model((x + z).clamp(0, 1))
        rivals = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        assert bool((logits.gather(1, y[:, None])[:, 0] - rivals >= lower - 1e-5).all())


def test_a_misclassified_example_is_broken_by_itself():
    model = random_linear(8, 3)
    x = uniform(4, 8, dtype=torch.float64)
    y = model(x).argmin(1)
    for certificate, example in zip(certify(model, x, y, Linf(0.1), method="ibp"), x, strict=True):
        assert (certificate.verdict, certificate.method) == ("broken", "clean pass")
        assert torch.equal(certificate.x_adv, example)


def stub(answers: dict[torch.dtype, list[float]], scale: float):
    """Bounds that differ between precisions, and a record of what was asked in which."""
    asked = []

    def bounds(graph, region, y):
        asked.append((region.lower.dtype, y.tolist()))
        lower = torch.tensor(answers[region.lower.dtype], dtype=region.lower.dtype)[y]
        return Margins(lower, torch.full_like(lower, scale))

    return bounds, asked


def test_rounding_proves_nothing():
    model = mlp()
    x = uniform(4, 6)
    graph, region = capture(model, x), Region.around(Linf(0.1), x)
    # Proved; lost to rounding, positive in truth; negative in truth; too far from zero to ask again.
    bounds, asked = stub(
        {torch.float32: [1.0, -0.001, -0.002, -0.1], torch.float64: [1.0, 0.0005, -0.0005, -1.0]}, 0.01
    )
    lower = proven(bounds, graph, region, torch.arange(4))
    assert lower.tolist() == pytest.approx([1.0, 0.0005, -0.0005, -0.1])
    assert asked == [(torch.float32, [0, 1, 2, 3]), (torch.float64, [1, 2])]


def test_a_network_that_float32_cannot_sum_is_not_certified_wrongly():
    """A planted constant of 1e9 swallows the input in float32, whose forward passes see a margin that is not there."""

    class Planted(nn.Module):
        def forward(self, x):
            swallowed = (
                torch.relu(x.sum(1, keepdim=True) * 40 + 1e9) - 1e9
            )  # 40 x in truth, a multiple of 64 in float32
            return torch.cat([swallowed * 0 + 10, swallowed], 1)

    model = Planted()
    x = torch.full((1, 1), 0.1)
    y = torch.tensor([0])
    assert model(torch.full((1, 1), 0.6)).argmax(1) == 0  # 24 is rounded to 0
    (certificate,) = certify(model, x, y, Linf(0.5), method="crown")
    assert certificate.verdict == "undecided"


def faulty(spoilt: torch.Tensor, error: Exception):
    """CROWN that fails on any batch with one certain example in it."""

    def bounds(graph, region, y, memory):
        if bool((region.center == spoilt).flatten(1).all(1).any()):
            raise error
        return crown_margins(graph, region, y)

    return bounds


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (ModelError("node div: 0 in its divisor"), "node div: 0 in its divisor"),
        (torch.OutOfMemoryError("CUDA"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
    ],
)
def test_a_fault_stays_with_its_example(monkeypatch, error, note):
    model = mlp()
    x = uniform(13, 6)
    y = model(x).argmax(1)
    monkeypatch.setitem(BOUNDS, "ibp", lambda graph, region, y, **_: Margins(*[-torch.ones(len(y))] * 2))
    honest = certify(model, x, y, Linf(0.001), method="crown")
    monkeypatch.setitem(BOUNDS, "crown", faulty(x[5], error))
    found = certify(model, x, y, Linf(0.001), method="crown")
    assert [c.verdict for c in found] == ["undecided" if i == 5 else "certified" for i in range(13)]
    assert found[5].note == note
    assert all(a.bound == pytest.approx(b.bound, abs=1e-5) for a, b in zip(found, honest, strict=True) if a.note == "")


def test_other_errors_are_not_swallowed(monkeypatch):
    monkeypatch.setitem(BOUNDS, "ibp", faulty(uniform(1, 6)[0], RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        certify(mlp(), uniform(1, 6), mlp()(uniform(1, 6)).argmax(1), Linf(0.1), method="ibp")


def test_bounds_that_are_no_numbers_prove_nothing(monkeypatch):
    for value in (torch.nan, torch.inf):
        monkeypatch.setitem(BOUNDS, "ibp", lambda g, r, y, v=value, **_: Margins(*[torch.full((len(y),), v)] * 2))
        x = uniform(1, 6)
        (certificate,) = certify(mlp(), x, mlp()(x).argmax(1), Linf(0.1), method="ibp")
        assert certificate.verdict == "undecided"
        assert certificate.bound in (None, 0.0)


def test_the_better_of_two_bounds_is_kept():
    model, x = convnet(), uniform(5, 3, 6, 6)
    y = model(x).argmax(1)
    ibp, crown = (certify(model, x, y, Linf(0.1), method=method) for method in ("ibp", "crown"))
    assert all(a.bound <= b.bound for a, b in zip(ibp, crown, strict=True))


def test_budgets_one_an_example():
    model = random_linear(8, 3)
    x = uniform(6, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    budgets = torch.linspace(0, 0.2, 6)
    together = certify(model, x, y, Linf(budgets), method="crown", batch_size=4)
    for i, certificate in enumerate(together):
        (alone,) = certify(model, x[i : i + 1], y[i : i + 1], Linf(float(budgets[i])), method="crown")
        assert certificate.verdict == alone.verdict
        assert certificate.bound == pytest.approx(alone.bound, abs=1e-7)


def test_the_model_is_given_back_as_it_was():
    model = convnet().train()
    x = uniform(2, 3, 6, 6)
    certify(model, x, torch.zeros(2, dtype=torch.int64), Linf(0.1), method="crown")
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_is_bounded_in_float32():
    model = linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2)).bfloat16()
    x = torch.tensor([[0.75, 0.25]])
    # The network computes in bfloat16, which rounds its inputs and its sums to a 256th of their sizes.
    for eps, verdict in ((0.2, "certified"), (0.24, "undecided"), (0.3, "undecided")):
        (certificate,) = certify(model, x, torch.tensor([0]), Linf(eps), method="crown")
        assert certificate.verdict == verdict
        assert 0.5 - 2 * eps - 0.06 < certificate.bound < 0.5 - 2 * eps


class Sorting(nn.Module):
    def forward(self, x):
        return x.sort(1).values


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "magic"}, SettingError, "unknown method 'magic'"),
        ({"model": Sorting()}, ModelError, "sort"),
        ({"y": torch.tensor([0, 1, 7])}, DataError, "example 2 has label 7"),
        ({"y": torch.zeros(2)}, DataError, "3 class numbers"),
        ({"x": uniform(3, 6) + 1}, DataError, "outside the box"),
        ({"threat": Linf(torch.ones(2))}, DataError, "has no budget"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(change, error, message):
    model = change.get("model", mlp())
    x = change.get("x", uniform(3, 6))
    y = change.get("y", model(x).argmax(1))
    with pytest.raises(error, match=message) as caught:
        certify(model, x, y, change.get("threat", Linf(0.01)), method=change.get("method", "crown"))
    assert "\n" not in str(caught.value)


def on_a_grid(model: nn.Module, x: torch.Tensor, y: int, eps: float, side: int = 201) -> tuple[float, bool]:
    """The least margin over a fine grid of an L-infinity ball in two dimensions, and whether any of it is negative."""
    ticks = torch.linspace(-eps, eps, side, dtype=x.dtype)
    points = (x + torch.cartesian_prod(ticks, ticks)).clamp(0, 1)
    logits = model(points)
    least = (logits[:, y] - logits.scatter(1, torch.full((len(points), 1), y), -torch.inf).amax(1)).min().item()
    return least, least <= 0


def test_branch_and_bound_decides_what_a_grid_decides():
    seen = {"certified": 0, "broken": 0}
    threat = Linf(0.15)
    for seed in range(6):
        model = mlp(2, 3, 12, seed)
        x = uniform(12, 2, seed=seed + 50)
        y = model(x).argmax(1)
        alpha = certify(model, x, y, threat)
        for i, certificate in enumerate(certify(model, x, y, threat, method="complete")):
            least, broken = on_a_grid(model, x[i], int(y[i]), 0.15)
            assert certificate.verdict != "undecided"
            seen[certificate.verdict] += 1
            if certificate.verdict == "certified":
                assert not broken
                assert certificate.bound <= least + 1e-6
            else:
                x_adv = certificate.x_adv[None]
                assert model(x_adv).argmax(1) != y[i]
                assert bool(threat.admits(x_adv, x[i : i + 1]))
            assert alpha[i].bound is None or alpha[i].bound <= least + 1e-6
            assert alpha[i].verdict in ("undecided", certificate.verdict)
    assert min(seen.values()) > 5


def test_without_time_nothing_is_decided_by_splitting():
    model = mlp(6, 4, 64)
    x = uniform(40, 6)
    y = model(x).argmax(1)
    for certificate in certify(model, x, y, Linf(0.12), method="complete", seconds=1e-9):
        assert certificate.method != "branch and bound" or certificate.verdict == "undecided"
        if certificate.verdict == "undecided":
            assert certificate.note == "timeout"
            assert certificate.bound is not None


def test_alpha_crown_is_no_looser_than_crown():
    model, x = mlp(6, 4, 32), uniform(30, 6)
    y = model(x).argmax(1)
    crown, alpha = (certify(model, x, y, Linf(0.3), method=method) for method in ("crown", "alpha-crown"))
    gains = [b.bound - a.bound for a, b in zip(crown, alpha, strict=True) if b.bound is not None]
    assert min(gains) >= 0
    assert max(gains) > 1e-3


@pytest.mark.parametrize("method", ["alpha-crown", "complete"])
def test_networks_without_a_relu_are_bounded_and_left_open(method):
    model = nn.Sequential(mlp()[:2], nn.Tanh(), mlp()[3])
    x = uniform(40, 6)
    y = model(x).argmax(1)
    crown = certify(model, x, y, Linf(0.05), method="crown")
    found = certify(model, x, y, Linf(0.05), method=method, seconds=1.0)
    assert {c.verdict for c in crown} == {"certified", "undecided"}
    for mine, theirs in zip(found, crown, strict=True):
        assert mine.verdict in (theirs.verdict, "broken")
        if mine.verdict == "undecided":
            assert (mine.bound, mine.note) == (pytest.approx(theirs.bound, abs=1e-6), LOOSE)


def test_memory_bounds_what_is_bounded_together(monkeypatch):
    """The coefficients of one layer take no more bytes than allowed, and certificates stay the same."""
    model, x = mlp(), uniform(9, 6)
    y = model(x).argmax(1)
    module, held = importlib.import_module("holdfast.certify.bounds.crown"), []  # the name is also that of a function
    honest = module.lower_lines

    def counting(graph, start, rows, planes, errors, *_, until=0):
        def watch(number, rows):
            held.append(4 * rows.values.numel())

        return honest(graph, start, rows, planes, errors, watch, until)

    for name in ("crown", "margins"):
        monkeypatch.setattr(importlib.import_module(f"holdfast.certify.bounds.{name}"), "lower_lines", counting)
    found = []
    for memory in (1 << 29, 4 * 2 * 3 * 16):  # the second: two examples, three rivals, sixteen neurons
        held.clear()
        found.append(certify(model, x, y, Linf(0.2), method="complete", memory=memory))
        assert max(held) <= memory
    assert len(held) > 0
    assert [c.verdict for c in found[1]] == [c.verdict for c in found[0]]
    assert {c.method for c in found[0]} >= {"crown", "branch and bound"}
    with pytest.raises(SettingError, match="memory"):
        certify(model, x, y, Linf(0.2), memory=0)


def test_importing_it_does_not_import_the_slow_parts_of_scipy():
    parts = {f"scipy.{name}" for name in ("optimize", "sparse", "special", "stats")}
    code = f"import sys, holdfast.certify; assert not {parts} & set(sys.modules), 'pulled in'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_examples_have_no_certificates():
    assert certify(nn.Linear(3, 2), torch.rand(0, 3), torch.zeros(0, dtype=torch.int64), Linf(0.1)) == []
