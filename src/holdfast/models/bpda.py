"""Gradients for models with parts that have none."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from holdfast.errors import ModelError

__all__ = ["BPDA"]


class BPDA(nn.Module):
    """A part of a model that runs as it is and is differentiated as something else.

    Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", ICML 2018, arXiv:1802.00420,
    section 4.1 (backward pass differentiable approximation). Put it where the part stood, as in
    ``nn.Sequential(BPDA(quantise), net)``: outputs are those of the part bit for bit, and gradients those of the
    substitute at the same input.

    Parameters
    ----------
    forward : callable
        The part, which need not be differentiable, or a torch function at all.
    substitute : callable, optional
        A differentiable function close to it. Without one gradients go straight through, which suits parts that
        change their input little, such as quantisation, compression or denoising. Both get copies of their input.

    Raises
    ------
    ModelError
        When called, if part and substitute return tensors of different shape or type.
    """

    def __init__(
        self, forward: Callable[[Tensor], Tensor], substitute: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        # Modules among them become submodules, and are frozen, evaluated and moved with the rest of the model.
        self.part = forward
        self.substitute = substitute

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            exact = self.part(x.detach().clone())
        if not torch.is_grad_enabled():
            return exact
        smooth = x if self.substitute is None else self.substitute(x.clone())
        if (exact.shape, exact.dtype) != (smooth.shape, smooth.dtype):
            raise ModelError(
                f"bpda: the part returns {exact.dtype} {tuple(exact.shape)} and its substitute "
                f"{smooth.dtype} {tuple(smooth.shape)}: give a substitute that returns the like"
            )
        # The difference is 0 and has the gradient of the substitute.
        return exact + (smooth - smooth.detach())
