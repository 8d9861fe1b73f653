"""Ablation certificates against enumeration: every ablation, every adversary, the worst model; in small dimension."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from scipy import stats
from torch import nn

from holdfast.certify.smoothing.ablation import (
    Ablated,
    BlockAblation,
    ColumnAblation,
    Deletion,
    FeatureAblation,
    Fill,
    largest_patch,
    mark,
)
from holdfast.certify.smoothing.smoothing import Smoothed
from holdfast.draws import Draws
from holdfast.errors import DataError, SettingError


def subsets(features: int, keep: int) -> list[frozenset[int]]:
    return [frozenset(chosen) for chosen in itertools.combinations(range(features), keep)]


def worst_flips(views: list[frozenset[int]], changes: list[frozenset[int]]) -> int:
    """The most views that any of these changes meets: so many votes the worst model can be made to turn."""
    return max(sum(bool(view & change) for view in views) for change in changes)


@pytest.mark.parametrize("features", range(1, 9))
def test_delta_of_feature_ablation_is_the_enumerated_share(features):
    for keep in range(1, features + 1):
        ablation = FeatureAblation((features,), keep)
        views = subsets(features, keep)
        for budget in range(features + 1):
            share = Fraction(worst_flips(views, subsets(features, budget)), len(views))
            assert ablation.delta(budget) == pytest.approx(float(share), abs=1e-12)
        assert ablation.delta(0) == 0
        assert ablation.delta(features) == 1


@pytest.mark.parametrize("features", range(2, 9))
def test_claimed_budgets_never_exceed_the_true_ones_and_meet_those_of_the_worst_model(features):
    """With the exact share of votes for the first of two classes, in every number."""
    for keep in range(1, features + 1):
        ablation = FeatureAblation((features,), keep)
        views = subsets(features, keep)
        flips = [worst_flips(views, subsets(features, budget)) for budget in range(features + 1)]
        for votes in range(len(views) // 2 + 1, len(views) + 1):
            # The worst model turns votes of the first class as long as there are any; a tie is no win.
            true = max(b for b in range(features + 1) if 2 * (votes - min(flips[b], votes)) > len(views))
            share = torch.tensor([votes / len(views)], dtype=torch.float64)
            claimed = int(ablation.radius(share, 1 - share).item())
            assert claimed == true, (features, keep, votes)


def test_many_features_keep_their_digits():
    for features, keep, budget in ((3072, 45, 20), (100_000, 500, 3), (10**6, 2, 1), (10**6, 10, 400_000)):
        exact = 1 - Fraction(math.comb(features - budget, keep), math.comb(features, keep))
        assert FeatureAblation((features,), keep).delta(budget) == pytest.approx(float(exact), rel=1e-12)


def test_feature_ablation_keeps_any_subset_as_often_as_any_other():
    ablation = FeatureAblation((5,), 2, hide=Fill(-1.0))
    x = torch.arange(5.0).expand(6000, -1)
    seen = ablation.perturb(x, Draws(1, torch.arange(6000)))
    assert ((seen == -1) | (seen == x)).all()
    assert ((seen != -1).sum(1) == 2).all()
    counts = (seen != -1).long() @ (2 ** torch.arange(5))
    assert stats.chisquare(counts.bincount()[counts.unique()].numpy()).pvalue > 1e-3
    assert len(counts.unique()) == 10


def test_pixels_are_hidden_with_all_their_channels_and_told_apart_from_zeros():
    x = torch.zeros(7, 3, 4, 4)
    seen = FeatureAblation((1, 4, 4), 5).perturb(x, Draws(0, torch.arange(7)))
    assert seen.shape == (7, 4, 4, 4)
    assert (seen[:, 3].flatten(1).sum(1) == 5).all()
    assert torch.equal(mark(x + 1, seen[:, 3:].bool())[:, 0], seen[:, 3])


# Patches.


class Lookup(nn.Module):
    """Votes as a table says for each ablation, found by the one pixel that starts it; others, that were changed, for 1.

    Pixels carry their own numbers; a changed one is negative.
    """

    def __init__(self, first: list[int]) -> None:
        super().__init__()
        self.first = torch.tensor(first)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        kept, values = x[:, 1] > 0, x[:, 0]
        changed = ((values < 0) & kept).flatten(1).any(1)
        # The start of a band or block that goes round is the kept place whose neighbours before it are hidden.
        before = kept.roll(1, dims=2) if kept.shape[1] == 1 else kept.roll(1, dims=2) | kept.roll(1, dims=1)
        start = (kept & ~before).flatten(1).long().argmax(1)
        vote = torch.where(changed, 1, self.first.to(x.device)[start])
        return 2.5 * nn.functional.one_hot(vote, 2) - 1


def image(height: int, width: int) -> torch.Tensor:
    return 1.0 + torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)


def survives(model: nn.Module, ablation, x: torch.Tensor, patch: tuple[int, int], label: int) -> bool:
    """Whether the prediction stands for a patch at every place inside the image."""
    height, width = x.shape[2:]
    adversarial = []
    for top in range(height - patch[0] + 1):
        for left in range(width - patch[1] + 1):
            changed = x.clone()
            changed[:, :, top : top + patch[0], left : left + patch[1]] *= -1
            adversarial.append(changed)
    result = Ablated(model, ablation, batch_size=64).certify(torch.cat(adversarial))
    return bool((result.prediction == label).all())


@pytest.mark.parametrize("band", [1, 2, 3])
def test_columns_claim_no_more_than_is_true_and_the_worst_votes_allow_no_more(band):
    width, reached = 6, 0
    ablation, x = ColumnAblation(width, band), image(1, width)
    for votes in itertools.product((0, 1), repeat=width):
        model = Lookup(list(votes))
        result = Ablated(model, ablation).certify(x)
        label, claimed = int(result.prediction), int(result.radius)
        assert label == (0 if 2 * sum(votes) <= width else 1)
        if label == 1:
            continue  # this adversary only turns votes to 1
        true = max([0, *(m for m in range(1, width + 1) if survives(model, ablation, x, (1, m), 0))])
        assert claimed <= true
        reached += claimed == true > 0
    assert reached


def test_blocks_claim_no_more_than_is_true_and_reach_it():
    ablation, x = BlockAblation(5, 5, 2), image(5, 5)
    gaps = []
    for against in range(9):
        votes = [0] * 25
        for place in range(against):
            votes[(13 * place + 12) % 25] = 1
        model = Lookup(votes)
        result = Ablated(model, ablation).certify(x)
        claimed = int(result.radius)
        true = max([0, *(m for m in range(1, 6) if survives(model, ablation, x, (m, m), 0))])
        assert claimed <= true
        gaps.append(true - claimed)
    assert 0 in gaps


@pytest.mark.parametrize(("height", "width", "side"), [(5, 5, 2), (4, 6, 1), (6, 4, 3)])
def test_what_sees_a_patch_is_counted_exactly(height, width, side):
    block, column = BlockAblation(height, width, side), ColumnAblation(width, side)
    x = torch.zeros(block.outcomes, 1, height, width)
    draws = Draws(0, torch.zeros(block.outcomes, dtype=torch.int64), 0, torch.arange(block.outcomes))
    blocks = block.perturb(x, draws)[:, 1].bool()
    assert (blocks.flatten(1).sum(1) == side**2).all()
    bands = column.perturb(x[:width], Draws(0, draws.index[:width], 0, torch.arange(width)))[:, 1].bool()
    assert (bands.flatten(1).sum(1) == side * height).all()
    for size in range(1, min(height, width) + 1):
        patch = torch.zeros(height, width, dtype=torch.bool)
        patch[:size, :size] = True
        assert int((blocks & patch).flatten(1).any(1).sum()) == block.seen(size)
        assert int((bands & patch).flatten(1).any(1).sum()) == column.seen(size)
    assert block.seen(0) == column.seen(0) == 0
    assert column.seen(width) == width


def test_ties_go_to_the_class_that_comes_first():
    """One column, seen by one voter: ten columns, a lead of 2 stands for the earlier class only."""
    ablation = ColumnAblation(10, 1)
    assert largest_patch(ablation, torch.tensor([6, 4])) == 1
    assert largest_patch(ablation, torch.tensor([4, 6])) == 0
    assert largest_patch(ablation, torch.tensor([3, 7])) == 1
    assert largest_patch(ablation, torch.tensor([5, 5])) == 0
    assert largest_patch(ablation, torch.tensor([10, 0])) == 5


# Edits.


def test_deletion_has_the_published_radius():
    for rate in (0.5, 0.9, 0.97):
        ablation = Deletion(rate)
        for lower in (0.5000001, 0.6, 0.75, 0.9, 0.999):
            p = torch.tensor([lower], dtype=torch.float64)
            assert ablation.radius(p, 1 - p).item() == math.ceil(math.log(1.5 - lower) / math.log(rate)) - 1
        assert ablation.delta(0) == 0
    # At 3/2 - rate^r exactly, the first class may be level with another: one edit less.
    tie = torch.tensor([0.75, 0.75 + 1e-6], dtype=torch.float64)
    assert Deletion(0.75).radius(tie, 1 - tie).tolist() == [0, 1]


def laws(sequence: tuple[int, ...], rate: float) -> dict[tuple[int, ...], float]:
    """The distribution of what deletion leaves of a sequence."""
    law: dict[tuple[int, ...], float] = {}
    for kept in itertools.product((False, True), repeat=len(sequence)):
        left = tuple(s for s, keep in zip(sequence, kept, strict=True) if keep)
        law[left] = law.get(left, 0.0) + math.prod(1 - rate if keep else rate for keep in kept)
    return law


def edits(sequence: tuple[int, ...], alphabet: range) -> set[tuple[int, ...]]:
    places = range(len(sequence) + 1)
    inserted = {(*sequence[:i], a, *sequence[i:]) for i in places for a in alphabet}
    deleted = {(*sequence[:i], *sequence[i + 1 :]) for i in places[:-1]}
    substituted = {(*sequence[:i], a, *sequence[i + 1 :]) for i in places[:-1] for a in alphabet}
    return inserted | deleted | substituted


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.9])
def test_no_edits_move_the_vote_of_any_model_by_more_than_delta(rate):
    """The most that any model's score can change is the total variation between what is left before and after."""
    sequence, reached = (1, 2, 1, 3), 0.0
    before = laws(sequence, rate)
    near = {sequence}
    for budget in (1, 2):
        near = set().union(*(edits(one, range(1, 5)) for one in near))
        worst = 0.0
        for edited in near:
            after = laws(edited, rate)
            worst = max(worst, sum(max(0.0, mass - after.get(left, 0.0)) for left, mass in before.items()))
        delta = Deletion(rate).delta(budget)
        assert worst <= delta + 1e-12
        reached = max(reached, worst / delta)
    assert reached == pytest.approx(1)  # a letter that is nowhere else: some model is that bad


