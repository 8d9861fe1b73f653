"""VNN-LIB texts, what formulas say of a point, and the truth about small ReLU networks from a mixed-integer program."""

import operator
from fractions import Fraction
from functools import reduce
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn


def text(lower, upper, formula: str, outputs: int) -> str:
    """A file: bounds of inputs, and one assertion about outputs."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        lines += [f"(assert (>= X_{i} {float(low)!r}))", f"(assert (<= X_{i} {float(high)!r}))"]
    return "\n".join([*lines, f"(assert {formula})"])


def said(expression) -> str:
    """An expression, nested tuples of words, as text."""
    return expression if isinstance(expression, str) else f"({' '.join(map(said, expression))})"


_COMPARE = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}


def meant(expression, point: dict[str, float]):
    """What SMT-LIB says that an expression is worth at a point: a rational number, or a truth."""
    if isinstance(expression, str):
        if expression in {"true", "false"}:
            return expression == "true"
        return Fraction(point[expression]) if expression in point else Fraction(expression)
    head, *parts = expression
    values = [meant(part, point) for part in parts]
    if head in _COMPARE:
        return _COMPARE[head](*values)
    if head == "not":
        return not values[0]
    if head == "and":
        return all(values)
    if head == "or":
        return any(values)
    if head == "=>":  # associates to the right
        return reduce(lambda after, before: not before or after, reversed(values))
    if head == "-" and len(values) == 1:
        return -values[0]
    return reduce({"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[head], values)


def relu_network(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    """A random network in float32."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) * (2 / fan_in) ** 0.5)
            layer.bias.copy_(torch.randn(fan_out, generator=generator) * 0.3)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def least_excess(model: nn.Sequential, lower, upper, matrix, bound, reads=None) -> float:
    """The least ``max(matrix @ y + reads @ x - bound)`` over a box, exactly, by big-M encoding of the ReLUs."""
    reads = np.zeros((len(matrix), len(lower))) if reads is None else np.asarray(reads)
    layers = [(m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in model[::2]]
    widths = [len(lower), *(len(bias) for _, bias in layers[:-1])]
    hidden = sum(widths[1:])
    inputs, count = widths[0], sum(widths) + hidden + 1  # values, then a sign for each neuron, then the objective
    rows, lows, highs = [], [], []

    def constrain(entries: dict[int, float], low: float, high: float) -> None:
        row = np.zeros(count)
        for place, value in entries.items():
            row[place] += value
        rows.append(row)
        lows.append(low)
        highs.append(high)

    low, high = np.asarray(lower, float), np.asarray(upper, float)
    bounds = [np.concatenate([low, np.zeros(hidden), np.zeros(hidden), [-np.inf]])]
    bounds.append(np.concatenate([high, np.full(hidden, np.inf), np.ones(hidden), [np.inf]]))
    before, here = 0, inputs
    for weight, bias in layers[:-1]:
        middle, radius = weight @ (low + high) / 2 + bias, np.abs(weight) @ (high - low) / 2
        for i in range(len(bias)):
            least, most = min(middle[i] - radius[i], 0), max(middle[i] + radius[i], 0)
            affine = {before + j: -weight[i, j] for j in range(weight.shape[1])}
            sign = sum(widths) + here - inputs + i
            constrain({here + i: 1, **affine}, bias[i], np.inf)
            constrain({here + i: 1, sign: -least, **affine}, -np.inf, bias[i] - least)
            constrain({here + i: 1, sign: -most}, -np.inf, 0)
        low, high = np.maximum(middle - radius, 0), np.maximum(middle + radius, 0)
        before, here = here, here + len(bias)
    weight, bias = layers[-1]
    limits = np.asarray(matrix) @ bias - np.asarray(bound)
    for row, read, limit in zip(np.asarray(matrix) @ weight, reads, limits, strict=True):
        hidden_part = {before + j: -row[j] for j in range(len(row))}
        constrain({count - 1: 1, **hidden_part, **{i: -read[i] for i in range(inputs)}}, limit, np.inf)
    integrality = np.zeros(count)
    integrality[sum(widths) : -1] = 1
    objective = np.zeros(count)
    objective[-1] = 1
    found = milp(
        objective,
        constraints=LinearConstraint(np.array(rows), lows, highs),
        bounds=Bounds(*bounds),
        integrality=integrality,
        options={"mip_rel_gap": 0.0},
    )
    assert found.status == 0, found.message
    return float(found.fun)
