"""Binary models with one logit against the closed form of a linear model in a box."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import holdfast
from holdfast import L2, PGD, Linf
from holdfast.certify import Smoothed, certify, exact_distance
from holdfast.certify.output import output_bounds
from holdfast.errors import ModelError, SettingError
from holdfast.models import OneLogit
from holdfast.models.query import Query

EPS = 0.1


class Squeezed(nn.Module):
    """One number an input, whose dimensions of 1 are all gone, the batch's too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).squeeze()


FORMS = {
    "(N, 1)": lambda one: one,
    "(N,)": lambda one: nn.Sequential(one, nn.Flatten(0)),
    "squeezed": Squeezed,
    "wrapped": OneLogit,
}


def linear() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(6, 1)


def labelled(one: nn.Linear) -> tuple[Tensor, Tensor]:
    x = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    return x, (one(x)[:, 0] > 0).long()


def worst_margins(one: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """The least of ``z`` (or ``-z``, for class 0) within EPS and [0, 1], by choosing each coordinate's end."""
    w, b, x = one.weight[0].detach().double(), one.bias.item(), x.double()
    sign = 2.0 * y.double() - 1
    low, high = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    ends = torch.where(sign[:, None] * w > 0, low, high)
    return sign * (ends @ w + b)


@pytest.mark.parametrize("form", FORMS)
def test_attacks_proofs_and_distances_are_those_of_the_closed_form(form):
    one = linear()
    x, y = labelled(one)
    model, worst = FORMS[form](one), worst_margins(one, x, y)
    assert 5 < int((worst < 0).sum()) < 45

    result = holdfast.audit(model, (x, y), Linf(EPS), certify="complete")
    assert result.clean_accuracy == 1
    assert result.bracket == pytest.approx(((worst > 0).double().mean().item(),) * 2, abs=1e-12)

    assert torch.equal(PGD(steps=40)(model, x, y, threat=Linf(EPS)).success, worst < 0)
    for found, margin in zip(certify(model, x, y, Linf(EPS), method="crown"), worst.tolist(), strict=True):
        assert found.bound == pytest.approx(margin, abs=1e-5)
        assert (found.verdict == "certified") == (margin > 0)

    # Without a box the nearest mistake is at |z| / ||w||.
    distance = one(x[:4])[:, 0].abs() / one.weight.norm()
    for found, expected in zip(exact_distance(model, x[:4], y[:4], L2(10.0, box=None)), distance.tolist(), strict=True):
        assert found.lower <= expected * (1 + 1e-4)
        assert found.upper >= expected * (1 - 1e-4)
        assert found.upper - found.lower < 1e-2 * expected


def test_smoothing_counts_votes_of_its_sign():
    one = linear()
    x, _ = labelled(one)
    z = one(x)[:, 0].double()
    sigma = 0.25
    sure = z.abs() / one.weight.norm() > 2 * sigma
    found = Smoothed(one, sigma).predict(x[sure])
    assert torch.equal(found.prediction, (z[sure] > 0).long())


def test_the_other_side():
    one = linear()
    x, y = labelled(one)
    worst = worst_margins(one, x, y)
    upside_down = holdfast.audit(one, (x, y), Linf(EPS))
    assert upside_down.clean_accuracy == 1
    turned = holdfast.audit(holdfast.Model(one, positive=0), (x, 1 - y), Linf(EPS))
    assert turned.robust_accuracy == pytest.approx((worst > 0).double().mean().item(), abs=1e-12)
    assert holdfast.audit(holdfast.Model(one, positive=0), (x, y), Linf(EPS)).clean_accuracy == 0
    verdicts = [found.verdict == "certified" for found in certify(OneLogit(one, 0), x, 1 - y, Linf(EPS))]
    assert verdicts == (worst > 0).tolist()


def test_how_it_was_read_is_said():
    one = linear()
    x, y = labelled(one)
    for positive, said in ((None, "class 1 where it is positive"), (0, "class 0 where it is positive")):
        result = holdfast.audit(holdfast.Model(one, positive=positive), (x, y), Linf(EPS))
        (note,) = [d for d in result.diagnostics if d.name == "one logit"]
        assert said in note.message
    two = nn.Linear(6, 2)
    assert "one logit" not in {d.name for d in holdfast.audit(two, (x, y), Linf(EPS)).diagnostics}


def test_runs_of_the_two_sides_are_told_apart(tmp_path):
    one = linear()
    data = labelled(one)
    holdfast.audit(holdfast.Model(one, positive=1), data, Linf(EPS), run=tmp_path)
    with pytest.raises(holdfast.RunError, match="holds another audit: model was"):
        holdfast.audit(holdfast.Model(one, positive=0), data, Linf(EPS), run=tmp_path)


def test_logits_are_0_and_z_without_rounding():
    z = torch.tensor([[-math.inf], [-1e-45], [0.0], [1e-45], [3.0], [math.inf]])
    identity = nn.Identity()
    for positive in (0, 1):
        logits = OneLogit(identity, positive)(z)
        assert torch.equal(logits[:, positive], z[:, 0])
        assert torch.equal(logits[:, 1 - positive], torch.zeros(6))
    assert OneLogit(identity)(z).argmax(1).tolist() == [0, 0, 0, 1, 1, 1]
    assert OneLogit(identity, 0)(z).argmax(1).tolist() == [1, 1, 0, 0, 0, 0]


def test_cross_entropy_is_binary_cross_entropy():
    z = torch.linspace(-30, 30, 41)[:, None]
    y = torch.arange(41) % 2
    expected = functional.binary_cross_entropy_with_logits(z[:, 0], y.float(), reduction="none")
    found = functional.cross_entropy(OneLogit(nn.Identity())(z), y, reduction="none")
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("method", ["pgd", "ibp"])
def test_training_minimises_binary_cross_entropy_and_keeps_the_network_s_own_weights(method, tmp_path):
    one = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0.5).long()
    settings = {"epochs": 40, "lr": 0.5}
    result = holdfast.train(one, (x, y), "linf:0.02", method=method, settings=settings, run=tmp_path)
    assert result.model is one
    assert holdfast.audit(one, (x, y), "linf:0.02").clean_accuracy > 0.9
    fresh = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    again = holdfast.load_model(fresh, tmp_path / "weights.safetensors")
    assert torch.equal(again(x), one(x))


