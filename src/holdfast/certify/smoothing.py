"""Randomised smoothing: a classifier that votes under noise, and the radius within which the vote cannot change.

Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019: PREDICT and
CERTIFY of section 3.2 are :meth:`Smoothed.predict` and :meth:`Smoothed.certify_fixed`. :meth:`Smoothed.certify` states
the same at the same confidence, for the radii that are asked about, and stops as soon as it can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.certify.confidence import lower_bound, tie_probability, upper_bound
from holdfast.certify.noise import Gaussian, Noise
from holdfast.certify.sequential import plan
from holdfast.certify.smoothing_result import ABSTAINED, SmoothingResult
from holdfast.certify.votes import checked_index, count_votes
from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.models import Query

__all__ = ["Smoothed", "SmoothedPrediction"]

# The samples that choose a class must not be those that bound its probability.
_SELECTION, _ESTIMATION = 0, 1


@dataclass(frozen=True, eq=False)
class SmoothedPrediction:
    """Classes of a smoothed classifier, each other than its true one with probability at most ``alpha``.

    Parameters
    ----------
    alpha : float
        The chance of error.
    prediction : Tensor
        ``(N,)`` int64, -1 where the votes do not tell the first class from the second: it abstained.
    votes : Tensor
        ``(N, K)`` int64.
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
        When the noise has no positive scale.
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
        self.noise: Noise = Gaussian(noise) if isinstance(noise, int | float) else noise
        self.seed = seed
        self._model = model
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
        _check(alpha, samples=samples)
        with self._query() as query:
            rng = Draws(self.seed, checked_index(x, None, index), _ESTIMATION)
            votes = count_votes(query, self.noise, x, rng, torch.arange(len(x)), 0, samples)
        top = votes.topk(2, dim=1).values
        sure = tie_probability(top[:, 0], top[:, 1]) <= alpha
        return SmoothedPrediction(alpha, torch.where(sure, votes.argmax(1), ABSTAINED), votes)

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
        _check(alpha, samples=samples, selection=selection)
        asked = self._radii(radii, samples, alpha)
        steps = plan(tuple(self.noise.probability(radius) for radius in asked), samples, alpha)
        index = checked_index(x, y, index)
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
        _check(alpha, samples=samples, selection=selection)
        index = checked_index(x, y, index)
        with self._query() as query:
            chosen = self._select(query, x, index, selection)
            rng = Draws(self.seed, index, _ESTIMATION)
            votes = count_votes(query, self.noise, x, rng, torch.arange(len(x)), 0, samples)
        lower, upper = (
            _two_sided(votes, chosen, samples, alpha) if two_sided else _one_sided(votes, chosen, samples, alpha)
        )
        proved = lower > upper
        radius = torch.where(proved, self.noise.radius(lower, upper), 0.0)
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

    def largest_radius(self, samples: int = 100_000, alpha: float = 0.001) -> float:
        """What is proved when every vote agrees: the most that so many samples can prove."""
        all_agree = torch.tensor([alpha ** (1 / samples)], dtype=torch.float64)
        return float(self.noise.radius(all_agree, 1 - all_agree))

    def _query(self) -> Query:
        return Query(self._model, mean=self._mean, std=self._std, batch_size=self._batch_size, seed=self.seed)

    def _select(self, query: Query, x: Tensor, index: Tensor, samples: int) -> Tensor:
        rng = Draws(self.seed, index, _SELECTION)
        return count_votes(query, self.noise, x, rng, torch.arange(len(x)), 0, samples).argmax(1)

    def _radii(self, radii: float | Sequence[float] | None, samples: int, alpha: float) -> tuple[float, ...]:
        largest = self.largest_radius(samples, alpha)
        if radii is None:
            return tuple(i * self.noise.step for i in range(int(largest / self.noise.step) + 1))
        asked = tuple(sorted({float(r) for r in ([radii] if isinstance(radii, int | float) else radii)}))
        if not asked or not all(0 <= radius <= largest for radius in asked):
            raise SettingError(
                f"radii: {samples} samples at alpha {alpha:g} prove radii from 0 to {largest:.4g}, got "
                f"{', '.join(f'{radius:g}' for radius in asked) or 'none'}; ask for less, or use more samples or noise"
            )
        return asked


def _one_sided(votes: Tensor, chosen: Tensor, samples: int, alpha: float) -> tuple[Tensor, Tensor]:
    """``(N,)`` a lower bound of the chosen class's probability, and what it leaves to the others."""
    lower = lower_bound(votes.gather(1, chosen[:, None])[:, 0], samples, alpha)
    return lower, 1 - lower


def _two_sided(votes: Tensor, chosen: Tensor, samples: int, alpha: float) -> tuple[Tensor, Tensor]:
    """``(N,)`` a lower bound of the chosen class's probability, and an upper one of all others'.

    Which class comes second is known from these votes alone, so that each of the others has to be bounded at its share
    of alpha; the bound of the one with most votes is then the largest.
    """
    lower, rest = _one_sided(votes, chosen, samples, alpha / 2)
    others = votes.scatter(1, chosen[:, None], 0).amax(1)
    return lower, torch.minimum(rest, upper_bound(others, samples, alpha / 2 / (votes.shape[1] - 1)))


def _check(alpha: float, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise SettingError(f"{name}: at least 1 vote is needed, got {count}")
    if not 0 < alpha < 1:
        raise SettingError(f"alpha: a chance of error lies between 0 and 1, got {alpha:g}")
