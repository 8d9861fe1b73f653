"""Defences that move an input towards what clean examples look like.

Each is a module to put before a network, fitted to examples without any training that chance decides.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AntiAdversary", "Autoencoder", "Inverted", "Likelier", "Projected"]


class Projected(nn.Module):
    """The nearest input in the space of the first principal components (Bhagoji et al., CISS 2018)."""

    mean: Tensor
    basis: Tensor

    def __init__(self, examples: Tensor, components: int = 50) -> None:
        super().__init__()
        mean, basis = _principal(examples, components)
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)

    def forward(self, x: Tensor) -> Tensor:
        codes = (x.flatten(1) - self.mean) @ self.basis
        return (codes @ self.basis.T + self.mean).view_as(x)


class Autoencoder(nn.Module):
    """An autoencoder with one hidden layer of tanh units between linear ones (Meng and Chen, CCS 2017: MagNet).

    Its units see the principal components; its decoder is the least-squares fit.
    """

    encoder: Tensor
    mean: Tensor
    decoder: Tensor
    offset: Tensor

    def __init__(self, examples: Tensor, units: int = 80) -> None:
        super().__init__()
        flat = examples.flatten(1)
        mean, basis = _principal(examples, units)
        scale = ((flat - mean) @ basis).std(0).clamp_min(1e-3)
        self.register_buffer("mean", mean)
        self.register_buffer("encoder", basis / (2 * scale))
        hidden = ((flat - mean) @ self.encoder).tanh()
        middle = hidden.mean(0)
        self.register_buffer("decoder", _least_squares(hidden - middle, flat - mean))
        self.register_buffer("offset", mean - middle @ self.decoder)

    def forward(self, x: Tensor) -> Tensor:
        hidden = ((x.flatten(1) - self.mean) @ self.encoder).tanh()
        return (hidden @ self.decoder + self.offset).clamp(0, 1).view_as(x)


class Inverted(nn.Module):
    """What a generator makes of the code that comes nearest to the input (Samangouei et al., ICLR 2018: Defense-GAN).

    The generator is a logistic one on principal components; the code is found by gradient descent, worked out by hand
    and outside the graph, as defences of the kind do.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, examples: Tensor, components: int = 40, steps: int = 40) -> None:
        super().__init__()
        mean, basis = _principal(4 * examples - 2, components)
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.steps = steps

    def generate(self, codes: Tensor) -> Tensor:
        """``(N, D)`` flat inputs of ``(N, components)`` codes."""
        return (codes @ self.basis.T + self.mean).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.detach().flatten(1)
        codes = flat.new_zeros(len(flat), self.basis.shape[1])
        for _ in range(self.steps):
            made = self.generate(codes)
            codes = codes - 4 * ((made - flat) * made * (1 - made)) @ self.basis
        # That the answer hangs on the input at all is said with a factor of 0.
        return self.generate(codes).view_as(x) + 0 * x


class Likelier(nn.Module):
    """Every number moves to the commonest level within reach at its place (Song et al., ICLR 2018: PixelDefend)."""

    counts: Tensor

    def __init__(self, examples: Tensor, levels: int = 21, reach: int = 2) -> None:
        super().__init__()
        self.steps, self.reach = levels - 1, reach
        places = (examples.flatten(1) * self.steps).round().long().clamp(0, self.steps)
        counts = functional.one_hot(places, levels).sum(0).to(examples.dtype)
        # Where examples have nothing to tell, a number stays.
        self.register_buffer("counts", functional.pad(counts, (reach, reach), value=-1.0))

    def forward(self, x: Tensor) -> Tensor:
        level = (x.flatten(1) * self.steps).round().long().clamp(0, self.steps)
        moves = torch.arange(2 * self.reach + 1, device=x.device)
        place = torch.arange(level.shape[1], device=x.device).view(-1, 1)
        near = self.counts[place, level.unsqueeze(-1) + moves]
        near = near + 0.5 * (moves == self.reach)
        best = level + near.argmax(-1) - self.reach
        return (best.to(x.dtype) / self.steps).view_as(x) + 0 * x


class AntiAdversary(nn.Module):
    """Moves the input, before it answers, to where it is surer of its answer (Alfarra et al., AAAI 2022).

    The gradient that an attack sees takes no account of the move; Croce et al., ICML 2022, broke the kind.
    """

    def __init__(self, net: nn.Module, size: float = 0.15, steps: int = 2) -> None:
        super().__init__()
        self.net, self.size, self.steps = net, size, steps

    def forward(self, x: Tensor) -> Tensor:
        move = torch.zeros_like(x)
        with torch.inference_mode(False), torch.enable_grad():
            clean = x.detach().clone()
            answer = self.net(clean).argmax(1)
            for _ in range(self.steps):
                moved = (clean + move).requires_grad_()
                loss = functional.cross_entropy(self.net(moved), answer, reduction="sum")
                (slope,) = torch.autograd.grad(loss, moved)
                move = move.clone() - self.size / self.steps * slope.sign()
        logits: Tensor = self.net(x + move)
        return logits


def _principal(examples: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """``(D,)`` the mean, and ``(D, components)`` the first principal components or as many as there are."""
    flat = examples.flatten(1).double()
    mean = flat.mean(0)
    basis = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:components].T
    return mean.to(examples.dtype), basis.to(examples.dtype).contiguous()


def _least_squares(inputs: Tensor, outputs: Tensor, ridge: float = 1e-3) -> Tensor:
    """``(I, O)`` the linear map of least squares with a ridge, a share of the inputs' mean power."""
    inputs, wide = inputs.double(), outputs.double()
    power = inputs.T @ inputs
    power += ridge * power.diagonal().mean() * torch.eye(len(power), dtype=power.dtype, device=power.device)
    solved: Tensor = torch.linalg.solve(power, inputs.T @ wide)
    return solved.to(outputs.dtype)
