"""A fitted classifier of scikit-learn, or a pipeline that ends with one, as a model that can be queried."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from holdfast.errors import ModelError
from holdfast.models.estimators.content import content
from holdfast.models.estimators.frames import Feed, feeder
from holdfast.models.estimators.translate import log_odds, translated
from holdfast.models.one_logit import OneLogit
from holdfast.models.trees import CONSTANT, ask
from holdfast.threats.numbers import type_of
from holdfast.words import number_of, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Classifier", "as_classifier", "is_estimator"]

Array = NDArray[np.float64]

# Where a written-out model is held against the estimator, and how far apart sums of another order may be.
_PROBES, _SCALES, _AGREEMENT = 8, (1.0, 100.0), 1e-9
_LEAST = float(np.finfo(np.float64).tiny)


class Classifier(nn.Module):
    """A fitted classifier as a module: ``(N, d)`` inputs in float64 to logits in float64, each row by itself.

    Make one with :func:`as_classifier`.

    Parameters
    ----------
    estimator : estimator
        As it was fitted.
    body : nn.Module
        What computes the logits ``(N, K)`` in the order of ``classes_``.
    feed : Feed
        Makes what the estimator takes of inputs.
    differentiable : bool
        Whether gradients reach the inputs: the estimator was written out in torch.
    """

    def __init__(self, estimator: Any, body: nn.Module, feed: Feed, *, differentiable: bool) -> None:
        super().__init__()
        self.estimator, self.body, self.feed, self.differentiable = estimator, body, feed, differentiable
        # Says in which precision it computes.
        self.register_buffer("unit", torch.ones((), dtype=torch.float64), persistent=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(map(str, np.asarray(self.estimator.classes_).tolist()))

    @property
    def kind(self) -> str:
        """What the estimator is, of a pipeline the last step."""
        return type_of(last_step(self.estimator))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits

    def check(self, x: Tensor, logits: Tensor, classes: Sequence[str] | None) -> None:
        """Hold its logits at inputs, and its classes, against the estimator's predictions and the data's classes.

        Raises
        ------
        ModelError
            When they differ.
        """
        if classes is not None and not _alike(self.classes, classes):
            raise ModelError(
                f"the model knows the classes {_listed(self.classes)}, but the data have {_listed(classes)}: give the "
                "labels that it was fitted to"
            )
        named = np.asarray(self.estimator.classes_)[logits.argmax(1).cpu().numpy()]
        predicted = np.asarray(ask(self.estimator.predict, self.feed(x.detach().cpu().double().numpy())))
        apart = np.flatnonzero(named != predicted)
        # Of two classes that tie, sums in another order may name either.
        top = logits.detach().topk(2, 1).values.cpu().numpy()[apart]
        if (top[:, 0] - top[:, 1] > _AGREEMENT * np.abs(top).max(initial=1.0)).any():
            raise ModelError(
                f"the {self.kind} predicts {predicted[apart[0]]} for an input whose highest score is that of "
                f"{named[apart[0]]}: nothing can be said of a predict that does not follow the scores"
            )

    def extra_repr(self) -> str:
        return f"{type_of(self.estimator)}, {content(self.estimator)}"


def is_estimator(value: object) -> bool:
    """Whether a value is an estimator of scikit-learn's kind."""
    return not isinstance(value, type) and hasattr(value, "predict") and hasattr(value, "get_params")


def as_classifier(estimator: Any, columns: Sequence[str] | None = None) -> Classifier:
    """Make a module of a fitted classifier of scikit-learn.

    Pipelines of scalers that end with a linear classifier, an ``MLPClassifier`` or a constant ``DummyClassifier`` are
    written out in torch, in the estimator's own steps and precision: there are gradients, and proofs. Any other
    classifier is asked for its ``decision_function``, its ``predict_proba`` (whose logarithm is the logits) or, where
    it has neither, its ``predict``, and has no gradients.

    Parameters
    ----------
    estimator : estimator or Pipeline
        Fitted, with ``classes_`` and ``predict``. It is kept, and never changed.
    columns : sequence of str, optional
        What the data call the features. A pipeline that was fitted to a table of the words themselves is given such
        a table, made again of the columns ``NAME=WORD``; that needs pandas.

    Returns
    -------
    Classifier
        The logits of two classes are 0 and the margin.

    Raises
    ------
    ModelError
        When it is no fitted classifier, knows fewer than two classes, answers several questions at once or at random,
        or was fitted to other columns.
    """
    if not is_estimator(estimator):
        raise ModelError(f"model: a {type_of(estimator)} is no classifier of scikit-learn")
    try:
        classes = estimator.classes_
    except AttributeError:
        raise ModelError(
            f"model: the {type_of(estimator)} is no fitted classifier: it has no classes_; call its fit first"
        ) from None
    if isinstance(classes, list) or np.ndim(classes) != 1:
        raise ModelError(f"model: the {type_of(estimator)} answers several questions at once: fit one for each")
    if len(classes) < 2:
        raise ModelError(f"model: the {type_of(estimator)} knows one class only: there is nothing to attack")
    if _guesses(last_step(estimator)):
        raise ModelError(
            f"model: a DummyClassifier of strategy {last_step(estimator).strategy!r} draws its answers at random: fit "
            f"one of {', '.join(CONSTANT)}"
        )
    feed = feeder(estimator, columns)
    if feed.plain and (body := translated(estimator)) is not None and _agree(estimator, body):
        return Classifier(estimator, body, feed, differentiable=True).eval()
    asked: nn.Module = _Asked(_scores(estimator, len(classes)), feed)
    return Classifier(estimator, OneLogit(asked) if len(classes) == 2 else asked, feed, differentiable=False).eval()


