"""A model as a user names it: where it comes from, and how it is read and asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import SettingError
from holdfast.files import writable_name
from holdfast.models.estimators.estimator import Classifier
from holdfast.models.load import load_model
from holdfast.models.one_logit import OneLogit
from holdfast.models.query import Query, channel_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

__all__ = ["Model"]


@dataclass(frozen=True)
class Model:
    """A model, and how it is read and asked.

    Parameters
    ----------
    source : nn.Module, estimator, str or Path
        A module that maps ``(N, ...)`` inputs to ``(N, K)`` logits, a fitted classifier or pipeline of scikit-learn, or
        what :func:`holdfast.load_model` reads. A single output is read as one logit of two classes.
    weights : path, optional
        Weights to load into the model.
    weights_key : str, optional
        The key of that file under which they lie, where it holds several state dicts that fit.
    trust : bool
        That code may run which a ``.pt2`` file carries or the folder of a training run names; see
        :func:`holdfast.load_model`.
    sizes : mapping, optional
        The sizes of dimensions that an ONNX file leaves free, by their names or places in its input's shape.
    positive : int, optional
        Of a model with one logit, the class where it is positive: 1 unless it is told otherwise.
    mean, std : sequence of float, optional
        A normalisation to put before the model, so that budgets mean raw inputs.
    """

    source: Any
    weights: str | Path | None = None
    weights_key: str | None = None
    trust: bool = False
    sizes: Mapping[str, int] | None = None
    positive: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @classmethod
    def of(cls, model: Any) -> Model:
        """What a user gave as a model."""
        return model if isinstance(model, Model) else cls(model)

    @property
    def name(self) -> str:
        """What results call it."""
        return writable_name(str(self.source)) if isinstance(self.source, str | Path) else type(self.source).__name__

    @property
    def is_named(self) -> bool:
        """Whether it has to be loaded."""
        return isinstance(self.source, str | Path)

    @property
    def normalisation(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """The mean and the scale.

        Raises
        ------
        SettingError
            When they are no lists of numbers.
        """
        return channel_numbers("mean", self.mean), channel_numbers("std", self.std)

    def load(self, shape: tuple[int, ...] | None = None, columns: Sequence[str] | None = None) -> nn.Module:
        """The module, for inputs of a shape, whose features the data call ``columns``.

        Raises
        ------
        HoldfastError
            When there is none; see :func:`holdfast.load_model`.
        """
        module = load_model(
            self.source,
            self.weights,
            weights_key=self.weights_key,
            trust=self.trust,
            shape=shape,
            sizes=self.sizes,
            columns=columns,
        )
        if isinstance(module, Classifier) and (self.mean, self.std, self.positive) != (None, None, None):
            raise SettingError(
                "mean, std, positive: a classifier of scikit-learn knows its classes, and has its scaler in a "
                "pipeline; leave them out"
            )
        return module if self.positive is None else OneLogit(module, self.positive)

    def query(self, module: nn.Module, seed: int, batch_size: int | None = None) -> Query:
        """The door to the module that was loaded."""
        mean, std = self.normalisation
        return Query(module, mean=mean, std=std, batch_size=batch_size, seed=seed)
