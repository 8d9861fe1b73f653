"""Whether a model answers for each row of a batch by itself, and for the same batch in the same way.

All that is said of an example rests on it. The same rows are put in the same places of batches of one shape, among
different others, with every generator of random numbers set back to where it was. The noise that a model draws is then
the same, and so is its rounding, but for models that compute rows in groups.
"""

import copy
import math
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.errors import ModelError

__all__ = ["refuse_dependence", "sources"]

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# By how many units in the last place of the largest logit rounding may move one where rows are grouped otherwise, and
# by how much more than it does where the inputs change in their own last place.
_ROUNDING, _SHAKEN = 1e3, 32.0

_COUNTS = (
    "the model gave the same batch other logits when it was asked again, with all random numbers as before: its answer "
    "depends on the calls before it (a counter, statistics that it goes on updating, a hidden generator?); make it a "
    "function of its input, with noise from torch's own generator"
)
_MIXES = (
    "the model's output for a row depends on the other rows of its batch (a mean, maximum, sorting or statistics along "
    "dimension 0?); make it work on each row by itself, or ask it about one row a call (batch size 1)"
)
_PLACES = (
    "the model's output for a row depends on its place in the batch (something added or indexed along dimension 0?); "
    "make it work on each row by itself"
)

# How often a fault of a model that draws noise has to be seen again.
_AGAIN = 5

Ask = Callable[[nn.Module, Tensor], Tensor]
# Logits in float64, and what has become of the generators.
_Answer = tuple[Tensor, list[bytes]]


def refuse_dependence(model: nn.Module, ask: Ask, x: Tensor, dtype: torch.dtype) -> None:
    """Refuse a model whose answer for a row depends on its company, on its place or on earlier calls.

    Costs at most ten calls, and two more to tell a fault. No generator of random numbers is moved.

    Parameters
    ----------
    model : nn.Module
        The model, ready for use.
    ask : callable
        ``(N, K)`` logits of a model, this one or a copy of it, for ``(N, ...)`` inputs.
    x : Tensor
        ``(N, ...)`` inputs such as it is used on, in the shape in which it is called.
    dtype : torch.dtype
        The precision in which it computes.

    Raises
    ------
    ModelError
        Whose one line says what the answer depends on, the likely cause, and what to do.
    """
    generators = list(sources(model))
    start = [read() for read, _ in generators]

    def set_back() -> None:
        for (_, write), state in zip(generators, start, strict=True):
            write(state)

    def call(asked: nn.Module, rows: Tensor) -> _Answer:
        set_back()
        return ask(asked, rows).double(), _plain([read() for read, _ in generators])

    def found() -> str | None:
        return _fault(model, call, x, torch.finfo(dtype).eps, _plain(start))

    untouched = list(start)
    try:
        fault = found() if len(x) > 1 else None
        for _ in range(_AGAIN):
            if fault is None or call(model, x)[1] == _plain(start):
                break
            # Noise of which some inputs draw more may be as long for all by chance: look again, from where it got to.
            start[:] = [read() for read, _ in generators]
            fault = found()
    finally:
        start[:] = untouched
        set_back()
    if fault is not None:
        raise ModelError(fault)


def _fault(
    model: nn.Module, call: Callable[[nn.Module, Tensor], _Answer], x: Tensor, eps: float, untouched: list[bytes]
) -> str | None:
    base = call(model, x)
    room = min(_ROUNDING * eps, math.sqrt(eps)) * float(base[0].nan_to_num(0, 0, 0).abs().max())
    if _distance(base[0], call(model, x)[0]) > room:
        return _COUNTS if _repeats(model, call, x, room) else None

    def answer(rows: Tensor) -> _Answer | None:
        try:
            return base if rows is x else call(model, rows)
        except ModelError:  # not every model takes inputs that are none of the data
            return None

    def faulty(one: Tensor, first: _Answer, other: Tensor, second: _Answer, fault: str) -> str:
        """The fault of a pair that differs, unless one of the two would now be answered otherwise."""
        again = call(model, one), call(model, other)
        return fault if max(map(_distance, (first[0], second[0]), (a[0] for a in again))) <= room else _COUNTS

    for one, other, kept in _pairs(x):
        first, second = answer(one), answer(other)
        if first is None or second is None or first[1] != second[1]:
            continue  # what draws more noise for some inputs than for others draws other noise for the rest
        if _distance(first[0][kept], second[0][kept]) > room:
            return _statistics(model) or faulty(one, first, other, second, _MIXES)
    if base[1] != untouched:
        return None  # noise belongs to places, not to rows
    # Rounding may differ from place to place, and by much where large numbers cancel: as it does between neighbours.
    moved, shaken = answer(x.roll(1, 0)), answer(_shaken(x, eps))
    if moved is None or shaken is None:
        return None
    room = max(room, _SHAKEN * _distance(shaken[0], base[0]))
    if _distance(moved[0].roll(-1, 0), base[0]) <= room:
        return None
    return faulty(x, base, x.roll(1, 0), moved, _PLACES)


