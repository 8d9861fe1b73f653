"""Counterexamples: which inputs a box really has, what a network really answers, and how that is written down."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.errors import DataError
from holdfast.models.borrow import borrowed

if TYPE_CHECKING:
    from pathlib import Path

    from holdfast.certify.properties import Conjunction, Declared, Property

__all__ = ["Replay", "admitting", "inward", "is_counterexample", "outward", "remark", "replayer", "written"]

Replay = Callable[[Tensor], Tensor]


def inward(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The smallest and largest numbers of a precision inside a box; lower is above upper where there is none."""
    low, high = lower.to(dtype), upper.to(dtype)
    infinity = torch.tensor(torch.inf, dtype=dtype)
    low = torch.where(low.to(lower.dtype) < lower, low.nextafter(infinity), low)
    high = torch.where(high.to(upper.dtype) > upper, high.nextafter(-infinity), high)
    return low, high


def outward(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest number of a precision below a box and the smallest one above it: a box that holds the given one."""
    low, high = lower.to(dtype), upper.to(dtype)
    infinity = torch.tensor(torch.inf, dtype=dtype)
    low = torch.where(low.to(lower.dtype) > lower, low.nextafter(-infinity), low)
    high = torch.where(high.to(upper.dtype) < upper, high.nextafter(infinity), high)
    return low, high


def admitting(prop: Property, dtype: torch.dtype) -> Property:
    """A property whose boxes hold inputs that a network of a precision can be given.

    An input that is fixed at a number that the precision does not have, as 0.1, is the nearest number that it has.
    Where bounds differ but none lies between them, the box is widened to hold the numbers nearest to its ends.

    Raises
    ------
    DataError
        If bounds lie beyond the largest number of the precision.
    """
    sets = []
    for box in prop.sets:
        low, high = inward(torch.from_numpy(box.lower), torch.from_numpy(box.upper), dtype)
        none, fixed = (low > high).numpy(), box.lower == box.upper
        if not none.any():
            sets.append(box)
            continue
        near, far = (torch.from_numpy(end).to(dtype).double().numpy() for end in (box.lower, box.upper))
        if not (np.isfinite(near[none]).all() and np.isfinite(far[none]).all()):
            raise DataError(f"the property bounds an input beyond what a {_name(dtype)} holds; mend its bounds")
        lower = np.where(none, np.where(fixed, near, np.minimum(near, box.lower)), box.lower)
        upper = np.where(none, np.where(fixed, far, np.maximum(far, box.upper)), box.upper)
        sets.append(replace(box, lower=lower, upper=upper))
    return replace(prop, sets=tuple(sets))


def remark(prop: Property, asked: Property, dtype: torch.dtype, x: Tensor | None = None) -> str:
    """What to say of the difference between a property and what :func:`admitting` made of it; empty where it is none.

    With a counterexample ``(n,)`` it is only said if that lies in no box of the property itself.
    """
    if x is None:
        moved = np.zeros(prop.inputs, dtype=bool)
        for box, new in zip(prop.sets, asked.sets, strict=True):
            moved |= (box.lower != new.lower) | (box.upper != new.upper)
        places = np.flatnonzero(moved)
    else:
        inside = x.double().numpy()
        missed = (np.flatnonzero((inside < box.lower) | (box.upper < inside)) for box in prop.sets)
        places = min(missed, key=len)
    if not len(places):
        return ""
    more = f" and of {len(places) - 1} more" if len(places) > 1 else ""
    return f"no {_name(dtype)} lies between the bounds of input {places[0]}{more}; the nearest one is the input"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def replayer(model: nn.Module, path: Path | None = None) -> Replay:
    """What a network answers to one input, computed by a program that had no part in the search.

    Parameters
    ----------
    model : nn.Module
        The network.
    path : Path, optional
        The ONNX file, gzipped or not, that it comes from. Then onnxruntime answers, if it is installed.

    Returns
    -------
    callable
        From an input ``(*shape)`` to the entries of the output ``(K,)``; otherwise a plain forward pass of the model.
    """
    if path is not None and find_spec("onnxruntime") is not None:
        return _by_onnxruntime(path)

    def plain(x: Tensor) -> Tensor:
        with borrowed(model), torch.inference_mode():
            y: Tensor = model(x.unsqueeze(0).clone())
        return y.flatten()

    return plain


def _by_onnxruntime(path: Path) -> Replay:
    import onnxruntime

    data = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # An optimisation may compute another function of floating-point numbers: without pairs of casts, say.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = onnxruntime.InferenceSession(
        gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        (y,) = session.run(None, {name: x.unsqueeze(0).numpy()})
        return torch.from_numpy(y).flatten()

    return run


def is_counterexample(prop: Property, x: Tensor, y: Tensor) -> bool:
    """Whether an input ``(n,)`` lies in a box of the property and is unsafe with its output ``(K,)``: no tolerance."""
    inside = x.double().numpy()
    if not bool(y.isfinite().all()):
        return False
    values = [Fraction(value) for value in (*y.tolist(), *inside[list(prop.read)].tolist())]
    return any(
        _holds(conjunction, values)
        for box in prop.sets
        if bool(((box.lower <= inside) & (inside <= box.upper)).all())
        for conjunction in box.unsafe
    )


def _holds(conjunction: Conjunction, values: list[Fraction]) -> bool:
    """In rational arithmetic: a sum of floats would round."""
    for row, bound, strict in zip(conjunction.matrix, conjunction.bound, conjunction.strict, strict=True):
        value = sum((Fraction(row[j]) * values[j] for j in np.flatnonzero(row)), Fraction(0))
        if value > Fraction(bound) or (strict and value == Fraction(bound)):
            return False
    return True


def written(x: Tensor, y: Tensor, tensors: tuple[Declared, Declared] | None = None) -> str:
    """A counterexample with all digits: as the competition's result files have it, or as version 2 asks for."""
    values = [part.double().flatten().tolist() for part in (x, y)]
    if tensors is None:
        entries = [f"({kind}_{i} {v!r})" for kind, part in zip("XY", values, strict=True) for i, v in enumerate(part)]
        return "(" + "\n ".join(entries) + ")"
    lines = list[str]()
    for tensor, part in zip(tensors, values, strict=True):
        lines += [f"{tensor.name} {tensor.element} [{','.join(map(str, tensor.shape))}]", *map(repr, part)]
    return "\n".join(lines)
