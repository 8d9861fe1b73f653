"""Runs of a model, on a few inputs, from which it is decided what stands in for which derivative."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from holdfast.models.retracing.recorder import Experiment, Recorder, follow
from holdfast.models.retracing.twin import Twin

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.models.retracing.sites import Plan

__all__ = ["Trials"]

# Steps that are tried; further ones are taken for true steps.
_MOST_STEPS = 8
# The share of places that are made to fall the other way in a trial.
_SHARE = 0.05
# A step makes this much of the difference where it is about to happen that it makes anywhere: else it is a kink.
_EVEN = 0.2
# Steps by which choices are compared, and their size as a part of the inputs' range.
_STEPS, _STEP = 4, 0.03
# How far the twin's direction is followed, as parts of the inputs' range, and how often it has to lead up.
_WAYS, _OFTEN = (0.01, 0.05, 0.2), 0.6


@dataclass(frozen=True)
class Trials:
    """A model and the inputs at which it is tried.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    x : Tensor
        ``(N, ...)``.
    dtype : torch.dtype
        The least precise type in which derivatives are worked out.
    set_back : callable
        Sets all generators of random numbers back, so that noise is the same in each run.
    """

    model: nn.Module
    x: Tensor
    dtype: torch.dtype
    set_back: Callable[[], None]

    def survey(self) -> tuple[Plan, list[str]]:
        """The sites that a run meets, with the modules that they are in, and what no derivative leads through."""
        recorder = Recorder(self.model, {}, self.dtype)
        handles = []
        for name, module in self.model.named_modules():

            def enter(module: nn.Module, inputs: Any, name: str = name) -> None:
                recorder.path.append(name)

            def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
                recorder.path.pop()

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        self.set_back()
        try:
            follow(self.model, self.x.clone().requires_grad_(True), recorder)
        finally:
            for handle in handles:
                handle.remove()
        return recorder.found, recorder.lost

    def best(self, found: Plan) -> Plan:
        """Which sites get another derivative.

        Of steps, those that the model's output shows; or all, or none, where that leads further up.
        """
        decided = self._decided(found)
        steps = [site for site in decided.values() if site.jumps]
        if not any(site.soft for site in steps) and (not steps or self.is_alive(self._twin(decided))):
            return decided
        all_or_none = [
            {key: site.decided(site.soft and (soft or not site.jumps)) for key, site in found.items()}
            for soft in (True, False)
        ]
        return max((decided, *all_or_none), key=lambda plan: self._climbed(self._twin(plan)))

    def is_alive(self, twin: nn.Module) -> bool:
        """Whether most rows have a gradient."""
        grad = self._gradient(twin, self.x)
        if grad is None:
            return False
        rows = grad.flatten(1)
        return bool(((rows != 0).any(1) & rows.isfinite().all(1)).double().mean() >= 0.5)

    def leads_up(self, twin: nn.Module) -> bool:
        """Whether the model's outputs rise along a twin's gradient, where they change at all."""
        grad = self._gradient(twin, self.x)
        if grad is None:
            return False
        rising, direction = self._rising, grad.nan_to_num(0.0, 0.0, 0.0).sign()
        shares = []
        for way in _WAYS:
            gain = rising(self._answer(self._moved(self.x, way * direction)))
            gain = gain - rising(self._answer(self._moved(self.x, -way * direction)))
            changed = gain[gain.isfinite() & (gain != 0)]
            shares += [float((changed > 0).double().mean())] if len(changed) else []
        return max(shares, default=1.0) >= _OFTEN

    def _decided(self, found: Plan) -> Plan:
        plan = dict(found)
        steps = [key for key, site in found.items() if site.jumps][:_MOST_STEPS]
        base = self._answer(self.x)
        for key in steps:
            try:
                near, far = (
                    float((self._answer(self.x, Experiment(key, choose)) - base).abs().nan_to_num().mean())
                    for choose in (_nearest, _scattered)
                )
            except Exception:  # a model may not stand what it never meets
                continue
            plan[key] = plan[key].decided(near > _EVEN * far)
        return plan

    def _climbed(self, twin: nn.Module) -> float:
        """How much a few steps along a twin's gradients raise what an attack would raise."""
        rising, moved = self._rising, self.x
        for _ in range(_STEPS):
            grad = self._gradient(twin, moved)
            if grad is None:
                return -math.inf
            moved = self._moved(moved, _STEP * grad.nan_to_num(0.0, 0.0, 0.0).sign())
        gain = rising(self._answer(moved)) - rising(self._answer(self.x))
        return float(gain.nan_to_num(0.0, 0.0, 0.0).mean())

    def _moved(self, x: Tensor, by: Tensor) -> Tensor:
        """Inputs moved by parts of the inputs' range, within it."""
        low, high = self.x.amin(), self.x.amax()
        return (x + (high - low) * by).clamp(low, high)

    @cached_property
    def _rising(self) -> Callable[[Tensor], Tensor]:
        """How far each row's second output is below its first: what an attack would raise."""
        top = self._answer(self.x).topk(2, dim=1).indices
        return lambda logits: logits.double().gather(1, top).diff(dim=1).squeeze(1)

    def _twin(self, plan: Plan) -> Twin:
        return Twin(self.model, plan, self.dtype)

    def _answer(self, x: Tensor, experiment: Experiment | None = None) -> Tensor:
        self.set_back()
        if experiment is None:
            with torch.no_grad():
                answer: Tensor = self.model(x.clone())
        else:
            recorder = Recorder(self.model, {}, self.dtype, experiment=experiment)
            answer, _ = follow(self.model, x.clone().requires_grad_(True), recorder)
        return answer.detach().double()

    def _gradient(self, twin: nn.Module, x: Tensor) -> Tensor | None:
        rising = self._rising
        self.set_back()
        x = x.clone().requires_grad_(True)
        with torch.enable_grad():
            value = rising(twin(x)).sum()
        if not value.requires_grad:
            return None
        return torch.autograd.grad(value, x, allow_unused=True)[0]


def _nearest(distance: Tensor) -> Tensor:
    """The places that are nearest to a step; of those that are as near as each other, any."""
    order = _shuffled(distance)
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
