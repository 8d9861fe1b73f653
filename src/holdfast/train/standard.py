"""Ordinary training."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["Standard"]


@dataclass(frozen=True)
class Standard:
    """Mean cross-entropy of the clean batch. A step costs a forward and a backward pass.

    Parameters
    ----------
    temperature : float
        What logits are divided by while training, as the teacher of :class:`Distillation` needs it.

    Raises
    ------
    SettingError
        When it is not positive.
    """

    temperature: float = 1.0
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "clean"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise SettingError(f"standard: temperature must be positive, got {self.temperature}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return x

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.cross_entropy(model(x_adv) / self.temperature, y).mean()
