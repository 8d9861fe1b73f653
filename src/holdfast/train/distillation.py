"""Defensive distillation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["Distillation"]


@dataclass(frozen=True)
class Distillation:
    """Mean cross-entropy of a student at a temperature against what its teacher says at the same temperature.

    Papernot, McDaniel, Wu, Jha and Swami, "Distillation as a defense to adversarial perturbations against deep neural
    networks", IEEE S&P 2016, arXiv:1511.04508, section III. The teacher, of the same architecture, is first trained by
    ``Standard(temperature=...)``, and the student is deployed without the temperature.

    It is a defence that does not defend (Carlini and Wagner, IEEE S&P 2017, arXiv:1608.04644): the student's logits
    grow by the temperature until its softmax is 0 and 1 and the cross-entropy has no gradient, which stops attacks that
    follow that gradient. Attacks on the margin of the logits do not notice. It is here to be caught by audits.

    A step costs a forward and a backward pass, and a forward pass of the teacher, which is held in evaluation mode.

    Parameters
    ----------
    teacher : nn.Module
        Maps inputs to logits.
    temperature : float
        What logits are divided by.

    Raises
    ------
    SettingError
        When the temperature is not positive.
    """

    teacher: nn.Module
    temperature: float = 20.0
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "clean"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise SettingError(f"distillation: temperature must be positive, got {self.temperature}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return x

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        with Query(self.teacher, batch_size=len(x)) as teacher:
            soft = (teacher.logits(x) / self.temperature).softmax(1).to(x)
        return step.cross_entropy(model(x_adv) / self.temperature, soft).mean()
