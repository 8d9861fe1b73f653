"""A twin of a model: its gradients are those of the operations that the model executes, whatever its own are."""

from __future__ import annotations

import math
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.models.borrow import borrowed
from holdfast.models.retracing.blame import first_differing
from holdfast.models.retracing.ledger import anchored
from holdfast.models.retracing.recorder import Experiment, Recorder, follow
from holdfast.models.retracing.sites import Plan
from holdfast.words import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Retraced", "retraced"]

# Steps that are tried; further ones are taken for true steps.
_MOST_STEPS = 24
# The share of places that are made to fall the other way in a trial.
_SHARE = 0.05
# A step makes this much of the difference where it is about to happen that it makes anywhere: else it is a kink.
_EVEN = 0.2
# Steps by which choices are compared, and their size as a part of the inputs' range.
_STEPS, _STEP = 4, 0.03
# How far the twin's direction is followed, as parts of the inputs' range, and how often it has to lead up.
_WAYS, _OFTEN = (0.01, 0.05, 0.2), 0.6


@dataclass(frozen=True)
class Retraced:
    """What became of retracing a model.

    Parameters
    ----------
    module : nn.Module or None
        The twin: outputs are the model's bit for bit, in batches of any size, and gradients those of the operations
        that it executes. None where there is none.
    replaced : tuple of str
        What in it has another derivative than its true one, or than the model's own, and where.
    relaxed : nn.Module or None
        The same with the outputs too of the smooth operations that stand in for others, such as the logits behind a
        one-hot answer: where the model's own outputs are flat, inputs found on it may be taken to the model.
    reason : str
        Why there is no twin.
    """

    module: nn.Module | None
    replaced: tuple[str, ...] = ()
    relaxed: nn.Module | None = None
    reason: str = ""


class _Twin(nn.Module):
    """A model that is run without autograd and differentiated by what was seen of it."""

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


def retraced(model: nn.Module, x: Tensor) -> Retraced:
    """A twin of a model, with the gradients of the operations that the model executes.

    The model is run as it is, with autograd off, and each operation that reaches PyTorch's kernels is repeated beside it
    with autograd on. What acts on autograd alone is not there: custom backward passes, ``detach``, hooks, branches on
    the grad mode. Operations whose derivative is 0 or dead get another one (Athalye, Carlini and Wagner, "Obfuscated
    gradients give a false sense of security", ICML 2018, arXiv:1802.00420, section 4.1): rounding and clamping go
    straight through, hard steps and choices get smooth slopes, as wide as the numbers seen at ``x``. Steps that others
    even out, as in ``x * (x > 0)``, are left alone. Half precision is differentiated in float32. What leaves for NumPy
    and comes back as so many numbers, alike, goes straight through.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` floating point inputs to ``(N, K)``; it is given back as it was found.
    x : Tensor
        ``(N, ...)`` typical inputs, some tens: what is decided on them stays decided.

    Returns
    -------
    Retraced
        Without a module, and with the reason, where the model cannot be followed, no gradient comes through, or
        following it does not lead where it says. Nothing is raised.
    """
    if not x.is_floating_point():
        return Retraced(None, reason="the model reads whole numbers, which have no gradient")
    if not len(x):
        return Retraced(None, reason="there is no input to follow the model at")
    x = x.detach()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    try:
        with borrowed(model), _numpy_kept():
            return _retraced(model, x, dtype)
    except Exception as error:  # the model's own code, followed in a way that it was not written for
        return Retraced(None, reason=f"the model cannot be followed: {reason(error)}")


