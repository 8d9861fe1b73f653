"""GELU as exporters write it where the opset has no operator for it: ``x (1 + erf(x / sqrt 2)) / 2`` in five nodes.

Bounds of the whole are much closer than those of its parts, so the parts become the one function again.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from holdfast.models.onnx.elementwise import ELEMENTWISE
from holdfast.models.onnx.module import Name, Step

if TYPE_CHECKING:
    from holdfast.models.onnx.node import Value

__all__ = ["fused"]


def fused(steps: list[Step], output: str) -> list[Step]:
    """The steps with every GELU in one."""
    made = {name: step for step in steps for name in step.node.outputs if name}
    reads = Counter(a.value for step in steps for a in step.arguments if isinstance(a, Name))
    reads[output] += 1
    readers = {a.value: step for step in steps for a in step.arguments if isinstance(a, Name)}
    gone: set[str] = set()
    gelus: dict[str, Step] = {}

    def alone(step: Step) -> Step | None:
        """The step that reads a step's value, if it is the only one."""
        name = step.node.outputs[0]
        return readers.get(name) if reads[name] == 1 else None

    for erf in steps:
        if erf.node.op != "Erf":
            continue
        scaled = made.get(_name(erf.arguments[0]) or "")
        x = None if scaled is None or reads[scaled.node.outputs[0]] != 1 else _root_of_two(scaled)
        plus = alone(erf)
        if x is None or scaled is None or plus is None or _with_number(plus, "Add", 1.0) != erf.node.outputs[0]:
            continue
        times = alone(plus)
        if times is None or times.node.op != "Mul":
            continue
        parts, whole = [scaled, erf, plus, times], times
        other = next((_name(a) for a in times.arguments if _name(a) != plus.node.outputs[0]), None)
        half = made.get(other or "")
        if half is not None and reads[other or ""] == 1 and _with_number(half, "Mul", 0.5) == x:
            parts.append(half)
        elif other == x and (last := alone(times)) is not None and _with_number(last, "Mul", 0.5) is not None:
            parts, whole = [*parts, last], last
        else:
            continue
        gone |= {part.node.outputs[0] for part in parts}
        node = replace(whole.node, op="Gelu", inputs=(x,), attributes={})
        gelus[whole.node.outputs[0]] = Step(node, ELEMENTWISE["Gelu"].rule, (Name(x),))
    return [
        gelus.get(step.node.outputs[0], step)
        for step in steps
        if step.node.outputs[0] not in gone or step.node.outputs[0] in gelus
    ]


def _name(argument: Name | Value) -> str | None:
    return argument.value if isinstance(argument, Name) and isinstance(argument.value, str) else None


def _with_number(step: Step, op: str, number: float) -> str | None:
    """The other operand of a sum or product with a number."""
    if step.node.op != op or len(step.arguments) != 2 or number not in step.arguments:
        return None
    return next((_name(a) for a in step.arguments if _name(a)), None)


def _root_of_two(step: Step) -> str | None:
    """What is divided by the root of two, as nearly as a number of some precision says it."""
    if step.node.op not in {"Div", "Mul"} or len(step.arguments) != 2:
        return None
    root = math.sqrt(2) if step.node.op == "Div" else math.sqrt(0.5)
    x, factor = step.arguments
    if step.node.op == "Mul" and isinstance(factor, Name):
        x, factor = factor, x
    near = {root, float(np.float32(root)), float(np.float16(root))}
    return _name(x) if isinstance(factor, float) and factor in near else None
