"""Transfer attacks: inputs made on a model that the adversary owns, tried on one that it does not."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.attacks.mifgsm import gathered
from holdfast.draws import Draws
from holdfast.engine.attack import Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows
from holdfast.errors import ModelError, SettingError
from holdfast.models.query import Query
from holdfast.settings import check
from holdfast.tasks.objectives import ObjectiveName
from holdfast.threats.needs import needs_ball

__all__ = ["Diversity", "Transfer", "TranslationKernel", "VarianceTuning"]

_LANE = 3  # of the draws of random sizes; the lanes below are those of random points


@dataclass(frozen=True)
class Diversity:
    """Gradients of images shrunk and padded at random (DI).

    Xie, Zhang, Zhou, Bai, Wang, Ren and Yuille, "Improving transferability of adversarial examples with input
    diversity", CVPR 2019, arXiv:1803.06978, equation 2. The paper enlarges images of 299 pixels to at most 330; here
    they keep their size, since not every model takes another one.

    Parameters
    ----------
    probability : float
        How likely an image is changed at all.
    smallest : float
        The least size to shrink it to, as a share of its own; sizes are drawn uniformly between that and 1.
    """

    probability: float = 0.5
    smallest: float = 0.9

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 < self.smallest <= 1):
            raise SettingError(f"transfer: probability must lie in [0, 1] and smallest in (0, 1], got {self}")

    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        """Every image shrunk bilinearly to its own size at its own place, zeros around it; ``draws`` are ``(N, 4)``."""
        chance, share, top, left = draws.unbind(1)
        share = torch.where(chance < self.probability, self.smallest + (1 - self.smallest) * share, 1.0)
        rows, columns = _shrinking(x.shape[2], share, top), _shrinking(x.shape[3], share, left)
        return rows.to(x.dtype).unsqueeze(1) @ x @ columns.to(x.dtype).mT.unsqueeze(1)


def _shrinking(length: int, share: Tensor, at: Tensor) -> Tensor:
    """``(N, length, length)`` the maps that shrink a line of pixels to a share of it, zeros before and after."""
    size = (share * length).round().clamp(1, length).reshape(-1, 1, 1)
    start = (at.reshape(-1, 1, 1) * (length - size + 1)).floor()
    pixel = torch.arange(length, dtype=share.dtype, device=share.device)
    place = pixel.unsqueeze(1) - start
    source = ((place + 0.5) * length / size - 0.5).clamp(0, length - 1)
    return torch.where((place >= 0) & (place < size), (1 - (source - pixel).abs()).clamp_min(0), 0.0)


@dataclass(frozen=True)
class TranslationKernel:
    """Gradients smoothed by a Gaussian, which stands for averaging over shifted images (TI).

    Dong, Pang, Su and Zhu, "Evading defenses to transferable adversarial examples by translation-invariant attacks",
    CVPR 2019, arXiv:1904.02884, equation 7 and section 3.3.

    Parameters
    ----------
    size : int
        Pixels along a side, an odd number.
    deviations : float
        How many standard deviations lie between the kernel's centre and its edge.
    """

    size: int = 15
    deviations: float = 3.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0 or not self.deviations > 0:
            raise SettingError(f"transfer: a kernel's size must be odd and its deviations positive, got {self}")

    def __call__(self, grad: Tensor) -> Tensor:
        edge = self.deviations if self.size > 1 else 0.0
        bell = torch.linspace(-edge, edge, self.size, dtype=torch.float64).square().div(-2).exp()
        bell = (bell / bell.sum()).to(grad).expand(grad.shape[1], 1, 1, -1)
        margin = self.size // 2
        smooth = functional.conv2d(grad, bell, padding=(0, margin), groups=grad.shape[1])
        return functional.conv2d(smooth, bell.transpose(2, 3), padding=(margin, 0), groups=grad.shape[1])


@dataclass(frozen=True)
class VarianceTuning:
    """Gradients corrected by how those around the last point differed from its own (VMI).

    Wang and He, "Enhancing the transferability of adversarial attacks through variance tuning", CVPR 2021,
    arXiv:2103.15571, algorithm 1. Neighbours are drawn from the threat's own ball and clipped to the box.

    Parameters
    ----------
    samples : int
        Neighbours a step.
    radius : float
        How far they may lie, in budgets.
    """

    samples: int = 20
    radius: float = 1.5

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.radius > 0:
            raise SettingError(f"transfer: samples and radius must be positive, got {self}")


@dataclass(frozen=True)
class _State:
    tried: Tensor  # (N,) bool


@dataclass(frozen=True)
class Transfer:
    """Momentum iterative FGSM on a surrogate; the model under attack is shown the result and nothing else.

    The settings beyond those of :class:`holdfast.attacks.mifgsm.MIFGSM` make the result fit the surrogate less and
    other models more. They combine as in the papers: the gradient is the mean over ``scales`` copies ``x / 2^i`` of
    the input (SI: Lin, Song, He, Wang and Hopcroft, "Nesterov accelerated gradient and scale invariance for
    adversarial attacks", ICLR 2020, arXiv:1908.06281, equation 7), each changed at random by ``diversity``; then comes
    the correction of ``variance``, then the ``kernel``, then the momentum. For ensembles of surrogates, give a module
    that averages their logits (Liu, Chen, Liu and Song, ICLR 2017, arXiv:1611.02770).

    Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, arXiv:1710.06081. Costs 1 forward of the
    model under attack. The surrogate's passes, ``steps * scales`` forwards and backwards, with ``variance`` that times
    ``1 + samples``, and one forward to look at it, are no queries and are not counted.

    Parameters
    ----------
    surrogate : nn.Module
        Maps inputs in the threat's own units to logits for the same classes; a normalisation is its own affair. It is
        given back as it was.
    steps : int
        Gradient steps on the surrogate.
    decay : float
        How much of the velocity a step keeps.
    step_size : float, optional
        Length of a step in the units of the budget; ``eps / steps`` by default.
    objective : str
        What is raised on the surrogate: ``"ce"``, ``"margin"`` or ``"dlr"``.
    scales : int
        Copies of the input; 1 is the input alone, and the paper takes 5.
    diversity : Diversity, optional
        Random sizes, for images.
    kernel : TranslationKernel, optional
        Smoothed gradients, for images.
    variance : VarianceTuning, optional
        Corrected gradients.

    Raises
    ------
    ModelError
        When the surrogate fails, returns no logits, or knows another number of classes than the model.
    SettingError
        When a number makes no sense, the threat is no norm ball, or inputs are no images where they have to be.
    """

    surrogate: nn.Module
    steps: int = 10
    decay: float = 1.0
    step_size: float | None = None
    objective: ObjectiveName = "ce"
    scales: int = 1
    diversity: Diversity | None = None
    kernel: TranslationKernel | None = None
    variance: VarianceTuning | None = None
    name: ClassVar[str] = "transfer"
    knowledge: ClassVar[Knowledge] = "decision"
    minimum_norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, self.name)
        if self.steps < 1 or self.scales < 1 or (self.step_size is not None and not self.step_size > 0):
            raise SettingError("transfer: steps, scales and step_size must be positive")
        if not self.decay >= 0:
            raise SettingError(f"transfer: decay must be at least 0, got {self.decay}")

    __call__ = craft

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _State:
        needs_ball(self.name, problem.threat, "pgd")
        if (self.diversity or self.kernel) and problem.x.dim() != 4:
            raise SettingError(
                f"transfer: diversity and kernel are for images (C, H, W), not inputs of shape "
                f"{tuple(problem.x.shape[1:])}; leave them out"
            )
        return _State(torch.zeros_like(problem.rows.found))

    def step(self, problem: Problem, state: _State) -> _State:
        with Query(self.surrogate, batch_size=problem.query.batch_size) as query:
            try:
                z = self._craft(problem, query)
            except ModelError as error:
                raise ModelError(f"surrogate: {error}") from error
        problem.decide(z)
        return _State(torch.ones_like(state.tried))

    def done(self, state: _State) -> Tensor:
        return state.tried

    def _craft(self, problem: Problem, query: Query) -> Tensor:
        threat, x, clean = problem.ball, problem.x, problem.rows.clean_logits
        classes = query.bare_logits(x).shape[1]
        if clean is not None and clean.shape[1] != classes:
            raise ModelError(f"it returns {classes} logits, but the model under attack {clean.shape[1]}")
        budget = threat.budget(x)
        size = budget / self.steps if self.step_size is None else torch.full_like(budget, self.step_size)
        z = velocity = correction = torch.zeros_like(x)
        for step in range(self.steps):
            point = threat.apply(x, z)
            plain = self._gradient(problem, query, point, problem.draws(step))
            grad = plain + correction
            if self.variance is not None:
                correction = -plain
                near = replace(threat, eps=self.variance.radius * budget)
                for n in range(1, self.variance.samples + 1):
                    rng = problem.draws(step + n * self.steps)
                    neighbour = near.apply(point, near.sample(point, rng))
                    correction = correction + self._gradient(problem, query, neighbour, rng) / self.variance.samples
            velocity = gathered(velocity, grad if self.kernel is None else self.kernel(grad), self.decay)
            z = threat.ascend(z, x, velocity, size)
        return z

    def _gradient(self, problem: Problem, query: Query, point: Tensor, rng: Draws) -> Tensor:
        """The surrogate's gradient at a point, averaged over the copies of the input."""
        objective = problem.objective(self.objective)
        draws = None if self.diversity is None else rng.uniform(4 * self.scales, lane=_LANE).split(4, dim=1)
        total = torch.zeros_like(point)
        for copy in range(self.scales):
            with torch.enable_grad():
                inputs = point.detach().requires_grad_(True)
                seen = inputs / 2**copy
                if self.diversity is not None and draws is not None:
                    seen = self.diversity(seen, draws[copy])
                answer = query.gradient(seen.detach(), lambda logits: objective(logits.to(point.device)))
                (grad,) = torch.autograd.grad(seen, inputs, answer.grad.to(seen))
            total += grad
        return total / self.scales
