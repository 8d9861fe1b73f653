"""Smoothed classifiers against closed forms: linear models, whose probabilities under noise are known exactly."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.zoo import Moody, linear, mlp, random_linear, uniform
from holdfast.certify.smoothing.noise import Gaussian, Uniform
from holdfast.certify.smoothing.smoothing import Smoothed
from holdfast.draws import Draws
from holdfast.errors import DataError, ModelError, SettingError

RUNS = 10_000


def halfspace(features: int = 1) -> torch.nn.Module:
    """Class 1 where the coordinates' sum is positive."""
    weight = torch.ones(2, features, dtype=torch.float64)
    weight[0] = -1
    return linear(weight, torch.zeros(2, dtype=torch.float64))


def three_ways() -> torch.nn.Module:
    """Class 0 left of -1, class 2 right of 1, class 1 between, on a line."""
    return linear(
        torch.tensor([[-2.0], [0.0], [2.0]], dtype=torch.float64), torch.tensor([-2.0, 0.0, -2.0], dtype=torch.float64)
    )


def points(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def ulps(got: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


# Draws and radii.


@pytest.mark.parametrize(
    ("noise", "law"), [(Gaussian(0.3), stats.norm(0, 0.3)), (Uniform(0.3), stats.uniform(-0.3, 0.6))]
)
def test_noise_has_the_law_it_claims(noise, law):
    x = torch.full((2000, 3), 0.25, dtype=torch.float64)
    added = noise.perturb(x, Draws(1, torch.arange(2000))) - x
    for column in added.unbind(1):
        assert stats.kstest(column.numpy(), law.cdf).pvalue > 1e-3
    assert abs(float(added.T.corrcoef()[0, 1])) < 0.1


def test_radii_are_the_closed_forms():
    lower, upper = (torch.tensor(p, dtype=torch.float64) for p in ([0.6, 0.99, 0.5], [0.4, 0.003, 0.2]))
    expected = [0.25 * (stats.norm.ppf(a) - stats.norm.ppf(b)) for a, b in zip(lower, upper, strict=True)]
    ulps(Gaussian(0.5).radius(lower, upper), expected)
    ulps(Gaussian(0.5).radius(lower[:1], 1 - lower[:1]), [0.5 * stats.norm.ppf(0.6)])
    ulps(Uniform(0.5).radius(lower, upper), [0.1, 0.4935, 0.15])
    for noise in (Gaussian(0.7), Uniform(2.0)):
        for radius in (0.0, 0.3, 1.1):
            p = torch.tensor([noise.probability(radius)], dtype=torch.float64)
            assert noise.radius(p, 1 - p).item() == pytest.approx(radius, abs=1e-12)


def test_the_largest_radius_is_that_of_unanimous_votes():
    for samples, ratio in ((1000, 2.4633), (10_000, 3.1986), (100_000, 3.8115), (1_000_000, 4.3468)):
        assert Smoothed(halfspace(), 0.5).largest_radius(samples) == pytest.approx(0.5 * ratio, abs=5e-5)


def test_a_shift_of_uniform_noise_changes_no_probability_by_more_than_claimed():
    """The share of the shifted cube that the cube does not cover, in closed form, against ``|d|_1 / (2 width)``."""
    for seed in range(200):
        shift = 2 * uniform(4, seed=seed, dtype=torch.float64) - 1
        uncovered = 1 - (1 - shift.abs() / 2).clamp_min(0).prod().item()
        assert uncovered <= shift.abs().sum().item() / 2 + 1e-12


def test_implied_linf_balls_lie_inside():
    corner = torch.full((48,), 0.9 / math.sqrt(48))
    assert Gaussian(1.0).linf_radius(torch.tensor(0.9), 48).item() == pytest.approx(corner[0].item())
    assert corner.norm().item() == pytest.approx(0.9)
    assert Uniform(1.0).linf_radius(torch.tensor(0.9), 48).item() * 48 == pytest.approx(0.9)


# Noise on a grid.


@pytest.mark.parametrize("scale", [0.3, 0.25, 1.0, 7e-5, 3e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [Gaussian, Uniform])
def test_what_is_seen_is_the_exact_sum_rounded_to_a_grid(make, scale, dtype):
    step = 2.0 ** (math.floor(math.log2(scale)) - 8)
    x = uniform(200, 7, seed=1, dtype=torch.float64).mul(20).sub(10).mul(scale).to(dtype)
    x[:20] *= 2.0**60
    x[20:40] *= 2.0**-60
    draws = Draws(5, torch.arange(200))
    if make is Gaussian:
        u = draws.fine(8)
        radius, angle = (-2 * u[:, :4].log()).sqrt(), 2 * math.pi * u[:, 4:]
        noise = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :7]
    else:
        noise = 2 * draws.fine(7) - 1
    seen = make(scale).perturb(x, draws)
    assert seen.dtype == dtype
    for value, added, got in zip(x.flatten().tolist(), noise.flatten().tolist(), seen.flatten().tolist(), strict=True):
        exact = (Fraction(value) + Fraction(scale) * Fraction(added)) / Fraction(step)
        if abs(exact - math.floor(exact) - Fraction(1, 2)) > Fraction(1, 10**9):
            assert got == torch.tensor(float(round(exact) * Fraction(step)), dtype=torch.float64).to(dtype).item()


@pytest.mark.parametrize("noise", [Gaussian(0.5), Uniform(0.5)])
def test_grid_points_are_as_likely_as_the_theorem_s_noise_makes_them(noise):
    """Whichever bits of the input lie beside the grid: the sum's last bits have the law that its first ones imply."""
    law = stats.norm(0, 0.5) if isinstance(noise, Gaussian) else stats.uniform(-0.5, 1)
    step, draws = 0.5 / 256, 200_000
    for value in (0.0, 1.0, 1 / 255, 0.7 * step, 1 / 3 + 2.0**-24):
        x = torch.full((draws, 1), value, dtype=torch.float32)
        places = (noise.perturb(x, Draws(9, torch.arange(draws))).double() / step)[:, 0]
        assert torch.equal(places, places.round())
        cells = np.arange(-256 * 9, 256 * 9 + 300)
        edges = law.cdf((cells[:, None] + np.array([-0.5, 0.5])) * step - x[0].item())
        mass = edges[:, 1] - edges[:, 0]
        for bits in (2, 16):
            expected = np.bincount(cells % bits, mass, bits) * draws
            assert stats.chisquare(torch.bincount(places.long() % bits, minlength=bits).numpy(), expected).pvalue > 1e-4


class Bits(torch.nn.Module):
    """Class 1 where any number has a bit that is finer than ``last``."""

    def __init__(self, last: float) -> None:
        super().__init__()
        self.last = last

    def forward(self, x):
        coarse = ((x / self.last).frac() == 0).flatten(1).all(1).float()
        return 10 * torch.stack([coarse, 1 - coarse], 1)


@pytest.mark.parametrize("noise", [Gaussian(0.3), Uniform(1.0)])
def test_no_reader_of_last_bits_gets_certificates_that_contradict(noise):
    x = torch.tensor([[0.0], [1.0], [0.5], [2.0**-24], [1 / 3], [0.1], [1 + 2.0**-23], [-0.3]])
    for exponent in (-24, -23, -15, -10, -9, -5):
        smoothed = Smoothed(Bits(2.0**exponent), noise, batch_size=4096)
        for result in (smoothed.certify_fixed(x, samples=1000), smoothed.certify(x, samples=1000)):
            for i, j in itertools.combinations(range(len(x)), 2):
                if result.abstained[i] or result.abstained[j]:
                    continue
                apart = (x[i] - x[j]).abs().item() <= max(result.radius[i].item(), result.radius[j].item())
                assert not apart or result.prediction[i] == result.prediction[j]


def test_certificates_pay_for_the_distance_between_the_noise_s_laws(monkeypatch):
    x = points(0.3, 0.9)
    plain = Smoothed(halfspace(), 0.5, batch_size=4096)
    before, asked = plain.certify_fixed(x, samples=5000), plain.certify(x, radii=0.25, samples=20_000)
    assert asked.radius.tolist() == [0.25, 0.25]
    monkeypatch.setattr(Gaussian, "deviation", lambda self, features: 0.02 * features)
    after = plain.certify_fixed(x, samples=5000)
    for one, other in zip(before.radius.tolist(), after.radius.tolist(), strict=True):
        assert other == pytest.approx(0.5 * stats.norm.ppf(stats.norm.cdf(one / 0.5) - 0.06), rel=1e-9)
    # 0.3 has a share of 0.7257, and 0.25 with the distance takes 0.6915 + 0.06.
    assert plain.certify(x, radii=0.25, samples=20_000).radius.tolist() == [0.0, 0.25]
    assert plain.largest_radius(5000) < 0.5 * stats.norm.ppf(0.94)


# The fixed procedure.


def test_the_fixed_procedure_is_the_closed_form_of_its_own_votes():
    smoothed = Smoothed(three_ways(), 0.8, batch_size=512, seed=3)
    x = points(-2.0, 0.0, 0.3, 1.1, 5.0)
    result = smoothed.certify_fixed(x, samples=400, selection=50, alpha=0.01)
    # The same votes, counted from the same draws by hand.
    votes = torch.zeros(5, 3, dtype=torch.int64)
    for draw in range(400):
        noisy = x + 0.8 * Draws(3, torch.arange(5), 1, draw).normal(1)
        votes[torch.arange(5), torch.where(noisy[:, 0] < -1, 0, torch.where(noisy[:, 0] > 1, 2, 1))] += 1
    for row in range(5):
        count = int(votes[row].max())
        lower = stats.beta.ppf(0.01, count, 400 - count + 1)
        if lower > 0.5:
            assert result.prediction[row] == votes[row].argmax()
            assert result.radius[row].item() == pytest.approx(0.8 * stats.norm.ppf(lower), rel=1e-9)
        else:
            assert result.prediction[row] == -1
            assert result.radius[row] == 0
    assert result.samples.tolist() == [450] * 5
    assert result.exhausted.all()
    assert result.forwards == 5 * 450
    assert result.radii is None
    assert result.radius[4].item() == pytest.approx(smoothed.largest_radius(400, 0.01), rel=1e-9)


def test_radii_of_a_halfspace_are_just_below_the_distance():
    """Under Gaussian noise a halfspace's certificate is tight: the radius is the distance to the plane."""
    x = torch.tensor([[0.2, 0.3, 0.1], [0.4, 0.4, 0.1], [-0.5, 0.1, 0.0]], dtype=torch.float64)
    distance = x.sum(1).abs() / math.sqrt(3)
    result = Smoothed(halfspace(3), 0.5, batch_size=4096).certify_fixed(x, samples=20_000)
    assert result.prediction.tolist() == [1, 1, 0]
    assert (result.radius < distance).all()
    assert (result.radius > 0.93 * distance).all()
    flat = Smoothed(halfspace(), Uniform(1.0), batch_size=4096).certify_fixed(points(0.3, -0.7, 0.9), samples=20_000)
    assert (flat.radius < torch.tensor([0.3, 0.7, 0.9])).all()
    assert (flat.radius > torch.tensor([0.3, 0.7, 0.9]) - 0.05).all()


def test_two_sided_bounds_prove_more_where_the_rest_is_shared_and_never_leave_the_truth():
    # Both others have probability 0.3 or so: nothing is left of one-sided bounds.
    smoothed = Smoothed(three_ways(), 1.8, batch_size=4096)
    x = points(0.0, 0.2)
    one, two = (smoothed.certify_fixed(x, two_sided=sides, samples=20_000, selection=1000) for sides in (False, True))
    assert one.abstained.all()
    assert two.prediction.tolist() == [1, 1]
    normal = stats.norm(0, 1.8)
    for row, value in enumerate((0.0, 0.2)):
        first = normal.cdf(1 - value) - normal.cdf(-1 - value)
        second = normal.sf(1 - value)
        truth = 0.9 * (stats.norm.ppf(first) - stats.norm.ppf(second))
        assert 0 < two.radius[row].item() < truth
        assert two.radius[row].item() > truth - 0.1


# The sequential procedure.


def test_a_grid_gives_the_largest_radius_below_the_truth_for_a_fraction_of_the_samples():
    x = points(0.1, 0.4, 0.6, 1.4, -0.85)
    smoothed = Smoothed(halfspace(), 0.5, batch_size=4096)
    result = smoothed.certify(x, torch.tensor([1, 1, 1, 0, 0]), samples=20_000)
    assert result.radius.tolist() == [0.0, 0.25, 0.5, 1.25, 0.75]
    assert result.prediction.tolist() == [1, 1, 1, 1, 0]
    assert result.radii == tuple(0.25 * i for i in range(7))
    assert result.forwards == int(result.samples.sum()) < 0.5 * 5 * 20_100
    assert not result.exhausted.any()
    assert result.limit == 20_100
    assert result.certified_accuracy(0.25) == pytest.approx(3 / 5)
    assert result.curve()[:3] == ((0.0, 0.8), (0.25, 0.6), (0.5, 0.4))
    assert result.average_certified_radius == pytest.approx((0 + 0.25 + 0.5 + 0.75) / 5)


def test_fewer_radii_cost_less():
    x = points(0.4, 0.6, 1.4, 1.6)
    smoothed = Smoothed(halfspace(), 0.5, batch_size=4096)
    grid = smoothed.certify(x, samples=20_000)
    one = smoothed.certify(x, radii=0.25, samples=20_000)
    assert one.radius.tolist() == [0.25] * 4
    assert one.forwards < 0.3 * grid.forwards
    far = smoothed.certify(x, radii=[1.0], samples=20_000)
    assert far.prediction.tolist() == [-1, -1, 1, 1]
    assert far.abstained.tolist() == [True, True, False, False]


@pytest.mark.parametrize("noise", [Gaussian(0.5), Uniform(1.0)])
def test_no_more_than_alpha_of_the_certificates_are_false(noise):
    """10,000 examples, each the hardest one: at a distance that is asked about, so that any claim of it is false."""
    x = points(*[0.5] * RUNS)
    smoothed = Smoothed(halfspace(), noise, batch_size=1 << 12, seed=7)
    result = smoothed.certify(x, radii=(0.0, 0.5), samples=200, selection=5, alpha=0.05)
    false = int(((result.radius >= 0.5) | (result.prediction == 0)).sum())
    assert stats.binom.sf(false - 1, RUNS, 0.05) > 1e-6
    assert false > 0.01 * RUNS  # the check has something to see
    fixed = smoothed.certify_fixed(x, samples=100, selection=5, alpha=0.05)
    false = int((fixed.radius > 0.5).sum())
    assert stats.binom.sf(false - 1, RUNS, 0.05) > 1e-6
    assert false > 0.01 * RUNS


def test_no_more_than_alpha_of_two_sided_certificates_and_of_predictions_are_false():
    smoothed = Smoothed(three_ways(), 1.8, batch_size=1 << 12, seed=11)
    value = 0.3
    normal = stats.norm(value, 1.8)
    mass = [normal.cdf(-1), normal.cdf(1) - normal.cdf(-1), normal.sf(1)]
    order = sorted(range(3), key=lambda k: mass[k])
    truth = 0.9 * (stats.norm.ppf(mass[order[2]]) - stats.norm.ppf(mass[order[1]]))
    x = points(*[value] * RUNS)
    result = smoothed.certify_fixed(x, two_sided=True, samples=100, selection=20, alpha=0.05)
    wrong_class = ~result.abstained & (result.prediction != order[2])
    false = int((wrong_class | (result.radius > truth)).sum())
    assert stats.binom.sf(false - 1, RUNS, 0.05) > 1e-6
    prediction = smoothed.predict(x, samples=100, alpha=0.05).prediction
    false = int(((prediction != -1) & (prediction != order[2])).sum())
    assert stats.binom.sf(false - 1, RUNS, 0.05) > 1e-6


# Answers that name no class.


class Failing(torch.nn.Module):
    """Class 1, but no class at all below a threshold: ``bad`` in place of logits."""

    def __init__(self, below: float, bad: tuple[float, float, float]) -> None:
        super().__init__()
        self.below, self.bad = below, torch.tensor(bad, dtype=torch.float64)

    def forward(self, x):
        return torch.where(x < self.below, self.bad, torch.tensor([0.0, 5.0, 1.0], dtype=torch.float64))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("bad", [(NAN, NAN, NAN), (1, NAN, 0), (0, 9, NAN), (INF, INF, 0), (-INF, -INF, -INF)])
def test_answers_that_are_nan_count_against_whatever_is_certified(bad):
    x, y = torch.tensor([[-9.0], [-0.2], [0.2], [0.8], [9.0]]), torch.tensor([0, 0, 1, 1, 1])
    smoothed = Smoothed(Failing(0.0, bad), 0.5, batch_size=1024)
    fixed, grid = smoothed.certify_fixed(x, y, samples=5000), smoothed.certify(x, y, samples=5000)
    two = smoothed.certify_fixed(x, y, samples=5000, two_sided=True)
    for result in (fixed, grid, two):
        assert result.prediction.tolist() == [-1, -1, 1, 1, 1]
        assert result.radius[:2].tolist() == [0, 0]
        assert result.radius[2] <= 0.2  # a half space, since what is missing is no class's
        assert result.radius[3] <= 0.8
        assert result.certified_accuracy(0) == 0.6
    predicted = smoothed.predict(x, samples=5000)
    assert predicted.prediction.tolist() == [-1, -1, 1, 1, 1]
    assert predicted.votes[0].tolist() == [0, 0, 0]
    assert predicted.votes[4].tolist() == [0, 5000, 0]
    assert predicted.votes.shape == (5, 3)


def test_equal_finite_logits_are_the_first_class_as_everywhere():
    constant = linear(torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    assert Smoothed(constant, 0.5).predict(points(0.5), samples=100).votes.tolist() == [[100, 0, 0]]


# What a result depends on, and what is left behind.


@pytest.mark.parametrize("procedure", ["certify", "certify_fixed"])
def test_batches_order_and_company_change_nothing(procedure):
    model, x = random_linear(6, 4, seed=2), uniform(12, 6, dtype=torch.float64)
    whole = getattr(Smoothed(model, 0.1, batch_size=64), procedure)(x, samples=500)
    index = torch.tensor([7, 2, 10])
    part = getattr(Smoothed(model, 0.1, batch_size=7), procedure)(x[index], samples=500, index=index)
    assert part.index.tolist() == index.tolist()
    for name in ("prediction", "radius", "samples"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[index])
    other = getattr(Smoothed(model, 0.1, seed=1), procedure)(x, samples=500)
    assert not torch.equal(other.radius, whole.radius) or not torch.equal(other.samples, whole.samples)


def test_no_call_sees_more_than_a_batch():
    sizes = []
    model = mlp()
    model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    result = Smoothed(model, 0.25, batch_size=12).certify_fixed(uniform(3, 6), samples=50, selection=10)
    assert max(sizes) == 12
    assert result.forwards == 3 * 60


def test_every_vote_has_noise_of_its_own_and_those_that_choose_are_not_those_that_count():
    seen = []
    model = random_linear(6, 4)
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))
    x = uniform(1, 6, dtype=torch.float64).expand(3, -1)
    Smoothed(model, 0.25, batch_size=12).certify_fixed(x, samples=48, selection=12)
    # The first calls look whether rows depend on one another.
    votes = torch.cat(seen[-15:])
    assert len(votes) == len(votes.unique(dim=0)) == 3 * 60


def test_the_model_and_the_global_generator_are_left_as_they_were():
    model = Moody()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.random.get_rng_state()
    Smoothed(model, 0.25).certify(uniform(4, 6), samples=100, selection=10)
    Smoothed(model, 0.25).predict(uniform(4, 6), samples=50)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_normalisation_comes_after_the_noise():
    scaled = linear(torch.tensor([[-3.0], [3.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    plain = Smoothed(halfspace(), 0.5).certify_fixed(points(0.4), samples=500)
    shifted = Smoothed(scaled, 0.5, mean=(0.0,), std=(3.0,)).certify_fixed(points(0.4), samples=500)
    assert torch.equal(plain.radius, shifted.radius)


def test_prediction_abstains_between_two_classes():
    predicted = Smoothed(halfspace(), 0.5).predict(points(0.0, 0.5, -0.5), samples=500)
    assert predicted.prediction.tolist() == [-1, 1, 0]
    assert predicted.votes.sum(1).tolist() == [500] * 3
    assert predicted.votes.dtype == torch.int64


def test_results_are_plain_data():
    smoothed = Smoothed(halfspace(), 0.5)
    labelled = smoothed.certify(points(0.0, 1.0), torch.tensor([0, 1]), samples=200).to_dict()
    assert json.loads(json.dumps(labelled)) == labelled
    assert labelled["abstained"] == 1
    assert labelled["procedure"] == "sequential"
    bare = smoothed.certify_fixed(points(0.0, 1.0), samples=200)
    assert "curve" not in bare.to_dict()
    assert bare.to_dict()["radii"] is None
    with pytest.raises(SettingError, match="labels"):
        _ = bare.correct
    json.dumps(smoothed.predict(points(1.0), samples=10).to_dict())


def test_what_makes_no_sense_is_refused_in_one_line():
    smoothed, x = Smoothed(halfspace(), 0.5), points(0.5)
    for wrong, says in (
        (lambda: Smoothed(halfspace(), 0.0), "sigma"),
        (lambda: Uniform(-1.0), "width"),
        (lambda: smoothed.certify(x, samples=0), "samples"),
        (lambda: smoothed.certify(x, selection=0), "selection"),
        (lambda: smoothed.certify(x, alpha=1.0), "alpha"),
        (lambda: smoothed.certify(x, radii=2.0, samples=1000), "1.232"),
        (lambda: smoothed.certify(x, radii=-0.5), "radii"),
        (lambda: smoothed.certify(x, radii=[]), "none"),
    ):
        with pytest.raises(SettingError, match=says) as error:
            wrong()
        assert "\n" not in str(error.value)
    for wrong, says in (
        (lambda: Smoothed(halfspace(), math.nan), "sigma"),
        (lambda: Smoothed(halfspace(), 10**400), "sigma"),
        (lambda: Smoothed(halfspace(), "0.5"), "sigma"),
        (lambda: smoothed.certify(x, samples=2.5), "whole number"),
        (lambda: smoothed.certify(x, samples=2**32), "samples"),
        (lambda: smoothed.certify(x, alpha=math.nan), "alpha"),
        (lambda: smoothed.certify(x, alpha="0.1"), "alpha"),
        (lambda: smoothed.certify(x, radii=0.5, samples=2), "2 samples at alpha 0.001 cannot prove any radius"),
        (lambda: smoothed.certify(x, radii=math.nan), "radii"),
        (lambda: smoothed.largest_radius(0), "samples"),
    ):
        with pytest.raises(SettingError, match=says) as error:
            wrong()
        assert "\n" not in str(error.value)
    for bad in (math.nan, math.inf):
        with pytest.raises(DataError, match="finite"):
            smoothed.certify_fixed(points(0.5, bad), samples=10)
    with pytest.raises(DataError, match="too large"):
        Smoothed(halfspace(), 1e-300).certify(points(1e20), samples=10)
    for index in (-1, 2**32):
        with pytest.raises(DataError, match="index"):
            smoothed.certify(x, index=torch.tensor([index]))
    with pytest.raises(DataError, match="no examples"):
        smoothed.certify(x[:0])
    with pytest.raises(DataError, match="y: shape"):
        smoothed.certify(x, torch.tensor([1, 1]))
    with pytest.raises(ModelError):
        Smoothed(torch.nn.Unflatten(1, (1, 1)), 0.5).certify(x, samples=100)


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 9])
def test_so_few_samples_prove_nothing(samples):
    smoothed = Smoothed(halfspace(), 0.5)
    for result in (
        smoothed.certify(points(0.5, 9.0), samples=samples),
        smoothed.certify(points(0.5, 9.0), samples=samples, radii=0),
        smoothed.certify_fixed(points(0.5, 9.0), samples=samples),
        smoothed.certify_fixed(points(0.5, 9.0), samples=samples, two_sided=True),
    ):
        assert result.prediction.tolist() == [-1, -1]
        assert result.radius.tolist() == [0, 0]
    assert smoothed.largest_radius(samples) == 0


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 1 - 2.0**-53])
@pytest.mark.parametrize("scale", [1e-30, 1e300])
@pytest.mark.parametrize("make", [Gaussian, Uniform])
def test_extreme_settings_give_finite_radii_in_reasonable_time(make, scale, alpha):
    smoothed = Smoothed(halfspace(), make(scale))
    x = scale * points(0.0, 1.0)
    grid, fixed = (getattr(smoothed, name)(x, samples=500, alpha=alpha) for name in ("certify", "certify_fixed"))
    for result in (grid, fixed):
        assert result.radius.isfinite().all()
        assert (result.radius >= 0).all()
    assert len(grid.radii) <= 257
    assert 0 <= smoothed.largest_radius(500, alpha) < math.inf


def test_numbers_of_other_kinds_are_numbers():
    expected = Smoothed(halfspace(), 0.5).certify(points(0.4), samples=200).radius
    for noise, samples in ((np.float32(0.5), np.int64(200)), (Fraction(1, 2), 200)):
        got = Smoothed(halfspace(), noise).certify(points(0.4), radii=np.float64(0.25), samples=samples)
        assert got.radius.tolist() == expected.tolist() == [0.25]
