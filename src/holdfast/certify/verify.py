"""Decide a VNN-LIB property of a network: attack first, then prove.

The verdicts are the competition's: ``unsat`` where the unsafe set is empty and the property holds, ``sat`` with a
counterexample, ``timeout``, and ``unknown`` where neither can be found. A counterexample counts when a replay of the
network, by onnxruntime where that is possible, agrees without any tolerance. A proof is about the
network as it runs, whatever the order in which its sums are taken (:mod:`holdfast.certify.bounds.rounding`).
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from holdfast.arguments import as_float, function_of, seed_of, shown
from holdfast.certify.properties import Declared, Property
from holdfast.certify.provers import Prover, Task, prove
from holdfast.certify.questions import Questions, WithInputs
from holdfast.certify.search.falsify import falsify
from holdfast.certify.search.split import Outcome
from holdfast.certify.search.witness import admitting, is_counterexample, remark, replayer, written
from holdfast.certify.vnnlib import read_vnnlib
from holdfast.errors import DataError, ModelError, SettingError
from holdfast.models import OnnxModule, load_model
from holdfast.models.borrow import borrowed
from holdfast.models.precision import first_float
from holdfast.words import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Verification", "verify"]

# The share of the time for the attack before the proof, how long it may take at most, and its rounds.
_SHARE, _LONGEST, _ROUNDS = 0.1, 20.0, 8


@dataclass(frozen=True, eq=False)
class Verification:
    """What is known of a property.

    Parameters
    ----------
    word : str
        ``"unsat"``, ``"sat"``, ``"timeout"`` or ``"unknown"``.
    x, y : Tensor or None
        For ``"sat"`` the counterexample ``(*shape)`` and what the network answers to it ``(K,)``.
    bound : float or None
        What was proved for all inputs: each way of being unsafe misses one of its inequalities by at least this.
        Positive for ``"unsat"``; None where nothing was proved.
    seconds : float
        Spent.
    note : str
        Why nothing more can be said, or how bounds were read that hold no input of the network's precision, in one
        line; empty where there is no more to say.
    tensors : tuple of Declared, optional
        The input and the output as the property declares them, if it does.
    """

    word: Literal["unsat", "sat", "timeout", "unknown"]
    x: Tensor | None
    y: Tensor | None
    bound: float | None
    seconds: float
    note: str = ""
    tensors: tuple[Declared, Declared] | None = None

    def written(self) -> str:
        """The text of the competition's result files."""
        if self.x is None or self.y is None:
            return f"{self.word}\n"
        return f"{self.word}\n{written(self.x, self.y, self.tensors)}\n"


