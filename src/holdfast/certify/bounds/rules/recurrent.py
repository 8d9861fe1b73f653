"""Recurrent networks, unrolled step by step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.operations.activation import Elementwise
from holdfast.certify.bounds.operations.linear import Dense, Sum
from holdfast.certify.bounds.relaxations import ACTIVATIONS
from holdfast.certify.bounds.rounding import largest
from holdfast.certify.bounds.rules.arithmetic import add, multiply, subtract
from holdfast.certify.bounds.rules.builder import Builder, Symbol, check_constant
from holdfast.certify.bounds.rules.elementwise import relu
from holdfast.certify.bounds.rules.moves import join
from holdfast.errors import ModelError

__all__ = ["CELLS", "unrolled"]


def unrolled(kind: str, builder: Builder, x: Any, state: Any, params: Any, *settings: Any) -> list[Symbol]:
    """An LSTM, a GRU or a plain network, unrolled over its steps."""
    biased, layers, _, _, both, first = settings
    check_constant(*params, *(state if isinstance(state, list | tuple) else [state]))
    states = list(state) if isinstance(state, list | tuple) else [state]
    if x.shape[0 if first else 1] != 1:
        raise ModelError("it works along the batch; bounds need independent rows")
    time, width, directions = (1 if first else 0), states[0].shape[-1], 2 if both else 1
    each = 4 if biased else 2
    if len(params) != each * layers * directions:
        raise ModelError("a recurrent network with projections is not bounded")
    values = [
        builder.move(partial(torch.select, dim=time, index=step), x, shape=(1, x.shape[-1]))
        for step in range(x.shape[time])
    ]
    ends: list[list[Symbol]] = []
    for layer in range(layers):
        runs = []
        for direction in range(directions):
            number = layer * directions + direction
            weights = [torch.as_tensor(part) for part in params[number * each : (number + 1) * each]]
            found, last = _run(
                kind, builder, values[::-1] if direction else values, weights, [s[number] for s in states]
            )
            runs.append(found[::-1] if direction else found)
            ends.append(last)
        values = [
            parts[0] if directions == 1 else builder.move(_side_by_side, *parts, shape=(1, 2 * width))
            for parts in zip(*runs, strict=True)
        ]
    whole = builder.move(partial(_stacked, dim=time), *values)
    shape = (layers * directions, 1, width)
    return [whole, *(builder.move(partial(_stacked, dim=0), *last, shape=shape) for last in zip(*ends, strict=True))]


def _side_by_side(*parts: Tensor) -> Tensor:
    return torch.cat(parts, -1)


def _stacked(*parts: Tensor, dim: int) -> Tensor:
    return torch.stack(parts, dim)


def _run(
    kind: str, builder: Builder, values: list[Symbol], weights: list[Tensor], states: list[Tensor]
) -> tuple[list[Symbol], list[Symbol]]:
    """One layer in one direction: the value of each step, and the states after the last."""
    width = states[0].shape[-1]
    matrix, bias = _cell_weights(kind, weights, width)
    at = builder.at(builder.name, builder.target, (1, width))
    hidden: list[Any] = list(states)
    found = []
    for x in values:
        joined = builder.at(builder.name, torch.cat, (1, matrix.shape[1]))
        inputs = join(joined, [x, hidden[0], torch.ones(1, 1, dtype=builder.dtype)], 1)
        gates = builder.add(Dense(matrix, bias), inputs, shape=(1, len(matrix)))
        parts = [
            builder.move(partial(torch.narrow, dim=1, start=start, length=width), gates, shape=(1, width))
            for start in range(0, len(matrix), width)
        ]
        hidden = CELLS[kind](at, parts, hidden)
        found.append(hidden[0])
    return found, hidden


def _cell_weights(kind: str, weights: list[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """What a step is multiplied with: the input, the state and a 1, in the place of the state's bias.

    Together, so that the sums may be taken in any order. Of a GRU the last part comes twice, of the input alone and of
    the state alone.
    """
    by_input, by_state = weights[:2]
    first, second = weights[2:] if len(weights) > 2 else (by_input.new_zeros(len(by_input)),) * 2
    if kind == "gru":
        zeros, none = torch.zeros_like, 2 * width
        by_input = torch.cat([by_input, zeros(by_input[none:])])
        by_state = torch.cat([by_state[:none], zeros(by_state[none:]), by_state[none:]])
        first = torch.cat([first, zeros(first[none:])])
        second = torch.cat([second[:none], zeros(second[none:]), second[none:]])
    return torch.cat([by_input, by_state, second.unsqueeze(1)], 1), first


def _lstm_cell(builder: Builder, parts: list[Symbol], hidden: list[Any]) -> list[Any]:
    enter, forget, leave = (_gate("sigmoid", builder, parts[i]) for i in (0, 1, 3))
    new = multiply(builder, enter, _gate("tanh", builder, parts[2]))
    cell = add(builder, multiply(builder, forget, hidden[1]), new)
    return [multiply(builder, leave, _gate("tanh", builder, cell)), cell]


def _gru_cell(builder: Builder, parts: list[Symbol], hidden: list[Any]) -> list[Any]:
    reset, update = (_gate("sigmoid", builder, part) for part in parts[:2])
    new = _gate("tanh", builder, add(builder, parts[2], multiply(builder, reset, parts[3])))
    step = subtract(builder, hidden[0], new)
    moved = multiply(builder, update, step)
    return [builder.add(Sum((1, 1)), new, moved, shape=builder.shape, error=_blending, also=[step])]


def _plain_cell(name: str, builder: Builder, parts: list[Symbol], hidden: list[Any]) -> list[Any]:
    return [relu(builder, parts[0]) if name == "relu" else _gate(name, builder, parts[0])]


CELLS: dict[str, Callable[[Builder, list[Symbol], list[Any]], list[Any]]] = {
    "lstm": _lstm_cell,
    "gru": _gru_cell,
    "rnn_tanh": partial(_plain_cell, "tanh"),
    "rnn_relu": partial(_plain_cell, "relu"),
}


def _gate(name: str, builder: Builder, x: Symbol) -> Symbol:
    return builder.add(Elementwise(ACTIVATIONS[name]), x, shape=x.shape, error=_gating)


def _gating(unit: float, x: Interval) -> Tensor:
    """Kernels for whole layers have functions of their own, good to some units of 1."""
    return torch.full_like(x.lower, 32 * unit)


def _blending(unit: float, new: Interval, moved: Interval, step: Interval) -> Tensor:
    """``(1 - z) n + z h`` may be computed as that, or as ``n + z (h - n)``: three roundings of sizes like these."""
    return 8 * unit * (2 * largest(new) + largest(step))