def last_step(estimator: Any) -> Any:
    """The classifier itself, without the steps of a pipeline before it."""
    return estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator


def _guesses(model: Any) -> bool:
    from sklearn.dummy import DummyClassifier

    return isinstance(model, DummyClassifier) and model.strategy not in CONSTANT


class _Asked(nn.Module):
    """Scores that are asked for outside of torch."""

    def __init__(self, scores: Callable[[Any], Array], feed: Callable[[Array], Any]) -> None:
        super().__init__()
        self.scores, self.feed = scores, feed

    def forward(self, x: Tensor) -> Tensor:
        try:
            scores = self.scores(self.feed(x.detach().cpu().double().numpy()))
        except ModelError:
            raise
        except Exception as error:  # an estimator may raise anything
            raise ModelError(f"the model failed on {len(x)} inputs: {reason(error)}") from error
        return torch.from_numpy(np.ascontiguousarray(scores, np.float64)).to(x.device)


def _scores(estimator: Any, classes: int) -> Callable[[Any], Array]:
    """``(N, K)`` scores, of two classes one margin, the largest of which is what the estimator predicts."""
    order = np.asarray(estimator.classes_)

    def chosen(rows: Any) -> NDArray[np.bool_]:
        return np.asarray(np.asarray(ask(estimator.predict, rows))[:, None] == order)

    # A score of votes between pairs of classes has another shape.
    if hasattr(estimator, "decision_function") and getattr(estimator, "decision_function_shape", "ovr") == "ovr":
        scores: Callable[[Any], Array] = partial(ask, estimator.decision_function)
    elif hasattr(estimator, "predict_proba"):
        scores = _log_odds_of(estimator)
    else:
        return lambda rows: _margins(np.where(chosen(rows), 1.0, -1.0))
    if _by_score(last_step(estimator), classes):
        return scores
    return lambda rows: _led(np.asarray(scores(rows), np.float64), chosen(rows))


def _log_odds_of(estimator: Any) -> Callable[[Any], Array]:
    return lambda rows: log_odds(np.asarray(ask(estimator.predict_proba, rows), np.float64))


def _by_score(model: Any, classes: int) -> bool:
    """Whether a classifier predicts its highest score: votes of pairs of classes, and thresholds, have another say."""
    voted = hasattr(model, "break_ties") and not model.break_ties and classes > 2
    return not (voted or hasattr(model, "best_threshold_") or hasattr(model, "threshold"))


def _led(scores: Array, chosen: NDArray[np.bool_]) -> Array:
    """Scores, of which the predicted class has the highest."""
    if scores.ndim == 1:
        right = np.where(chosen[:, 1], scores > 0, scores <= 0)
        return np.where(right, scores, np.where(chosen[:, 1], _LEAST, 0.0))
    lead = np.where(chosen, -np.inf, scores).max(1, keepdims=True)
    return np.where(chosen & (scores <= lead), np.nextafter(lead, np.inf), scores)


def _margins(scores: Array) -> Array:
    return scores[:, 1] if scores.shape[1] == 2 else scores


def _features(estimator: Any) -> int:
    """How many features it takes: of a pipeline, what the first step that changes anything does."""
    steps = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    return next(int(step.n_features_in_) for step in steps if hasattr(step, "n_features_in_"))


def _agree(estimator: Any, body: nn.Module) -> bool:
    """Whether a written-out model answers as the estimator does, near 0 and far from it."""
    rng = np.random.default_rng(0)
    for scale in _SCALES:
        x = scale * rng.normal(size=(_PROBES, _features(estimator)))
        with torch.no_grad():
            found = body(torch.from_numpy(x)).numpy()
        if len(estimator.classes_) == 2:
            found = found[:, 1]
        if not _same(found, estimator, x):
            return False
    return True


def _same(found: Array, estimator: Any, x: Array) -> bool:
    if hasattr(estimator, "decision_function"):
        given = np.asarray(ask(estimator.decision_function, x), np.float64)
        size = np.abs(given).max(initial=1.0)
    else:
        given = np.asarray(ask(estimator.predict_proba, x), np.float64)
        found = _softmax(found) if found.ndim == 2 else _softmax(np.stack([0 * found, found], 1))
        size = 1.0
    return given.shape == found.shape and bool(np.abs(given - found).max(initial=0.0) <= _AGREEMENT * size)


def _alike(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether names of classes are the same, numbers as numbers."""

    def plain(name: str) -> float | str:
        number = number_of(name)
        return name if number is None else number

    return list(map(plain, ours)) == list(map(plain, theirs))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _softmax(logits: Array) -> Array:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))
