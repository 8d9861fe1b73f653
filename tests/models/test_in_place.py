"""Models that work in place on their input: whatever is asked of them, they are what their twins on a copy are."""

import pytest
import torch
from torch import nn

import holdfast
from helpers.zoo import Standardised, Wavy, mlp, uniform
from holdfast import APGD, BPDA, FGSM, PGD, Linf
from holdfast.attacks import FAB, Square
from holdfast.certify import Smoothed, certify, exact_distance, output_bounds, parse_vnnlib, verify
from holdfast.geometry import curvature
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin
from holdfast.train import train

X = uniform(24, 6, seed=1)
Y = Standardised(mlp(), in_place=False)(X).argmax(1)
THREAT = Linf(0.05)


def assert_twins(ask, net=mlp):
    """The model that works in place and its twin answer the same, and what they were given is as it was."""
    before = X.clone()
    found, expected = (ask(Standardised(net(), in_place=in_place)) for in_place in (True, False))
    assert torch.equal(X, before)
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


@pytest.mark.parametrize("mean", [None, (0.1,)])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_every_kind_of_query(batch_size, mean):
    def ask(model):
        with Query(model, batch_size=batch_size, mean=mean) as query:
            x, y = X[:batch_size], Y[:batch_size]
            answer = query.gradient(x, lambda logits: margin(logits, y))
            return (
                *(query.bare_logits(X), query.logits(x), *query.jacobian(x)),
                *(answer.logits, answer.values, answer.grad),
            )

    assert_twins(ask)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=5), APGD(steps=5), FAB(steps=5), Square(queries=20)], ids=lambda a: a.name
)
def test_attacks(attack, samples):
    def ask(model):
        found = attack(model, X, Y, threat=THREAT, samples=samples)
        assert 0 < found.success.sum() < len(X)
        return found.x_adv, found.success

    assert_twins(ask)


def test_parts_without_gradients_and_their_substitutes():
    def ask(model):
        part = BPDA(lambda x: x.mul_(32).round_().div_(32), lambda x: x.mul_(0.9))
        found = PGD(steps=5)(nn.Sequential(part, model), X, Y, threat=THREAT)
        return found.x_adv, found.success

    assert_twins(ask)


def test_certificates():
    def ask(model):
        proofs = certify(model, X, Y, THREAT, method="complete")
        assert {proof.verdict for proof in proofs} == {"certified", "broken"}
        return [(proof.verdict, proof.bound, proof.method) for proof in proofs]

    assert_twins(ask)


def test_bounds_and_distances():
    assert_twins(lambda model: list(vars(output_bounds(model, X, THREAT)).values()))
    assert_twins(lambda model: [(d.status, d.upper) for d in exact_distance(model, X[:3], Y[:3], Linf(0.3))])


def test_a_property():
    def ask(model):
        declared = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(6))
        declared += "".join(f"(declare-const Y_{i} Real)" for i in range(4))
        verdicts = []
        for limit in (-50, 0):
            found = verify(model, parse_vnnlib(f"{declared}(assert (<= Y_0 {limit}))"), seconds=10)
            verdicts.append(found.word)
        return verdicts

    assert_twins(ask)


def test_smoothing():
    assert_twins(lambda model: list(Smoothed(model, 0.1).certify(X, Y, samples=200).radius))


def test_an_audit_that_proves():
    def ask(model):
        found = holdfast.audit(model, (X, Y), THREAT, protocol="quick", certify="crown")
        return [found.bracket, found.verdicts, found.certification.methods, found.stages]

    assert_twins(ask)


def test_curvature():
    assert_twins(lambda model: curvature(model, X.double(), Y, THREAT), lambda: Wavy(6))


@pytest.mark.parametrize("method", ["pgd", "free", "gradalign", "gradient-penalty", "trades", "awp:pgd", "ibp", "sabr"])
def test_training(method):
    x = uniform(96, 6, seed=2)
    data = x, (x[:, 0] > 0.5).long() + (x[:, 1] > 0.5)

    def ask(model):
        settings = {"epochs": 1, "batch_size": 32, "validation": 10}
        found = train(model, data, THREAT, method=method, settings=settings)
        return [*found.losses, *(parameter.detach() for parameter in found.model.parameters())]

    assert_twins(ask, lambda: mlp(classes=3))


class Twice(nn.Module):
    """Two changes in place of one tensor, after which autograd finds what the first needs overwritten."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.in_place = nn.Linear(6, 2), nn.Linear(2, 3), in_place

    def forward(self, x):
        h = self.first(x)
        if self.in_place:
            h[:, 0].relu_()
            h[:, 1].relu_()
        return self.last(h if self.in_place else h.relu())


def test_gradients_of_what_is_overwritten():
    def ask(in_place):
        model = Twice(in_place)
        y = model(X.clone()).argmax(1)
        with Query(model) as query:
            answer = query.gradient(X, lambda logits: margin(logits, y))
            found = [answer.logits, answer.values, answer.grad, *query.jacobian(X)]
        return [*found, PGD(steps=5)(model, X, y, threat=Linf(0.3)).x_adv]

    for mine, theirs in zip(ask(True), ask(False), strict=True):
        torch.testing.assert_close(mine, theirs)
