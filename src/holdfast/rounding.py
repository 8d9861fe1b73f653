"""The standard model of floating-point arithmetic: by how much sums and products may be off, whatever their order.

Every operation errs by at most the unit roundoff ``u`` relatively, so what went through ``n`` of them is off by at most
``gamma_n = n u / (1 - n u)`` (Higham, "Accuracy and stability of numerical algorithms", 2002, section 3.1).
"""

import math

import torch

__all__ = ["gamma", "unit"]


def unit(dtype: torch.dtype) -> float:
    """The unit roundoff of a precision."""
    return torch.finfo(dtype).eps / 2


def gamma(count: float, u: float) -> float:
    """``n u / (1 - n u)``: by how much ``n`` roundings may change a product, relatively."""
    return count * u / (1 - count * u) if count * u < 1 else math.inf
