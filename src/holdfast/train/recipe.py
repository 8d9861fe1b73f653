"""How long and how fast a model learns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from holdfast.errors import SettingError
from holdfast.settings import check

__all__ = ["Recipe"]

Optimizer = Literal["adam", "sgd"]
Schedule = Literal["triangular", "cosine", "steps", "constant"]
Precision = Literal["float32", "bf16"]
Augmentation = Literal["none", "crop-flip"]


@dataclass(frozen=True)
class Recipe:
    """Everything about a training run but the model, the data, the threat and the method.

    Parameters
    ----------
    epochs : int
        Passes over the training examples; a method that replays batches makes as many updates in fewer.
    batch_size : int
        Examples an update, of all processes together.
    optimizer : str
        ``"adam"`` (decoupled weight decay) or ``"sgd"`` (Nesterov momentum 0.9).
    lr : float
        The highest learning rate.
    schedule : str
        ``"triangular"``: up to ``lr`` until ``peak``, then down to 0; ``"cosine"``: down to 0 along a cosine;
        ``"steps"``: a tenth from half of the training on, a hundredth from three quarters on; ``"constant"``.
    peak : float
        The part of the training after which the triangle is highest.
    weight_decay : float
    warmup : float
        The part of the training over which budgets grow from 0 to the whole.
    reach : float
        The budget of training in units of the one that is to be withstood: a little above 1, robustness gains and clean
        accuracy loses.
    clip : float, optional
        The most that the norm of a gradient may be; longer ones are shortened to it.
    average : float, optional
        The decay an update of an exponential moving average of the weights, which then is what is judged and saved.
    label_smoothing : float
    precision : str
        ``"float32"``, or ``"bf16"`` for the passes of training; judgements are always made in float32.
    augmentation : str
        ``"none"``, or ``"crop-flip"``: shifts of up to 4 pixels and mirror images.
    validation : int
        How many training examples are held out, on which the best state is chosen; at most a fifth of them.
    guard : bool
        Whether a model that comes to withstand nothing but single steps is noticed, within some hundred updates, and
        mended: see :class:`holdfast.train.guard.Guard`.

    Raises
    ------
    SettingError
        A number outside its range, or a name that is not known.
    """

    epochs: int
    batch_size: int = 128
    optimizer: Optimizer = "adam"
    lr: float = 2e-3
    schedule: Schedule = "triangular"
    peak: float = 0.4
    weight_decay: float = 0.0
    warmup: float = 0.0
    reach: float = 1.0
    clip: float | None = None
    average: float | None = None
    label_smoothing: float = 0.0
    precision: Precision = "float32"
    augmentation: Augmentation = "none"
    validation: int = 1000
    guard: bool = True

    def __post_init__(self) -> None:
        check(self, "recipe")
        choices = {"optimizer": Optimizer, "schedule": Schedule, "precision": Precision, "augmentation": Augmentation}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise SettingError(f"{name}: {getattr(self, name)!r} is not known; choose one of {known}")
        ranges = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": 0 < self.lr < math.inf,
            "peak": 0 < self.peak < 1,
            "weight_decay": self.weight_decay >= 0,
            "warmup": 0 <= self.warmup <= 1,
            "reach": self.reach > 0,
            "clip": self.clip is None or self.clip > 0,
            "average": self.average is None or 0 < self.average < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "validation": self.validation >= 1,
        }
        for name, fits in ranges.items():
            if not fits:
                raise SettingError(f"{name}: {getattr(self, name)} is outside its range; see holdfast.train.Recipe")

    def rate(self, progress: float) -> float:
        """The learning rate when ``progress``, from 0 to 1, of the training is over."""
        if self.schedule == "triangular":
            return self.lr * min(progress / self.peak, (1 - progress) / (1 - self.peak))
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * progress)) / 2
        if self.schedule == "steps":
            return self.lr * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
        return self.lr

    def share(self, progress: float) -> float:
        """The part of budgets that is in force then."""
        return 1.0 if progress >= self.warmup else progress / self.warmup