def _retraced(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Retraced:
    survey = _survey(model, x, dtype)
    decided = _decided(model, x, dtype, survey.found)
    plans = [decided]
    steps = [site for site in decided.values() if site.jumps]
    if any(site.soft for site in steps) or (steps and not _alive(_gradient(_Twin(model, decided, dtype), x)[1])):
        plans += [{key: site.decided(site.soft and (soft or not site.jumps)) for key, site in survey.found.items()}
                  for soft in (True, False)]  # fmt: skip
    plan = max(plans, key=lambda plan: _climbed(model, _Twin(model, plan, dtype), x))
    twin = _Twin(model, plan, dtype)
    answer, grad = _gradient(twin, x)
    if grad is None or not _alive(grad):
        lost = Counter(survey.lost).most_common(1)
        return Retraced(None, reason=f"no gradient comes through{f' {lost[0][0]}' if lost else ''}")
    if not _leads_up(model, x, answer, grad):
        return Retraced(None, reason="the gradient found does not lead to higher outputs of the model")
    relaxed = _Twin(model, plan, dtype, relaxed=True) if any(site.soft for site in plan.values()) else None
    return Retraced(twin, (*_blamed(model, x, dtype), *_words(plan)), relaxed)


def _climbed(model: nn.Module, module: nn.Module, x: Tensor) -> float:
    """How much a few steps along a twin's gradients raise what an attack would raise."""
    rising = _rising(_answer(model, x))
    step = _STEP * (x.amax() - x.amin())
    moved = x
    for _ in range(_STEPS):
        _, grad = _gradient(module, moved, rising)
        if grad is None:
            return -math.inf
        moved = (moved + step * grad.nan_to_num(0.0, 0.0, 0.0).sign()).clamp(x.amin(), x.amax())
    return float((rising(_answer(model, moved)) - rising(_answer(model, x))).nan_to_num(0.0, 0.0, 0.0).mean())


def _survey(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Recorder:
    """A run that notes each site, and the module that it is in."""
    recorder = Recorder(model, {}, dtype)
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, inputs: Any, name: str = name) -> None:
            recorder.path.append(name)

        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            recorder.path.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        _seed()
        follow(model, x.clone().requires_grad_(True), recorder)
    finally:
        for handle in handles:
            handle.remove()
    return recorder


def _decided(model: nn.Module, x: Tensor, dtype: torch.dtype, found: Plan) -> Plan:
    """Which sites get another derivative: of steps, those that the model's output shows."""
    plan = dict(found)
    steps = [key for key, site in found.items() if site.jumps][:_MOST_STEPS]
    if not steps:
        return plan
    base = _answer(model, x)
    for key in steps:
        try:
            near, far = (
                float((_answer(model, x, Experiment(key, choose), dtype, plan) - base).abs().nan_to_num().mean())
                for choose in (_nearest, _scattered)
            )
        except Exception:  # a model may not stand what it never meets
            continue
        plan[key] = plan[key].decided(near > _EVEN * far)
    return plan


def _nearest(distance: Tensor) -> Tensor:
    """The places that are nearest to a step."""
    order = _shuffled(distance)  # of those that are as near as each other, any
    return _marked(distance, order[distance.flatten()[order].nan_to_num(torch.inf).argsort(stable=True)])


def _scattered(distance: Tensor) -> Tensor:
    """As many places anywhere."""
    return _marked(distance, _shuffled(distance))


def _shuffled(distance: Tensor) -> Tensor:
    return torch.randperm(distance.numel(), generator=torch.Generator().manual_seed(0)).to(distance.device)


def _marked(distance: Tensor, order: Tensor) -> Tensor:
    chosen = torch.zeros(distance.numel(), dtype=torch.bool, device=distance.device)
    chosen[order[: max(1, round(_SHARE * distance.numel()))]] = True
    return chosen.view(distance.shape)


def _answer(
    model: nn.Module,
    x: Tensor,
    experiment: Experiment | None = None,
    dtype: torch.dtype = torch.float32,
    plan: Plan | None = None,
) -> Tensor:
    _seed()
    if experiment is None:
        with torch.no_grad():
            answer: Tensor = model(x.clone())
    else:
        answer, _ = follow(
            model, x.clone().requires_grad_(True), Recorder(model, plan or {}, dtype, experiment=experiment)
        )
    return answer.detach().double()


def _rising(answer: Tensor) -> Callable[[Tensor], Tensor]:
    """How far each row's second output is below its first: what an attack would raise."""
    top = answer.double().topk(2, dim=1).indices
    return lambda logits: logits.double().gather(1, top[:, 1:]).sub(logits.double().gather(1, top[:, :1])).squeeze(1)


def _gradient(
    module: nn.Module, x: Tensor, rising: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor | None]:
    """The answers to some inputs, and the gradient by which the second output overtakes the first."""
    _seed()
    x = x.clone().requires_grad_(True)
    with torch.enable_grad():
        answer = module(x)
        value = (rising or _rising(answer.detach()))(answer).sum()
    if not value.requires_grad:
        return answer.detach(), None
    (grad,) = torch.autograd.grad(value, x, allow_unused=True)
    return answer.detach(), grad


def _alive(grad: Tensor | None) -> bool:
    """Whether most rows have a gradient."""
    if grad is None:
        return False
    rows = grad.flatten(1)
    return bool(((rows != 0).any(1) & rows.isfinite().all(1)).double().mean() >= 0.5)


def _leads_up(model: nn.Module, x: Tensor, answer: Tensor, grad: Tensor) -> bool:
    """Whether the model's outputs rise along the gradient, where they change at all."""
    rising, step = _rising(answer), grad.nan_to_num(0.0, 0.0, 0.0).sign() * (x.amax() - x.amin())
    best = 0.0
    changes = False
    for way in _WAYS:
        up, down = ((x + sign * way * step).clamp(x.amin(), x.amax()) for sign in (1, -1))
        gain = rising(_answer(model, up)) - rising(_answer(model, down))
        changed = gain.isfinite() & (gain != 0)
        if int(changed.sum()):
            changes = True
            best = max(best, float((gain[changed] > 0).double().mean()))
    return best >= _OFTEN or not changes


def _blamed(model: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[str, ...]:
    """The first module whose own gradient is not that of its operations."""
    make = partial(_Twin, plan={}, dtype=dtype, strict=True)
    name = first_differing(model, make, x)
    if name is None:
        return ()
    kind = type(model.get_submodule(name)).__name__
    return (f"the backward pass of {f'module {name} ({kind})' if name else f'the model itself ({kind})'}",)


def _words(plan: Plan) -> tuple[str, ...]:
    """What was replaced, and where."""
    count = Counter((site.kind, site.where) for site in plan.values() if site.soft)
    return tuple(
        f"{kind}{f' ({times} times)' if times > 1 else ''} in {f'module {where}' if where else 'the model itself'}"
        for (kind, where), times in count.items()
    )


def _seed() -> None:
    """The same noise in each run."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        for generator in torch.cuda.default_generators:
            generator.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@contextmanager
def _numpy_kept() -> Iterator[None]:
    """Give the generators of NumPy and of Python back as they were."""
    ours, theirs = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(theirs)