def test_deletion_deletes_elements_and_closes_the_gaps():
    x = torch.tensor([[5.0, 6.0, 7.0, 8.0, 0.0, 0.0]]).expand(4000, -1)
    left = Deletion(0.4).perturb(x, Draws(3, torch.arange(4000)))
    lengths = (left != 0).sum(1)
    for row, length in zip(left[:200].tolist(), lengths[:200].tolist(), strict=True):
        assert row[:length] == sorted(row[:length])
        assert not any(row[length:])
    counts = lengths.bincount(minlength=5)
    assert stats.chisquare(counts.numpy(), 4000 * stats.binom.pmf(range(5), 4, 0.6)).pvalue > 1e-3


# What is hidden leaves no trace.

SPECIAL = (float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-45, -1.0, 3.4e38)


def contents(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Numbers of all kinds, NaN with random payloads and signs among them."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(len(SPECIAL) + 1, shape, generator=generator)
    values = torch.tensor([*SPECIAL, 0.0], dtype=dtype)[kinds]
    payload = torch.randint(1, 2**8, shape, generator=generator)
    sign = 1 - 2 * torch.randint(2, shape, generator=generator)
    whole = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
    bits = torch.tensor(float("nan"), dtype=dtype).view(whole.get(dtype, torch.int64)) | payload.to(
        whole.get(dtype, torch.int64)
    )
    nan = torch.copysign(bits.to(whole.get(dtype, torch.int64)).view(dtype), sign.to(dtype))
    return torch.where(kinds == len(SPECIAL), nan, values)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("hide", [mark, Fill(0.5)])
@pytest.mark.parametrize(
    "make",
    [
        lambda hide: FeatureAblation((1, 5, 6), 7, hide),
        lambda hide: FeatureAblation((2, 5, 6), 20, hide),
        lambda hide: ColumnAblation(6, 2, hide),
        lambda hide: BlockAblation(5, 6, 3, hide),
    ],
)
def test_the_classifier_sees_the_same_bits_whatever_is_hidden(make, hide, dtype):
    ablation = make(hide)
    draws = Draws(4, torch.arange(30), 0, torch.arange(30) % 6)
    kept = ablation.perturb(torch.zeros(30, 2, 5, 6), draws)
    kept = kept[:, 2:].bool() if hide is mark else kept != 0.5
    kept = kept.expand(-1, 2, -1, -1) if kept.shape[1] == 1 else kept
    shown = contents((30, 2, 5, 6), dtype, seed=0)
    first = ablation.perturb(shown, draws)
    assert (~kept).any()
    for seed in range(1, 6):
        other = torch.where(kept, shown, contents((30, 2, 5, 6), dtype, seed))
        assert not torch.equal(bits(other), bits(shown))
        assert torch.equal(bits(ablation.perturb(other, draws)), bits(first))
    # What is shown arrives as it is.
    assert torch.equal(bits(first[:, :2][kept]), bits(shown[kept]))


def test_deleted_elements_leave_no_trace():
    ablation, draws = Deletion(0.6), Draws(2, torch.arange(50))
    kept = ablation.perturb(torch.arange(1.0, 13.0).expand(50, -1), draws).long()
    shown = contents((50, 12), torch.float32, seed=0)
    shown = torch.where(shown == 0, 7.0, shown)  # 0 and -0 are no elements
    first = ablation.perturb(shown, draws)
    stays = torch.zeros(50, 13, dtype=torch.bool).scatter_(1, kept, value=True)[:, 1:]
    other = contents((50, 12), torch.float32, seed=1)
    other = torch.where(stays, shown, torch.where(other == 0, -7.0, other))
    assert torch.equal(bits(ablation.perturb(other, draws)), bits(first))
    # Beyond what stays there is padding, of one sign.
    beyond = torch.arange(12) >= stays.sum(1, keepdim=True)
    assert (bits(first[beyond]) == 0).all()
    assert torch.equal(bits(ablation.perturb(torch.full((50, 12), -0.0), draws)), bits(torch.zeros(50, 12)))


class Signs(nn.Module):
    """Class 0 where any entry, seen or hidden, has a sign or is not finite."""

    def forward(self, x):
        odd = (torch.signbit(x[:, 0]) | ~x[:, 0].isfinite()).flatten(1).any(1).float()
        return 10 * torch.stack([odd, 1 - odd], 1)


@pytest.mark.parametrize("ablation", [ColumnAblation(8, 2), BlockAblation(8, 8, 2)])
@pytest.mark.parametrize("content", [-1.0, -0.0, float("nan"), float("inf"), -float("inf")])
def test_no_patch_of_the_proved_size_changes_an_answer_whatever_it_holds(ablation, content):
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Ablated(Signs(), ablation)
    result = model.certify(x)
    assert result.prediction.item() == 1
    side = int(result.radius)
    assert side >= 2
    for place in (0, 8 - side):
        changed = x.clone()
        changed[:, :, place : place + side, place : place + side] = content
        assert model.certify(changed).prediction.item() == 1


class Missing(nn.Module):
    """NaN for the views that start left of a column, and class 1 for the others."""

    def __init__(self, until: int) -> None:
        super().__init__()
        self.until = until

    def forward(self, x):
        start = (x[:, 1, 0] > 0).long().argmax(1)
        logits = torch.tensor([0.0, 9.0]).expand(len(x), -1).clone()
        logits[start < self.until] = float("nan")
        return logits


def test_votes_that_are_nan_count_for_nobody_and_against_the_first():
    x = image(8, 8)
    found = [Ablated(Missing(until), ColumnAblation(8, 1)).certify(x, torch.tensor([0])) for until in (0, 3, 5, 8)]
    assert [one.prediction.item() for one in found] == [1, 1, -1, -1]
    # Five votes for class 1 and three for nobody: a lead of two, and a patch of width 1 is seen by one view.
    assert [one.radius.item() for one in found] == [3, 1, 0, 0]
    assert not any(one.certified_accuracy(0) for one in found)


# Through the sampled procedures.


class Majority(nn.Module):
    """The class of the larger of the sums of visible values below and above 0."""

    def forward(self, x):
        values = x[:, : x.shape[1] // 2]
        return torch.stack([-values.clamp_max(0).sum(1), values.clamp_min(0).sum(1) - 1e-6], dim=1)


def test_sampled_ablation_certifies_what_enumeration_proves():
    x = torch.tensor([[1.0] * 20, [1.0] * 15 + [-1.0] * 5, [1.0] * 11 + [-1.0] * 9])
    ablation = FeatureAblation((20,), 3)
    smoothed = Smoothed(Majority(), ablation, batch_size=4096)
    shares = [stats.hypergeom.sf(1, 20, sum(row > 0), 3) for row in x]
    exact = [int(ablation.radius(torch.tensor([p]).double(), torch.tensor([1 - p]).double()).item()) for p in shares]
    fixed = smoothed.certify_fixed(x, samples=20_000)
    grid = smoothed.certify(x, samples=20_000)
    assert grid.norm == "l0"
    assert fixed.radius.tolist() == exact
    assert grid.radius.tolist() == exact
    assert grid.forwards < 0.5 * fixed.forwards
    assert exact[0] > exact[1] > 0


def test_what_makes_no_sense_is_refused_in_one_line():
    for wrong, says in (
        (lambda: FeatureAblation((4,), 0), "keep"),
        (lambda: FeatureAblation((4,), 5), "keep"),
        (lambda: Deletion(1.0), "rate"),
        (lambda: ColumnAblation(4, 5), "band"),
        (lambda: BlockAblation(4, 5, 0), "side"),
        (lambda: Deletion(0.5, padding=float("nan")), "padding"),
        (lambda: Smoothed(Majority(), ColumnAblation(4, 2)), "ColumnAblation"),
        (lambda: Ablated(Majority(), FeatureAblation((4,), 2)), "FeatureAblation"),
        (lambda: Smoothed(Majority(), FeatureAblation((20,), 3)).certify(torch.ones(1, 20), radii=0.5), "whole number"),
    ):
        with pytest.raises(SettingError, match=says) as error:
            wrong()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ablation", "shape"),
    [
        (ColumnAblation(4, 2), (2, 1, 4, 1)),
        (ColumnAblation(4, 2), (2, 4)),
        (BlockAblation(4, 5, 2), (2, 1, 5, 4)),
        (FeatureAblation((4, 4), 2), (2, 1, 4, 4)),
        (FeatureAblation((3, 4, 4), 2), (2, 1, 4, 4)),
        (Deletion(0.5), (2, 3, 4)),
    ],
)
def test_inputs_of_another_shape_are_refused_in_one_line(ablation, shape):
    """Broadcast, a mask would hide other things than were counted."""
    with pytest.raises(DataError, match="shape") as error:
        ablation.perturb(torch.ones(shape), Draws(0, torch.arange(shape[0])))
    assert "\n" not in str(error.value)


def test_default_budgets_are_few_even_where_many_could_be_proved():
    result = Smoothed(Majority(), Deletion(1 - 1e-9)).certify(torch.ones(1, 4), samples=50)
    assert len(result.radii) <= 257