@torch.inference_mode(False)
def verify(
    model: nn.Module | str | Path,
    prop: Property | str | Path,
    *,
    seconds: float = 600.0,
    seed: int = 0,
    prover: Prover | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Verification:
    """Decide whether a network has a property.

    Parameters
    ----------
    model
        A module, or what :func:`~holdfast.models.load_model` takes. Inputs have the shape that an ONNX file says, and
        are flat, ``(n,)``, for every other network.
    prop
        A property, or the VNN-LIB file that holds it. ``X_i`` is entry ``i`` of the input in C order.
    seconds : float
        The time limit.
    seed : int
        Of the attack's random starts.
    prover : callable, optional
        What to prove with; :func:`~holdfast.certify.provers.prove` if it is not given.
    sizes : mapping, optional
        The sizes of dimensions that an ONNX file leaves free, see :func:`~holdfast.models.load_onnx`.

    Returns
    -------
    Verification
        ``"unknown"``, with a note, where the network has an operation that no bound is known for: an error is never a
        proof.

    Raises
    ------
    SettingError
        When the time limit, the seed or the prover is none.
    ModelError
        When the network cannot be loaded.
    DataError
        When the property cannot be read, or is one of a network with other inputs or outputs.
    """
    began = time.monotonic()
    limit = as_float(seconds)
    if not limit >= 0:
        raise SettingError(f"seconds: the time limit is a number of at least 0, not {shown(seconds)}")
    seed = seed_of(seed)
    if prover is not None:
        function_of("prover", prover)
    deadline = began + limit
    prop = prop if isinstance(prop, Property) else read_vnnlib(prop)
    module = load_model(model, sizes=sizes)
    shape = module.input_shape if isinstance(module, OnnxModule) else (prop.inputs,)
    dtype = first_float(module, torch.empty(0, dtype=_declared(prop))).dtype
    _check(module, prop, shape, dtype)
    replay = replayer(module, _onnx_file(model))
    asked = admitting(prop, dtype)
    module = WithInputs(module, asked.read) if asked.read else module
    answers: dict[bytes, Tensor] = {}

    def accept(x: Tensor) -> bool:
        y = answers[_key(x)] = replay(x)
        return is_counterexample(asked, x.flatten(), y)

    questions, numbers = Questions.of(asked), itertools.count()

    def attack(until: float, rounds: int | None = None) -> Tensor | None:
        draws = itertools.islice(numbers, rounds)
        return falsify(module, questions, shape, dtype, accept, deadline=until, rounds=draws, seed=seed)

    x = attack(min(deadline, began + min(_SHARE * limit, _LONGEST)), _ROUNDS) if len(questions) else None
    outcome = Outcome(x is None, x, float("inf"))
    if x is None and len(questions):
        task = Task(module, shape, dtype, questions, accept, deadline, attack)
        outcome = _attempt(prover or prove, task)
    spent = time.monotonic() - began
    if outcome.x is not None:
        note = remark(prop, asked, dtype, outcome.x.flatten())
        return Verification("sat", outcome.x, answers[_key(outcome.x)], None, spent, note, prop.tensors)
    bound = outcome.bound if outcome.bound > -float("inf") else None
    if outcome.proved:
        return Verification("unsat", None, None, bound, spent, remark(prop, asked, dtype))
    return Verification("unknown" if outcome.note else "timeout", None, None, bound, spent, outcome.note)


def _attempt(prover: Prover, task: Task) -> Outcome:
    """A prover's outcome; what it cannot work on, it has not proved."""
    if time.monotonic() > task.deadline:
        return Outcome(False, None, -float("inf"))
    try:
        return prover(task)
    except ModelError as error:
        return Outcome(False, None, -float("inf"), str(error))


def _check(module: nn.Module, prop: Property, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    size = torch.Size(shape).numel()
    if size != prop.inputs:
        raise DataError(
            f"the property has {prop.inputs} inputs, the network {size}, of shape {shape}; "
            "take the property of this network"
        )
    for tensor in prop.tensors or ():
        if tensor.element not in {"real", str(dtype).removeprefix("torch.")}:
            raise DataError(
                f"the property declares {tensor.name} as {tensor.element}, the network computes in {dtype}; "
                "take the property of this network, or declare real numbers"
            )
    if prop.tensors and isinstance(module, OnnxModule) and _bare(prop.tensors[0].shape) != _bare(shape):
        raise DataError(
            f"the property declares an input of shape {prop.tensors[0].shape}, the network takes {shape}; "
            "take the property of this network"
        )
    if prop.tensors and isinstance(module, OnnxModule):
        for tensor, name in zip(prop.tensors, (module.input_name, module.output_name), strict=True):
            if tensor.node not in {None, name}:
                raise DataError(
                    f"the property calls {tensor.name} '{one_line(str(tensor.node))[:80]}' in the network, which calls "
                    f"it '{one_line(name)[:80]}'; take the property of this network"
                )
    try:
        with borrowed(module), torch.no_grad():
            outputs = module(torch.zeros(1, *shape, dtype=dtype)).numel()
    except Exception as error:  # a model's own code may raise anything
        raise DataError(f"the network does not take the property's {size} inputs: {one_line(error)[:160]}") from error
    if outputs != prop.outputs:
        raise DataError(
            f"the property has {prop.outputs} outputs, the network {outputs}; take the property of this network"
        )


def _declared(prop: Property) -> torch.dtype:
    """The precision that a property asks for of a network that has none of its own."""
    element = prop.tensors[0].element if prop.tensors else "real"
    dtype: torch.dtype = torch.float32 if element == "real" else getattr(torch, element)
    return dtype


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the dimensions that change nothing in the order of its entries, as that of a batch of one."""
    return tuple(size for size in shape if size != 1)


def _onnx_file(model: nn.Module | str | Path) -> Path | None:
    if isinstance(model, nn.Module) or not str(model).lower().endswith((".onnx", ".onnx.gz")):
        return None
    return Path(model)


def _key(x: Tensor) -> bytes:
    return x.numpy().tobytes()