def test_a_whole_query_agrees_with_the_plain_model():
    one = linear()
    x, _ = labelled(one)
    for size in (1, 4, 64):
        with Query(Squeezed(one), batch_size=size) as query:
            logits = query.bare_logits(x)
            assert torch.allclose(logits[:, 1], one(x)[:, 0], atol=1e-6)
            answer = query.gradient(x[:size], lambda z: z[:, 1])
            assert torch.allclose(answer.grad, one.weight.expand(len(x[:size]), 6))


def test_raw_outputs_keep_their_own_bounds():
    one = linear()
    x, y = labelled(one)
    found = output_bounds(one, x, Linf(EPS))
    assert found.lower.shape == (50, 1)
    least = torch.where(y == 1, found.lower[:, 0].double(), -found.upper[:, 0].double())
    assert torch.allclose(least, worst_margins(one, x, y), atol=1e-5)


def test_what_is_no_single_logit():
    x = torch.rand(4, 6)
    with pytest.raises(ModelError, match=r"shape \(4, 3\) for 4 inputs, not one logit"):
        OneLogit(nn.Linear(6, 3))(x)
    with pytest.raises(ModelError, match="not one logit"):
        holdfast.audit(holdfast.Model(nn.Linear(6, 3), positive=0), (x, torch.zeros(4).long()), Linf(EPS))
    with pytest.raises(SettingError, match="is 0 or 1, got 2"):
        OneLogit(nn.Linear(6, 1), 2)
    with pytest.raises(ModelError, match="remove its final sigmoid"):
        holdfast.audit(nn.Sequential(linear(), nn.Sigmoid()), (x, torch.zeros(4).long()), Linf(EPS))
    with pytest.raises(ModelError, match="one logit, but digits test has 10 classes"):
        holdfast.audit(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "digits", Linf(EPS))
