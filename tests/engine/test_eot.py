"""Models with noise of their own: looks that average over several passes, and verdicts by majority."""

import pytest
import torch
from torch import Tensor, nn

from helpers.attacks import assert_same, examples
from helpers.zoo import Counting, convnet, uniform
from holdfast.attacks import FGSM, PGD, Outcome, Stage, craft, drive
from holdfast.data import Batch
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.threats import Linf

FEATURES = 100


class NoisyGradient(nn.Module):
    """Two logits that a sum of features decides, with a gradient that is mostly noise."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        noise = self.noise * torch.randn_like(x)
        total = (x - 0.5).sum(1) + (noise * (x - x.detach())).sum(1)
        return torch.stack([-total, total], 1) / 2


class Unreliable(nn.Module):
    """Says 1 with the probability that its first feature is, and 0 otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        gap = x[:, 0] - torch.rand(len(x))
        return torch.stack([-gap, gap], 1)


def run(attack, model, threat, x, y, samples, max_forwards=None, batch_size=7) -> dict[int, Outcome]:
    with Query(model, batch_size=batch_size) as query:
        batch = Batch(torch.arange(len(x)), x, y)
        stages = [Stage("a", attack)]
        steps = drive(query, threat, stages, [batch], max_forwards=max_forwards, samples=samples)
        found = {outcome.index: outcome for some in steps for outcome in some}
        assert query.forwards == sum(outcome.forwards for outcome in found.values())
    return found


def test_an_averaged_gradient_finds_what_one_of_them_does_not():
    """FGSM moves every feature by the sign of its gradient, which is right for 98 % of them after averaging, else 60 %.

    A feature's gradient is 1 with noise of deviation 4. So one look lowers the sum by about a fifth of what could be
    had, and 64 looks, whose mean has noise of deviation 1/2, by more than nine tenths.
    """
    x, eps = 0.5 + 0.02 * uniform(40, FEATURES), 0.02
    x = x - (x - 0.5).mean(1, keepdim=True) + 0.012  # 60 % of what the budget can undo
    y = torch.ones(40, dtype=torch.int64)
    model, threat = NoisyGradient(4.0), Linf(eps)
    single = FGSM()(model, x, y, threat=threat)
    averaged = FGSM()(model, x, y, threat=threat, samples=64)
    assert single.success.sum() <= 2
    assert averaged.success.all()
    assert FGSM()(NoisyGradient(0.0), x, y, threat=threat).success.all()
    moved = ((averaged.x_adv - x) < 0).double().mean()
    assert 0.95 < moved < 0.995
    assert 0.55 < ((single.x_adv - x) < 0).double().mean() < 0.65


def test_a_model_is_wrong_where_most_of_its_answers_are():
    x, y = torch.full((60, 2), 0.05), torch.zeros(60, dtype=torch.int64)
    attack = FGSM(objective="margin")
    seldom, mostly = Linf(0.25), Linf(0.65)  # wrong with probability 0.3 and 0.7
    assert not craft(attack, Unreliable(), x, y, threat=seldom, samples=101).success.any()
    assert craft(attack, Unreliable(), x, y, threat=mostly, samples=101).success.all()
    # A single pass takes chance for success: it need only strike at a look and again at the verification.
    assert 1 < craft(attack, Unreliable(), x, y, threat=seldom).success.sum() < 20


def test_the_mean_is_what_is_recorded():
    x, y = torch.full((20, 2), 0.05), torch.zeros(20, dtype=torch.int64)
    result = craft(FGSM(objective="margin"), Unreliable(), x, y, threat=Linf(0.25), samples=301)
    # The margin is twice the gap, whose mean is 0.3 - 1/2; a single one lies anywhere between -1.4 and 0.6.
    assert ((result.objective + 0.4).abs() < 0.15).all()


def test_passes_are_counted_for_every_sample():
    model = convnet()
    x, y = examples(model)
    for samples in (1, 2, 5):
        counting = Counting(model)
        result = craft(PGD(steps=3), counting, x, y, threat=Linf(0.01), samples=samples, batch_size=1)
        assert (counting.forwards, counting.backwards) == (int(result.forwards.sum()), int(result.backwards.sum()))
        stands = ~result.success
        assert stands.any()
        assert (result.forwards[stands] == samples * (1 + 4)).all()
        assert (result.backwards[stands] == samples * 3).all()
        assert (result.forwards[[3, 11]] == samples).all()
        assert (result.forwards % samples == 0).all()


