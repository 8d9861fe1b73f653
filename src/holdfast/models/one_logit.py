"""Binary classifiers with one output, as what everything else takes: two logits."""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from holdfast.arguments import shown
from holdfast.errors import ModelError, SettingError

__all__ = ["OneLogit", "is_one_logit"]


class OneLogit(nn.Module):
    """A binary classifier with one logit ``z``, as one with two: ``(0, z)``.

    Its cross-entropy is the binary cross-entropy of ``z``, its margin ``z`` or ``-z`` without rounding, and what is
    proved of it is proved of ``z``. Wherever holdfast takes a model, one with a single output is read like this by
    itself, as class 1 where the output is positive; wrap it where it is the other way round.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, 1)`` or ``(N,)``, without a final sigmoid.
    positive : int
        The class where the output is positive, 1 or 0; an output of exactly 0 is class 0.

    Raises
    ------
    SettingError
        When ``positive`` is neither 0 nor 1.
    ModelError
        When called, if the model does not return one floating point number an input.
    """

    def __init__(self, model: nn.Module, positive: int = 1) -> None:
        super().__init__()
        if not isinstance(positive, int | float | np.number) or positive not in (0, 1):
            raise SettingError(f"positive: the class where one output is positive is 0 or 1, got {shown(positive)}")
        self.model = model
        self.positive = int(positive)

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        if not is_one_logit(z, len(x)):
            what = f"a tensor of shape {tuple(z.shape)}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
            raise ModelError(
                f"the model returned {what} for {len(x)} inputs, not one logit (N, 1) each: to say which class is "
                "positive is for binary models with one output; leave it out"
            )
        return self.read(z)

    def read(self, z: Tensor) -> Tensor:
        """``(N, 2)`` logits from the model's output."""
        return functional.pad(z.reshape(-1, 1), (1, 0) if self.positive == 1 else (0, 1))

    def extra_repr(self) -> str:
        return f"positive={self.positive}"


def is_one_logit(output: object, rows: int) -> bool:
    """Whether a model's output is one floating point number for each of so many inputs, ``(N, 1)`` or ``(N,)``.

    A single input may have lost its dimension to a ``squeeze``.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.numel() != rows:
        return False
    return output.dim() < 2 or tuple(output.shape) == (rows, 1)
