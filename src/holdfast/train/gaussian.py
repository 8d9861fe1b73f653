"""Training under Gaussian noise, for randomised smoothing."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["Gaussian"]


@dataclass(frozen=True)
class Gaussian:
    """Mean cross-entropy at ``x + N(0, sigma^2 I)``.

    Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019,
    arXiv:1902.02918, section 3.3. A network that is to be smoothed sees noise, so it learns from noise of the same
    ``sigma``; noisy inputs leave the box, as they do when they are certified. A step costs a forward and a backward
    pass.

    Parameters
    ----------
    sigma : float
        The noise's deviation, in units of the input.

    Raises
    ------
    SettingError
        When it is not positive.
    """

    sigma: float
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "clean"

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise SettingError(f"gaussian: sigma must be positive, got {self.sigma}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return x + self.sigma * step.normal(x)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.cross_entropy(model(x_adv), y).mean()