def test_where_nothing_is_random_samples_change_nothing_but_the_cost():
    """Sums of two, four or eight equal numbers round to nothing."""
    model = convnet()
    x, y = examples(model)
    once = run(PGD(steps=3, restarts=2), model, Linf(0.01), x, y, 1)
    for samples in (2, 4, 8):
        often = run(PGD(steps=3, restarts=2), model, Linf(0.01), x, y, samples)
        for index, outcome in once.items():
            assert torch.equal(often[index].x_adv, outcome.x_adv)
            assert often[index].verdict == outcome.verdict
            assert often[index].forwards == samples * outcome.forwards
            assert often[index].backwards == samples * outcome.backwards


def test_one_sample_is_no_sampling():
    """The same draws of the model's noise in the same order, so the same numbers, as without the setting."""
    x, y = 0.5 + 0.05 * (uniform(30, FEATURES) - 0.5), torch.ones(30, dtype=torch.int64)
    model, threat = NoisyGradient(1.0), Linf(0.02)
    with Query(model, batch_size=7) as query:
        steps = drive(query, threat, [Stage("a", PGD(steps=3))], [Batch(torch.arange(30), x, y)])
        plain = {outcome.index: outcome for some in steps for outcome in some}
    assert_same(run(PGD(steps=3), model, threat, x, y, 1), plain)
    assert len({outcome.verdict for outcome in plain.values()}) > 1


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_budgets_of_queries_hold_for_all_passes_together(samples):
    model = convnet()
    x, y = examples(model)
    for budget in (0, 1, 2, 3, 4, 7, 10, 14, 15, 16, 25, 100):
        found = run(PGD(steps=4), model, Linf(0.01), x, y, samples, max_forwards=budget)
        looks = min(budget // samples, 5)
        for outcome in found.values():
            verified = samples * (outcome.verdict == "broken")
            assert outcome.forwards <= samples + budget + verified
            assert outcome.backwards <= samples * min(looks, 4)
            if outcome.verdict in ("undecided", "robust"):
                assert outcome.forwards == samples * (1 + looks)
        verdicts = {outcome.verdict for outcome in found.values()}
        assert ("undecided" in verdicts) == (budget < 5 * samples)
        assert ("robust" in verdicts) == (budget >= 5 * samples)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_lucky_look_costs_its_verification_and_nothing_else(samples, batch_size):
    """An example that stands has had every look of every run, however many of them chance made a claim of."""
    x, y = torch.full((60, 2), 0.05), torch.zeros(60, dtype=torch.int64)
    attack = PGD(steps=6, restarts=2, objective="margin")
    found = run(attack, Unreliable(), Linf(0.1), x, y, samples, batch_size=batch_size)
    stands = [outcome for outcome in found.values() if outcome.verdict == "robust"]
    assert 20 < len(stands) < 60
    refuted = [outcome.forwards / samples - (1 + 2 * 7) for outcome in stands]
    assert min(refuted) == 0 < max(refuted)
    assert all(claims.is_integer() for claims in refuted)
    assert {outcome.backwards for outcome in stands} == {samples * 2 * 6}


@pytest.mark.parametrize("samples", [1, 3])
def test_budgets_of_queries_hold_for_refuted_claims_too(samples):
    x, y = torch.full((60, 2), 0.05), torch.zeros(60, dtype=torch.int64)
    for budget in range(0, 10, 3):
        found = run(PGD(steps=9), Unreliable(), Linf(0.2), x, y, samples, max_forwards=budget)
        assert "robust" not in {outcome.verdict for outcome in found.values()}
        for outcome in found.values():
            # The last look may be a claim, whose verification is the auditor's.
            assert outcome.forwards <= samples + budget + samples
            if outcome.verdict == "undecided":
                assert outcome.forwards >= samples + budget // samples * samples


def test_samples_that_make_no_sense():
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match="samples: a whole number of at least 1 is needed, got 0"):
        craft(FGSM(), model, x, y, threat=Linf(0.1), samples=0)
