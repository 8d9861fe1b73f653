"""Randomised smoothing: a classifier that votes under noise, and the radius within which the vote cannot change.

Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019: PREDICT and
CERTIFY of section 3.2 are :meth:`Smoothed.predict` and :meth:`Smoothed.certify_fixed`. :meth:`Smoothed.certify` states
the same at the same confidence, for the radii that are asked about, and stops as soon as it can.

What is certified is the program: the class that the base classifier, in its floating-point arithmetic, names most often
under the noise that is drawn here, in its own. That law is within ``t = noise.deviation(features)`` of the one in the
noise's theorem, in total variation, at every input. So bounds of probabilities are relaxed by ``3 t``. Consider a
classifier that tosses a coin first and, with probability ``2 t``, names another class than the one to be certified:
under the law of the theorem the certified class has at least ``(1 - 2 t) (lower - t) >= lower - 3 t`` there, any other
at most ``(1 - 2 t) (upper + t) + 2 t <= upper + 3 t``. If within a radius the first stays ahead, its lead without the
coin exceeds ``2 t``, and is one under the program's law too.

The base classifier must be a function of its input: one that looks at the other rows of its batch is not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.arguments import as_float, as_list, counts, inputs, is_number, module_of, real, seed_of, whole, yes_or_no
from holdfast.certify.smoothing.confidence import lower_bound, tie_probability, upper_bound
from holdfast.certify.smoothing.noise import Gaussian, Noise
from holdfast.certify.smoothing.result import ABSTAINED, SmoothingResult
from holdfast.certify.smoothing.sequential import plan
from holdfast.certify.smoothing.votes import checked_index, count_votes
from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.models import Query

__all__ = ["Smoothed", "SmoothedPrediction"]

# The samples that choose a class must not be those that bound its probability.
_SELECTION, _ESTIMATION = 0, 1

# Of three sums of numbers up to 1.
_ROUNDED = 2.0**-52

# The most radii of the default grid.
_GRID = 256

# The random generator numbers draws with words of 32 bits.
_MOST_VOTES = 2**32 - 1


@dataclass(frozen=True, eq=False)
class SmoothedPrediction:
    """Classes of a smoothed classifier, each other than its true one with probability at most ``alpha``.

    Parameters
    ----------
    alpha : float
        The chance of error.
    prediction : Tensor
        ``(N,)`` int64, -1 where the votes do not tell the first class from the second, or name none: it abstained.
    votes : Tensor
        ``(N, K)`` int64; votes that name no class, being NaN, are missing.
    """

    alpha: float
    prediction: Tensor
    votes: Tensor

    def to_dict(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "prediction": self.prediction.tolist(), "votes": self.votes.tolist()}


class Smoothed:
    """The classifier that answers as ``model`` does most often when noise is added to its input.

    The model is asked through :class:`holdfast.models.Query`, in evaluation mode, and is left as it was. Noise depends
    on seed, example and draw alone.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, K)`` logits; best trained under the same noise.
    noise : float or Noise
        ``sigma`` of Gaussian noise, or what :mod:`holdfast.certify` offers besides: uniform noise, random ablation,
        random deletion.
    mean, std : tuple of float, optional
        A normalisation to put between noise and model, a number a channel.
    batch_size : int, optional
        Rows a call.
    seed : int
        The noise's seed.

    Raises
    ------
    SettingError
        When the noise has no positive scale, or is none of which samples prove a radius.
    """

    def __init__(
        self,
        model: nn.Module,
        noise: float | Noise,
        *,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.noise: Noise = noise if isinstance(noise, Noise) else Gaussian(noise)
        self.seed = seed_of(seed)
        self._model = module_of(model)
        self._mean, self._std, self._batch_size = mean, std, batch_size

    def predict(
        self, x: Tensor, *, samples: int = 1000, alpha: float = 0.001, index: Tensor | None = None
    ) -> SmoothedPrediction:
        """The most frequent classes (PREDICT).

        Parameters
        ----------
        x : Tensor
            ``(N, ...)`` inputs.
        samples : int
            Votes an example.
        alpha : float
            The chance that an answer is not the smoothed classifier's.
        index : Tensor, optional
            ``(N,)`` int64 positions in the data set, which noise depends on; 0 to N - 1 by default.

        Raises
        ------
        SettingError
            When ``samples`` or ``alpha`` make no sense.
        DataError
            When there are no examples.
        """
        alpha, samples = _chance(alpha), _votes("samples", samples)
        x = inputs(x)
        with self._query() as query:
            rng = Draws(self.seed, checked_index(x, None, index), _ESTIMATION)
            votes = count_votes(query, self.noise, x, rng, torch.arange(len(x)), 0, samples)
        top, classes = votes.topk(2, dim=1), votes[:, :-1]
        sure = tie_probability(top.values[:, 0], top.values[:, 1]) <= alpha
        named = top.indices[:, 0] < classes.shape[1]
        return SmoothedPrediction(alpha, torch.where(sure & named, top.indices[:, 0], ABSTAINED), classes)

    def certify(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        radii: float | Sequence[float] | None = None,
        samples: int = 100_000,
        selection: int = 100,
        alpha: float = 0.001,
        index: Tensor | None = None,
    ) -> SmoothingResult:
        """Which of some radii are certified, with no more samples than it takes to know.

        Parameters
        ----------
        x : Tensor
            ``(N, ...)`` inputs.
        y : Tensor, optional
            ``(N,)`` labels, for accuracies; no certificate depends on them.
        radii : float or sequence of float, optional
            What is asked: the largest of these radii that is certified. By default a grid with the noise's step, 0.25
            or one feature, as far as ``samples`` can reach. The fewer, the cheaper.
        samples : int
            The most that an example may cost, after the choice of its class.
        selection : int
            Samples that choose the class.
        alpha : float
            The chance that an example's statement is false.
        index : Tensor, optional
            ``(N,)`` int64 positions in the data set, which noise depends on; 0 to N - 1 by default.

        Raises
        ------
        SettingError
            When a radius is negative or beyond what ``samples`` can prove, or ``samples``, ``selection`` or ``alpha``
            make no sense.
        DataError
            When there are no examples, or labels or positions are not one for each.
        ModelError
            When the model does not answer with logits.
        """
        alpha, samples, selection = _chance(alpha), _votes("samples", samples), _votes("selection", selection)
        x = inputs(x)
        y = None if y is None else counts(y, "y")
        index = checked_index(x, y, index)
        features = x[0].numel()
        asked = self._radii(radii, samples, alpha, features)
        slack = 3 * self.noise.deviation(features)
        thresholds = tuple(math.nextafter(self.noise.probability(radius) + slack, 2) for radius in asked)
        steps = plan(thresholds, samples, alpha)
        with self._query() as query:
            chosen = self._select(query, x, index, selection)
            rng = Draws(self.seed, index, _ESTIMATION)
            level, successes, used = torch.zeros(3, len(x), dtype=torch.int64)
            open_, start = torch.arange(len(x)), 0
            for look, stop in enumerate(steps.looks):
                votes = count_votes(query, self.noise, x, rng, open_, start, stop)
                successes[open_] += votes.gather(1, chosen[open_, None])[:, 0]
                used[open_] = stop
                level[open_], going = steps.judge(look, level[open_], successes[open_])
                open_, start = open_[going], stop
                if not len(open_):
                    break
        radius = torch.tensor((0.0, *asked), dtype=torch.float64)[level]
        prediction = torch.where(level > 0, chosen, ABSTAINED)
        return SmoothingResult(
            procedure="sequential",
            norm=self.noise.norm,
            alpha=alpha,
            radii=asked,
            index=index,
            prediction=prediction,
            radius=radius,
            samples=selection + used,
            limit=selection + samples,
            y=None if y is None else y.cpu(),
            forwards=query.forwards,
        )

    def certify_fixed(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        two_sided: bool = False,
        samples: int = 100_000,
        selection: int = 100,
        alpha: float = 0.001,
        index: Tensor | None = None,
    ) -> SmoothingResult:
        """The largest radius that a fixed number of samples proves (CERTIFY); every example costs all of them.

        Parameters
        ----------
        x, y, selection, alpha, index
            As for :meth:`certify`.
        two_sided : bool
            Bound the other classes' probabilities by votes as well, each of them, with half of alpha between them,
            rather than by what the first leaves. Pays where many classes share the rest.
        samples : int
            What an example costs, after the choice of its class.

        Raises
        ------
        SettingError, DataError, ModelError
            As for :meth:`certify`.
        """
        two_sided = yes_or_no("two_sided", two_sided)
        alpha, samples, selection = _chance(alpha), _votes("samples", samples), _votes("selection", selection)
        x = inputs(x)
        y = None if y is None else counts(y, "y")
        index = checked_index(x, y, index)
        with self._query() as query:
            chosen = self._select(query, x, index, selection)
            rng = Draws(self.seed, index, _ESTIMATION)
            votes = count_votes(query, self.noise, x, rng, torch.arange(len(x)), 0, samples)
        lower, upper = (
            _two_sided(votes, chosen, samples, alpha) if two_sided else _one_sided(votes, chosen, samples, alpha)
        )
        proved, radius = self._proved(lower, upper, x[0].numel())
        prediction = torch.where(proved, chosen, ABSTAINED)
        return SmoothingResult(
            procedure="fixed",
            norm=self.noise.norm,
            alpha=alpha,
            radii=None,
            index=index,
            prediction=prediction,
            radius=radius,
            samples=torch.full_like(index, selection + samples),
            limit=selection + samples,
            y=None if y is None else y.cpu(),
            forwards=query.forwards,
        )

    def largest_radius(self, samples: int = 100_000, alpha: float = 0.001, *, features: int = 1) -> float:
        """What is proved when every vote agrees: the most that so many samples can prove; 0 if that is nothing.

        Parameters
        ----------
        samples, alpha
            As for :meth:`certify_fixed`.
        features : int
            How many numbers an input has; each costs a little, see :meth:`Noise.deviation`.

        Raises
        ------
        SettingError
            When ``samples`` or ``alpha`` make no sense.
        """
        alpha, samples, features = (
            _chance(alpha),
            _votes("samples", samples),
            whole("features", features, 1, _MOST_VOTES),
        )
        lower = lower_bound(torch.tensor([samples]), samples, alpha)
        return float(self._proved(lower, 1 - lower, features)[1])

    def _query(self) -> Query:
        return Query(self._model, mean=self._mean, std=self._std, batch_size=self._batch_size, seed=self.seed)

    def _select(self, query: Query, x: Tensor, index: Tensor, samples: int) -> Tensor:
        rng = Draws(self.seed, index, _SELECTION)
        return count_votes(query, self.noise, x, rng, torch.arange(len(x)), 0, samples)[:, :-1].argmax(1)

    def _proved(self, lower: Tensor, upper: Tensor, features: int) -> tuple[Tensor, Tensor]:
        """Whether anything is proved by bounds of the program's probabilities, and ``(N,)`` the radii."""
        slack = 3 * self.noise.deviation(features) + _ROUNDED
        lower, upper = lower - slack, upper + slack
        proved = lower > upper
        radius = self.noise.radius(lower.clamp(0, 1), upper.clamp(0, 1))
        return proved, torch.where(proved, radius, 0.0).clamp_min(0)

    def _radii(
        self, radii: float | Sequence[float] | None, samples: int, alpha: float, features: int
    ) -> tuple[float, ...]:
        largest = self.largest_radius(samples, alpha, features=features)
        if radii is None:
            step = self.noise.step
            while largest / step > _GRID:
                step *= 2
            return tuple(i * step for i in range(int(largest / step) + 1))
        listed = [radii] if is_number(radii) else as_list(radii)
        if listed is None or not all(map(is_number, listed)):
            raise SettingError("radii: a number or a list of numbers is needed, such as (0.25, 0.5)")
        asked = tuple(sorted(set(map(as_float, listed))))
        if not asked or not all(0 <= radius <= largest for radius in asked):
            reach = f"prove radii from 0 to {largest:.4g}" if largest else "cannot prove any radius"
            raise SettingError(
                f"radii: {samples} samples at alpha {alpha:g} {reach}, got "
                f"{', '.join(f'{radius:g}' for radius in asked) or 'none'}; ask for less, or use more samples or noise"
            )
        return asked


