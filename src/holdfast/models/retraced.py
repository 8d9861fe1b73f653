"""A twin of a model: its gradients are those of the operations that the model executes, whatever its own are."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from holdfast.models.borrow import borrowed
from holdfast.models.independence import sources
from holdfast.models.retracing.blame import first_differing
from holdfast.models.retracing.trials import Trials
from holdfast.models.retracing.twin import Twin
from holdfast.words import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from holdfast.models.retracing.sites import Plan

__all__ = ["Retraced", "retraced"]


# Rows of the trials: each takes some runs of the model.
_ROWS = 32


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


def retraced(model: nn.Module, x: Tensor) -> Retraced:
    """A twin of a model, with the gradients of the operations that the model executes.

    The model is run as it is, with autograd off, and each operation that reaches PyTorch's kernels is repeated beside
    it with autograd on. What acts on autograd alone is not there: custom backward passes, ``detach``, hooks, branches
    on the grad mode. Operations whose derivative is 0 or dead get another one (Athalye, Carlini and Wagner, "Obfuscated
    gradients give a false sense of security", ICML 2018, arXiv:1802.00420, section 4.1): rounding and clamping go
    straight through, hard steps and choices get smooth slopes, as wide as the numbers seen at ``x``. Steps that others
    even out, as in ``x * (x > 0)``, are left alone. Half precision is differentiated in float32. What leaves for NumPy
    and comes back as so many numbers, alike, goes straight through.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` floating point inputs to ``(N, K)``; it is given back as it was found.
    x : Tensor
        ``(N, ...)`` typical inputs, of which 32 at most are looked at: what is decided on them stays decided.

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
    x = x[:_ROWS].detach()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    try:
        with borrowed(model), _kept(model) as set_back:
            return _retraced(Trials(model, x, dtype, set_back))
    except Exception as error:  # the model's own code, followed in a way that it was not written for
        return Retraced(None, reason=f"the model cannot be followed: {reason(error)}")


def _retraced(trials: Trials) -> Retraced:
    model, dtype = trials.model, trials.dtype
    found, lost = trials.survey()
    plan = trials.best(found)
    twin = Twin(model, plan, dtype)
    if not trials.is_alive(twin):
        through = f" {Counter(lost).most_common(1)[0][0]}" if lost else ""
        return Retraced(None, reason=f"no gradient comes through{through}")
    if not trials.leads_up(twin):
        return Retraced(None, reason="the gradient found does not lead to higher outputs of the model")
    relaxed = Twin(model, plan, dtype, relaxed=True) if any(site.soft for site in plan.values()) else None
    return Retraced(twin, (*_blamed(trials), *_words(plan)), relaxed)


def _blamed(trials: Trials) -> tuple[str, ...]:
    """The first module whose own gradient is not that of its operations."""
    twins = [partial(Twin, plan={}, dtype=trials.dtype, strict=strict) for strict in (True, False)]
    name = first_differing(trials.model, twins, trials.x, trials.set_back)
    if name is None:
        return ()
    kind = type(trials.model.get_submodule(name)).__name__
    return (f"the backward pass of {f'module {name} ({kind})' if name else f'the model itself ({kind})'}",)


def _words(plan: Plan) -> tuple[str, ...]:
    """What was replaced, and where."""
    count = Counter((site.kind, site.where) for site in plan.values() if site.soft)
    return tuple(
        f"{kind}{f' ({times} times)' if times > 1 else ''} in {f'module {where}' if where else 'the model itself'}"
        for (kind, where), times in count.items()
    )


@contextmanager
def _kept(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Gives what sets all generators of random numbers back to where they are now, and does so in the end."""
    generators = list(sources(model))
    states = [read() for read, _ in generators]

    def set_back() -> None:
        for (_, write), state in zip(generators, states, strict=True):
            write(state)

    try:
        yield set_back
    finally:
        set_back()
