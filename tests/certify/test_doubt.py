"""The check of the prover: lies are caught and told, honest proofs and rounding are not blamed."""

import importlib
import math
import pickle

import pytest
import torch
from torch import nn

import holdfast
from helpers.networks import ordinary_digits
from helpers.zoo import Standardised, mlp, no_gradient, random_linear, uniform
from holdfast import L0, L1, L2, HoldfastError, Linf, ProofError, SettingError
from holdfast.certify import Certificate, certify
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.margins import Margins
from holdfast.certify.bounds.rounding import REAL
from holdfast.certify.certifier import BOUNDS
from holdfast.certify.doubt import CHECK, Doubt, chosen
from holdfast.data import Batch
from holdfast.models.query import Query

NET = Standardised(mlp(), in_place=False)
X = uniform(40, 6, seed=1)
Y = NET(X).argmax(1)
SETS = {"linf": Linf(0.2), "l2": L2(0.5), "l1": L1(1.0), "l0": L0(2), "each": Linf(torch.linspace(0.15, 0.3, 40))}
PROVED = Certificate("certified", "crown", 1.0, None, 0.0)


@pytest.fixture
def liar(monkeypatch):
    """Bounds of CROWN that prove whatever they are asked."""
    honest = BOUNDS["crown"]

    def lie(graph, region, y, memory):
        told = honest(graph, region, y, memory=memory)
        return Margins(torch.full_like(told.lower, 1e6), told.lost)

    monkeypatch.setitem(BOUNDS, "crown", lie)


