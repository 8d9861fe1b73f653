"""Training with a penalty on the dual norm of the input gradient."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from holdfast.models.query import Query
from holdfast.threats import Ball
from holdfast.threats.needs import needs_ball
from holdfast.train.method import Criterion
from holdfast.train.step import Step

__all__ = ["GradientPenalty"]


@dataclass(frozen=True)
class GradientPenalty:
    """Mean of ``loss + eps * ||grad_x loss||_q`` at clean inputs, ``q`` the norm dual to that of the threat.

    The robust loss ``max_{||z||_p <= eps} loss(f(x + z), y)`` to first order in ``eps``, without the box:
    Simon-Gabriel, Ollivier, Bottou, Schölkopf and Lopez-Paz, "First-order adversarial vulnerability of neural networks
    and input dimension", ICML 2019, arXiv:1802.01421, section 2. In L2 it is the penalty of Drucker and LeCun (IEEE
    Transactions on Neural Networks, 1992) without the square. Under batch normalisation the gradient is that of the
    batch's summed loss, since examples share statistics. All of it is computed in the precision of the parameters,
    whatever that of the training.

    A step costs a forward pass and 2 backward passes, the second through the first as well.

    Parameters
    ----------
    threat : Ball
        The set to be robust against.
    """

    threat: Ball
    replays: ClassVar[int] = 1
    judged_by: ClassVar[Criterion] = "robust"

    def __post_init__(self) -> None:
        needs_ball("gradient-penalty", self.threat, "worst-of-k")

    def perturb(self, query: Query, x: Tensor, y: Tensor, step: Step) -> Tensor:
        return x

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = step.around(self.threat, x)
        inputs = x_adv.detach().requires_grad_()
        with torch.autocast(x.device.type, enabled=False):
            values = step.cross_entropy(model(inputs), y)
            (grad,) = torch.autograd.grad(values.sum(), inputs, create_graph=True)
            return (values + threat.budget(x) * threat.dual_norm(grad)).mean()