def _pairs(x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pairs of batches, and which rows, a mask, they have in common; the others are as different as may be."""
    place = torch.arange(len(x), device=x.device)

    def among(kept: Tensor, rows: Tensor, others: Tensor) -> Tensor:
        return torch.where(kept.view(-1, *[1] * (x.dim() - 1)), rows, others)

    if x.is_floating_point():
        low, high = x.min(), x.max()
        opposite, inner = low + high - x, torch.lerp(low, high, 0.25) + (x - low) / 2
    else:  # at its place, no number is known but those between the least and the largest
        numbers = x.long()
        low, high = numbers.amin(0), numbers.amax(0)
        others = low + high - numbers, low + (high - low) // 4 + (numbers - low) // 2, low, high
        opposite, inner, low, high = (other.to(x.dtype) for other in others)
    first, ends, even = place == 0, (place == 0) | (place == len(x) - 1), place % 2 == 0
    yield x, among(first, x, x[:1]), first
    yield x, among(even, x, x.roll(2, 0)), even
    yield x, among(~even, x, opposite), ~even
    # What is largest in a batch of images is often the same in all: here the others decide.
    yield among(ends, inner, low), among(ends, inner, high), ends


def _shaken(x: Tensor, eps: float) -> Tensor:
    """Inputs changed in their last place; whole numbers as they are."""
    odd = (torch.arange(x[0].numel(), device=x.device) % 2).view(x.shape[1:])
    return x * (1 - 2 * eps * odd).to(x) if x.is_floating_point() else x


def _repeats(model: nn.Module, call: Callable[[nn.Module, Tensor], _Answer], x: Tensor, room: float) -> bool:
    """Whether copies of a model, asked for the first time, agree: what differs then is not noise from outside."""
    try:
        one, other = (call(twin, x)[0] for twin in (copy.deepcopy(model), copy.deepcopy(model)))
    except Exception:  # a model's own code may refuse to be copied, by whatever it raises
        return False
    return _distance(one, other) <= room


def _statistics(model: nn.Module) -> str | None:
    """What to say of a layer that normalises by the batch."""
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORM) and (module.training or module.running_mean is None):
            return (
                f"the model's output for a row depends on the other rows of its batch: '{name}' "
                f"({type(module).__name__}) normalises by the statistics of the batch; give it running ones "
                "(track_running_stats=True) and train it again"
            )
    return None


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest difference; NaN agrees with NaN, and an infinity with itself."""
    same = (one == other) | (one.isnan() & other.isnan())
    return float((one - other).abs().nan_to_num(math.inf, math.inf).masked_fill(same, 0.0).max())


def sources(model: nn.Module) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How to read and to set each generator that a model may draw from: the global ones, and its own."""
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    owned = [value for module in model.modules() for value in vars(module).values()]
    for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in sorted(devices)), *owned):
        if isinstance(generator, torch.Generator | np.random.RandomState):
            yield generator.get_state, generator.set_state
        elif isinstance(generator, np.random.Generator):
            bits = generator.bit_generator
            yield partial(getattr, bits, "state"), partial(setattr, bits, "state")
        elif isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):
            yield generator.getstate, generator.setstate
    yield np.random.get_state, np.random.set_state
    yield random.getstate, random.setstate


def _plain(states: Sequence[Any]) -> list[bytes]:
    """States of generators as something to compare."""
    return [s.numpy().tobytes() if isinstance(s, Tensor) else pickle.dumps(s) for s in states]