def _one_sided(votes: Tensor, chosen: Tensor, samples: int, alpha: float) -> tuple[Tensor, Tensor]:
    """``(N,)`` a lower bound of the chosen class's probability, and what it leaves to the others."""
    lower = lower_bound(votes.gather(1, chosen[:, None])[:, 0], samples, alpha)
    return lower, 1 - lower


def _two_sided(votes: Tensor, chosen: Tensor, samples: int, alpha: float) -> tuple[Tensor, Tensor]:
    """``(N,)`` a lower bound of the chosen class's probability, and an upper one of all others', that of none included.

    Which class comes second is known from these votes alone, so that each of the others has to be bounded at its share
    of alpha; the bound of the one with most votes is then the largest.
    """
    lower, rest = _one_sided(votes, chosen, samples, alpha / 2)
    others = votes.scatter(1, chosen[:, None], 0).amax(1)
    return lower, torch.minimum(rest, upper_bound(others, samples, alpha / 2 / (votes.shape[1] - 1)))


def _chance(alpha: float) -> float:
    """A chance of error, when it is one."""
    chance = real("alpha", alpha)
    if chance >= 1:
        raise SettingError(f"alpha: a chance of error lies between 0 and 1, got {chance:g}")
    return chance


def _votes(name: str, count: int) -> int:
    """A number of votes that the random generator can tell apart."""
    return whole(name, count, 1, _MOST_VOTES)
