"""Proofs that a defended classifier makes of itself."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from holdfast.certify.certificate import APART, Certificate
from holdfast.certify.smoothing.defended import Defended
from holdfast.errors import SettingError
from holdfast.threats import Threat

__all__ = ["OWN", "OwnProver"]

# What users call proofs of this kind.
OWN = "own"


@dataclass(frozen=True, eq=False)
class OwnProver:
    """Asks the model itself, once; there is nothing to be searched afterwards.

    Parameters
    ----------
    defended : Defended
        The model.
    dtype : torch.dtype
        In which it computes.
    """

    defended: Defended
    dtype: torch.dtype
    graph: ClassVar[None] = None
    fault: ClassVar[str] = ""

    @classmethod
    def of(cls, model: nn.Module, threat: Threat, dtype: torch.dtype) -> Self:
        """For a model that proves something about a threat.

        Raises
        ------
        SettingError
            When it does not.
        """
        if not isinstance(model, Defended):
            raise SettingError(
                f"certify own: a {type(model).__name__} proves nothing of itself; wrap the classifier, normalisation "
                "included, in a defence such as DoublyMasked, or choose another method"
            )
        if reason := model.refuses(threat):
            raise SettingError(f"certify own: {reason}")
        return cls(model, dtype)

    def bound(self, x: Tensor, y: Tensor, threat: Threat) -> list[Certificate]:
        """What the model proves of ``N`` examples."""
        began = time.perf_counter()
        with torch.inference_mode():
            kept = self.defended.keeps(x.to(self.dtype), y, threat).tolist()
        seconds = (time.perf_counter() - began) / max(len(x), 1)
        proved = Certificate("certified", self.defended.procedure, None, None, seconds)
        opened = Certificate("undecided", self.defended.procedure, None, None, seconds, APART)
        return [proved if one else opened for one in kept]

    def prove(self, x: Tensor, y: Tensor, threat: Threat) -> Iterator[tuple[int, Certificate]]:
        """The same again."""
        return enumerate(self.bound(x, y, threat))
