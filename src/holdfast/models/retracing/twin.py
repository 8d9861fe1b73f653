"""A model that runs as it is and is differentiated by what was seen of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from holdfast.models.retracing.ledger import anchored
from holdfast.models.retracing.recorder import Recorder, follow

if TYPE_CHECKING:
    from holdfast.models.retracing.sites import Plan

__all__ = ["Twin"]


class Twin(nn.Module):
    """A model that is run without autograd and differentiated by what was seen of it.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` to ``(N, K)``.
    plan : dict
        Which derivatives are replaced.
    dtype : torch.dtype
        The least precise type in which derivatives are worked out.
    strict : bool
        Whether derivatives are all the true ones.
    relaxed : bool
        Whether outputs are those of the smooth operations that stand in for others, and not the model's own.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, dtype: torch.dtype, strict: bool = False, relaxed: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self._plan, self._dtype, self._strict, self._relaxed = plan, dtype, strict, relaxed

    def forward(self, x: Tensor) -> Tensor:
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if not differentiated and not self._relaxed:
            answer: Tensor = self.model(x)
            return answer
        recorder = Recorder(self.model, self._plan, self._dtype, self._strict, self._relaxed)
        with torch.inference_mode(False), torch.enable_grad():
            followed = x if differentiated else x.clone().requires_grad_(True)
            answer, number = follow(self.model, followed, recorder)
            if number is None:
                return answer
            number = number.to(answer.dtype)
            found = number if self._relaxed else anchored(number, answer)
        return found if differentiated else found.detach()
