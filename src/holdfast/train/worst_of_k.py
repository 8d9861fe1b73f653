"""Training on the worst of some random choices."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from holdfast.attacks.worst_of_k import worst_of
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy
from holdfast.threats import Threat
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["WorstOfKTraining"]

# Where its random numbers begin: each choice has a stage of its own, beyond those that others draw from.
_STAGE = 1000


@dataclass(frozen=True)
class WorstOfKTraining:
    """Cross-entropy at the worst of ``k`` random choices, in any set that there is.

    Engstrom, Tran, Tsipras, Schmidt and Madry, "Exploring the landscape of spatial robustness", ICML 2019,
    arXiv:1712.02779, section 4.2 ("worst-of-10" for rotations and translations). With ``k = 1`` it is augmentation by
    random choices.

    Parameters
    ----------
    threat : Threat
        What is trained against.
    k : int
        Choices that are looked at, an example and step; a forward pass each.

    Raises
    ------
    SettingError
        When ``k`` is not positive.
    """

    threat: Threat
    k: int = 10
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SettingError(f"worst-of-k: k must be positive, got {self.k}")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat, draws = step.around(self.threat, x), step.draws(_STAGE)
        if self.k == 1:
            return threat.apply(x, threat.sample(x, draws))
        return threat.apply(x, worst_of(query, threat, x, draws, partial(cross_entropy, y=y), self.k))

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        return step.cross_entropy(model(x_adv), y).mean()
