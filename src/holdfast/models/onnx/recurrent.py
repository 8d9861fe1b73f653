"""Recurrent layers, written out step by step: RNN, GRU and LSTM.

They follow the operators' texts (https://onnx.ai/onnx/operators). A state exported for one row belongs to every row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.errors import ModelError
from holdfast.models.onnx.node import Operator, operator

if TYPE_CHECKING:
    from holdfast.models.onnx.node import Node

Function = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
# From the input's part of all gates and the state to the next state; its first entry is what the layer gives out.
Cell = Callable[[Tensor, State], State]

_LONGEST = 4096  # steps that are written out
_ACTIVATIONS: dict[str, Function] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "tanh": torch.tanh,
}


def _recurrent(
    gates: int,
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: tuple[int, ...] | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> list[Tensor]:
    rows_first = bool(node.get("layout", 0))
    if rows_first:
        h, c = (None if state is None else state.transpose(0, 1) for state in (h, c))
    else:
        x = x.transpose(0, 1)
    rows, steps = x.shape[:2]
    if steps > _LONGEST:
        raise ModelError(f"it takes {steps} steps, and at most {_LONGEST} are written out")
    if lengths is not None and any(length != steps for length in lengths):
        raise ModelError("sequences of different lengths are not supported")
    direction, size = node.get("direction", "forward"), r.shape[-1]
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}.get(direction)
    if directions is None or len(w) != len(directions) or w.shape[1] != gates * size:
        raise ModelError(f"its weights of shape {tuple(w.shape)} do not suit the direction '{direction[:20]}'")
    if node.get("hidden_size", size) != size:
        raise ModelError(f"its hidden_size is {node.get('hidden_size')}, and its weights are for {size}")
    functions = _functions(node, len(directions))

    def start(state: Tensor | None, place: int) -> Tensor:
        return x.new_zeros(rows, size) if state is None else state[place].expand(rows, size)

    outputs, ends = [], []
    for place, backwards in enumerate(directions):
        bias = x.new_zeros(2 * gates * size) if b is None else b[place]
        peephole = None if peepholes is None else peepholes[place]
        cell = _CELLS[node.op](node, r[place], bias, functions[place], peephole)
        state: State = (start(h, place), start(c, place)) if node.op == "LSTM" else (start(h, place),)
        # the biases of the input: those of the recurrence are the cell's
        inputs = functional.linear(x, w[place], bias[: gates * size])
        found: list[Tensor] = [x] * steps
        for step in reversed(range(steps)) if backwards else range(steps):
            state = cell(inputs[:, step], state)
            found[step] = state[0]
        outputs.append(torch.stack(found, 1))
        ends.append(state)
    whole, last = torch.stack(outputs, 2), [torch.stack(states, 1) for states in zip(*ends, strict=True)]
    return [whole, *last] if rows_first else [whole.permute(1, 2, 0, 3), *(end.transpose(0, 1) for end in last)]


def _functions(node: Node, directions: int) -> list[tuple[Function, ...]]:
    default = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}[node.op]
    names = node.get("activations", default * directions)
    if len(names) != len(default) * directions:
        raise ModelError(f"it names {len(names)} activations where {len(default) * directions} are needed")
    if unknown := [name for name in names if name.lower() not in _ACTIVATIONS]:
        raise ModelError(f"the activation '{unknown[0][:20]}' is not supported: {', '.join(_ACTIVATIONS)} are")
    functions = [partial(_clipped, _ACTIVATIONS[name.lower()], node.get("clip")) for name in names]
    return [tuple(functions[i * len(default) : (i + 1) * len(default)]) for i in range(directions)]


def _clipped(function: Function, limit: float | None, x: Tensor) -> Tensor:
    return function(x if limit is None else torch.clamp(x, -limit, limit))


def _rnn(node: Node, r: Tensor, b: Tensor, functions: tuple[Function, ...], peephole: Tensor | None) -> Cell:
    (f,), recurrent_bias = functions, b[len(b) // 2 :]

    def cell(inputs: Tensor, state: State) -> State:
        return (f(inputs + functional.linear(state[0], r, recurrent_bias)),)

    return cell


def _gru(node: Node, r: Tensor, b: Tensor, functions: tuple[Function, ...], peephole: Tensor | None) -> Cell:
    """Gates update, reset, hidden."""
    (f, g), size = functions, r.shape[1]
    bias = b[len(b) // 2 :]
    after = bool(node.get("linear_before_reset", 0))

    def cell(inputs: Tensor, state: State) -> State:
        (h,) = state
        gates = f(inputs[:, : 2 * size] + functional.linear(h, r[: 2 * size], bias[: 2 * size]))
        update, reset = gates[:, :size], gates[:, size:]
        if after:
            recurrent = reset * functional.linear(h, r[2 * size :], bias[2 * size :])
        else:
            recurrent = functional.linear(reset * h, r[2 * size :], bias[2 * size :])
        hidden = g(inputs[:, 2 * size :] + recurrent)
        return ((1 - update) * hidden + update * h,)

    return cell


def _lstm(node: Node, r: Tensor, b: Tensor, functions: tuple[Function, ...], peephole: Tensor | None) -> Cell:
    """Gates input, output, forget, cell; peepholes input, output, forget."""
    if node.get("input_forget", 0):
        raise ModelError("coupled input and forget gates are not supported")
    (f, g, h), size, bias = functions, r.shape[1], b[len(b) // 2 :]

    def seen(c: Tensor, place: int) -> Tensor | float:
        return 0.0 if peephole is None else peephole[place * size : (place + 1) * size] * c

    def cell(inputs: Tensor, state: State) -> State:
        hidden, c = state
        gates = inputs + functional.linear(hidden, r, bias)
        i, o, forget, new = (gates[:, k * size : (k + 1) * size] for k in range(4))
        if peephole is not None:
            i, forget = i + seen(c, 0), forget + seen(c, 2)
        c = f(forget) * c + f(i) * g(new)
        o = o if peephole is None else o + seen(c, 1)
        return f(o) * h(c), c

    return cell


_CELLS: dict[str, Callable[[Node, Tensor, Tensor, tuple[Function, ...], Tensor | None], Cell]] = {
    "GRU": _gru,
    "LSTM": _lstm,
    "RNN": _rnn,
}

RECURRENT: dict[str, Operator] = {
    "GRU": operator(partial(_recurrent, 3), "activations clip direction hidden_size layout linear_before_reset", 4),
    # its clip is left out: onnxruntime does not bound the cell's state as the specification says
    "LSTM": operator(partial(_recurrent, 4), "activations direction hidden_size input_forget layout", 4),
    "RNN": operator(partial(_recurrent, 1), "activations clip direction hidden_size layout", 4),
}