class Turncoat(nn.Module):
    """Answers otherwise when it is exported: what is proved of it is true of another network."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        logits = self.net(x)
        if torch.compiler.is_exporting():
            return logits
        return logits + 100.0 * (x[:, :4] > 0.99)


def doubt(model, graph, share=1.0, **settings):
    query = Query(model, batch_size=16, **settings)
    return query, Doubt(query, graph, share, 0)


@pytest.mark.parametrize("name", SETS)
def test_a_lying_bound_is_caught_under_every_norm(name, liar):
    with pytest.raises(ProofError, match=r"example \d+: proved robust under \S+ by crown, but misclassified at ") as e:
        certify(NET, X, Y, SETS[name], method="crown")
    message = str(e.value)
    assert "\n" not in message
    assert "distrust the linear bounds (crown), and all proofs of this run" in message
    assert e.value.exit_code == 6
    assert isinstance(e.value, HoldfastError)
    assert str(pickle.loads(pickle.dumps(e.value))) == message


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown", "branch and bound", "a new method"])
def test_what_proved_it_is_named(method):
    query, check = doubt(NET, capture(NET, X))
    claims = dict.fromkeys(range(40), Certificate("certified", method, 1.0, None, 0.0))
    with query, pytest.raises(ProofError, match=rf"by {method}, but .* distrust .*{method}"):
        check.attack(Batch(torch.arange(40), X, Y), claims, Linf(0.3))


@pytest.mark.parametrize(
    ("method", "threat"),
    [
        *(("complete", threat) for threat in SETS.values()),
        *(("crown", threat) for threat in (Linf(0.2), L2(0.4), L1(0.4), SETS["each"])),
        *(("ibp", threat) for threat in (Linf(0.1), L2(0.1), L1(0.1))),
    ],
    ids=str,
)
def test_honest_proofs_stand(method, threat):
    x = uniform(16, 6, seed=5)
    found = certify(mlp(), x, mlp()(x).argmax(1), threat, method=method, seconds=5)
    assert "certified" in {c.verdict for c in found}
    assert CHECK not in {c.method for c in found}


@pytest.mark.parametrize("certified", ["crown", "complete"])
def test_honest_audits_stand(certified):
    for eps in (0.02, 0.06):
        found = holdfast.audit(
            ordinary_digits(), "digits", Linf(eps), examples="0:40", protocol="quick", certify=certified
        )
        assert found.certification.checked == sum(found.certification.methods.values()) > 0


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-7, 1e-3, 0.3])
def test_linear_models_at_the_very_edge(eps):
    """Budgets a hair below the exact distance: proofs by a hair, which nothing strictly inside contradicts."""
    model = random_linear(6, 3)
    x = uniform(60, 6, seed=4, dtype=torch.float64)
    y = model(x).argmax(1)
    weight = model[1].weight
    logits = model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    slopes = (weight[None] - weight[y][:, None]).abs().sum(2)
    distance = (gaps / slopes).nan_to_num(math.inf).masked_fill(gaps == 0, math.inf).amin(1).detach()
    for network, given in ((model, x), (model.float(), x.float())):
        threat = Linf((distance * (1 - 1e-9)).clamp_max(eps) if eps else torch.zeros(60), box=None)
        found = certify(network, given, y, threat, method="crown")
        assert CHECK not in {c.method for c in found}


def test_a_lying_capture_is_named(monkeypatch):
    monkeypatch.setattr(importlib.import_module("holdfast.certify.bounds.agreement"), "check", lambda *_: None)
    model = Turncoat()
    with pytest.raises(ProofError, match="distrust the capture of the model, whose graph has a margin of"):
        certify(model, 0.9 * X, mlp()(X).argmax(1), Linf(0.2), method="crown")


class Rounded(nn.Module):
    """A tie that float32 decides otherwise: in real arithmetic the first logit is ahead by a hair everywhere."""

    def forward(self, x):
        large = x.sum(1, keepdim=True) + 1e4
        ahead = (large + 1e-6) - large
        return torch.cat([ahead, 0 * ahead + 1e-9, 0 * ahead - 1], 1)


def test_what_only_rounding_breaks_is_broken_and_no_contradiction():
    x, y = X[:8], torch.zeros(8, dtype=torch.int64)

    class Guarded(Rounded):
        def forward(self, x):
            # At the examples themselves all is well.
            moved = (x - x.round(decimals=1)).abs().amax(1, keepdim=True) > 1e-3
            return super().forward(x) + 1e-3 * (~moved) * torch.tensor([1.0, 0.0, 0.0])

    x = x.round(decimals=1)
    batch, proved = Batch(torch.arange(8), x, y), dict.fromkeys(range(8), PROVED)
    query, check = doubt(Guarded(), capture(Rounded(), x).within(REAL))
    with query:
        found = check.attack(batch, proved, Linf(0.05))
    assert {(o.verdict, o.stage) for o in found.values()} == {("broken", CHECK)}
    for outcome in found.values():
        assert 0 < outcome.distance <= 0.05
        assert int(Guarded()(outcome.x_adv[None]).argmax()) != 0
    # A proof about the network as executed would have been false.
    query, check = doubt(Guarded(), capture(Rounded(), x))
    with query, pytest.raises(ProofError, match="distrust the bounds of rounding errors"):
        check.attack(batch, proved, Linf(0.05))


def test_a_hair_outside_is_no_contradiction():
    """The tolerance of verdicts, 1e-6, is not one of proofs."""

    class Cliff(nn.Module):
        def forward(self, x):
            over = (x.double() - 0.5).abs().amax(1, keepdim=True) > 0.1
            return torch.cat([2 - 4.0 * over, 0.0 * over], 1).to(x)

    x, y = torch.full((20, 4), 0.5), torch.zeros(20, dtype=torch.int64)
    query, check = doubt(Cliff(), capture(nn.Linear(4, 2), x))
    with query:
        found = check.attack(Batch(torch.arange(20), x, y), dict.fromkeys(range(20), PROVED), Linf(0.1))
    assert {o.verdict for o in found.values()} == {"robust"}
    # Verdicts have a tolerance, and by that an input just outside would have counted.
    beyond = x + 0.1 + 5e-7
    assert Linf(0.1).admits(beyond, x).all()
    assert (Cliff()(beyond).argmax(1) == 1).all()


def test_models_without_gradients_are_looked_at_too():
    model = no_gradient()
    x = uniform(30, 6)
    y = model(x).argmax(1)
    query, check = doubt(model, capture(nn.Linear(6, 3), x))
    with query:
        found = check.attack(Batch(torch.arange(30), x, y), dict.fromkeys(range(30), PROVED), Linf(1e-4))
    assert {o.backwards for o in found.values()} == {0}


def test_the_sample():
    index = torch.arange(20_000)
    some = chosen(3, index, 0.01)
    assert 150 < int(some.sum()) < 250
    order = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chosen(3, index[order], 0.01), some[order])
    assert not torch.equal(chosen(4, index, 0.01), some)
    assert chosen(3, index, 1.0).all()
    assert not chosen(3, index, 0.0).any()
    assert bool((chosen(3, index, 0.02) >= some).all())


def test_only_the_sample_is_attacked_and_only_what_is_proved():
    query, check = doubt(NET, capture(NET, X), share=0.3)
    claims = {i: PROVED if i % 2 else Certificate("undecided", "crown", 0.0, None, 0.0) for i in range(40)}
    with query:
        found = check.attack(Batch(torch.arange(40), X, Y), claims, Linf(1e-4))
        spent = sum(o.forwards for o in found.values()), sum(o.backwards for o in found.values())
        assert (query.forwards, query.backwards) == spent
    assert set(found) == {i for i in range(40) if i % 2 and bool(chosen(0, torch.tensor([i]), 0.3))}


def test_checks_can_be_left_out(liar):
    assert {c.verdict for c in certify(NET, X, Y, Linf(0.3), method="crown", checks=0)} == {"certified"}
    with pytest.raises(SettingError, match=r"checks: a whole number from 0 to \d+ is needed, got -1"):
        certify(NET, X, Y, Linf(0.3), checks=-1)
