"""Counterexamples: which inputs a box really has, what a network really answers, and how that is written down."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.models.borrow import borrowed

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from holdfast.certify.vnnlib import Conjunction, Property

__all__ = ["Replay", "inward", "is_counterexample", "outward", "replayer", "written"]

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
            y: Tensor = model(x.unsqueeze(0))
        return y.flatten()

    return plain


def _by_onnxruntime(path: Path) -> Replay:
    import onnxruntime

    data = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(
        gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        (y,) = session.run(None, {name: x.unsqueeze(0).numpy()})
        return torch.from_numpy(y).flatten()

    return run


def is_counterexample(prop: Property, x: Tensor, y: Tensor) -> bool:
    """Whether an input ``(n,)`` lies in a box of the property and its output ``(K,)`` is unsafe there: no tolerance."""
    inside = x.double().numpy()
    outputs = [Fraction(value) for value in y.tolist()] if bool(y.isfinite().all()) else []
    return bool(outputs) and any(
        _holds(conjunction, outputs)
        for box in prop.sets
        if bool(((box.lower <= inside) & (inside <= box.upper)).all())
        for conjunction in box.unsafe
    )


def _holds(conjunction: Conjunction, outputs: list[Fraction]) -> bool:
    """In rational arithmetic: a sum of floats would round."""
    for row, bound, strict in zip(conjunction.matrix, conjunction.bound, conjunction.strict, strict=True):
        value = sum((Fraction(row[j]) * outputs[j] for j in np.flatnonzero(row)), Fraction(0))
        if value > Fraction(bound) or (strict and value == Fraction(bound)):
            return False
    return True


def written(x: Tensor, y: Tensor) -> str:
    """A counterexample as the competition's result files have it, with all digits."""

    def lines(kind: str, values: NDArray[np.float64]) -> list[str]:
        return [f"({kind}_{i} {float(value)!r})" for i, value in enumerate(values)]

    entries = lines("X", x.double().flatten().numpy()) + lines("Y", y.double().flatten().numpy())
    return "(" + "\n ".join(entries) + ")"
