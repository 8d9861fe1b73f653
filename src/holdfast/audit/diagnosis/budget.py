"""Whether a budget can be meant: what it allows, next to the box and to what lies between examples."""

import torch
from torch import Tensor

from holdfast.data import Batch
from holdfast.threats import Ball, Threat

__all__ = ["doubts_about_budget"]

# Examples that are compared with each other, and the share of them that tells.
_COMPARED, _NEARLY_ALL = 64, 0.9
# Inputs that reach this far are no shares; a budget below this share of that is less than one of 255 grey levels.
_WIDE, _LEVEL = 100.0, 1 / 255


def doubts_about_budget(threat: Threat, batch: Batch) -> str:
    """Why a budget is hardly the one that was meant, in one line with the likely cure; empty where it may be.

    It is too large where it covers the box, or where nearly every example shares an admissible input with one of
    another class, so that no model can be right about both (Yang et al., "A closer look at accuracy vs. robustness",
    NeurIPS 2020, arXiv:2003.02460, call such data not separated). It is too small where inputs are counted up to 255 or
    so, and it changes them by less than 1.

    Parameters
    ----------
    threat : Threat
        What the adversary may do; an infinite budget asks for the nearest input, and is always meant.
    batch : Batch
        The first examples.
    """
    if not isinstance(threat, Ball) or bool(threat.at(batch.index).budget(batch.x).isinf().any()):
        return ""
    x, y, here = batch.x[:_COMPARED], batch.y[:_COMPARED], threat.at(batch.index[:_COMPARED])
    if _covers_box(here, x):
        return (
            f"the budget of {threat.name} covers the whole box, {threat.box}: any input may be put in place of any "
            f"other, which nothing but a constant model withstands; {_smaller(threat, x)}"
        )
    count = int(_confusable(here, x, y).sum())
    if count >= max(_NEARLY_ALL * len(x), 1):
        return (
            f"the budget of {threat.name} is larger than what separates the classes: {count} of the first {len(x)} "
            "examples share an admissible input with one of another class, and no model is right about both; "
            f"{_smaller(threat, x)}"
        )
    width, largest = _width(x), _largest(threat)
    if threat.norm != "l0" and width >= _WIDE and 0 < largest < _LEVEL * width:
        return (
            f"the budget of {threat.name} is {largest / width:.2%} of the range of inputs, which vary by {width:g}: "
            f"budgets are in the units of the inputs, so divide images by 255, or write {largest * width:g} for "
            f"{largest:g} of the range"
        )
    return ""


def _covers_box(threat: Ball, x: Tensor) -> bool:
    """Whether from every input the corner of the box that is farthest away is admissible."""
    lower, upper = threat.box.around(x)
    corner = torch.where(upper >= -lower, upper, lower)
    return threat.box.bounded and bool(corner.any()) and bool(threat.admits(x + corner, x).all())


def _confusable(threat: Ball, x: Tensor, y: Tensor) -> Tensor:
    """``(N,)`` bool, the examples that share an admissible input with one of another class.

    Two balls meet, in what lies between their centres, if these are no farther apart than both budgets together; in L0
    what lies between takes some coordinates from one centre, and the others from the other.
    """
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    budget = threat.budget(x)
    for shift in range(1, len(x)):
        others, labels, budgets = (part.roll(shift, 0) for part in (x, y, budget))
        found |= (labels != y) & (threat.length(others - x) <= budget + budgets)
    return found


def _width(x: Tensor) -> float:
    """By how much features differ from example to example: the median of those that do."""
    widths = (x.amax(0) - x.amin(0)).flatten()
    widths = widths[widths > 0]
    return float(widths.median()) if len(widths) else 0.0


def _largest(threat: Ball) -> float:
    return float(torch.as_tensor(threat.eps, dtype=torch.float64).max())


def _smaller(threat: Ball, x: Tensor) -> str:
    """What was probably meant instead."""
    largest = _largest(threat)
    if threat.norm == "l0":
        return f"an input has {x.shape[1:].numel()} features, so give a smaller number"
    if threat.norm in ("linf", "l2") and 1 < largest <= 255 and float(x.abs().max()) <= 1:
        return f"for {largest:g} of 255 grey levels write {largest:g}/255, since inputs lie in [0, 1]"
    return "give a smaller one, in the units of the inputs"
