"""Whether gradients vanish, wholly or in part, or are no numbers."""

import torch
from torch import Tensor

from holdfast.audit.diagnosis.judged import judged
from holdfast.audit.diagnosis.points import contrast
from holdfast.audit.diagnosis.subject import Subject
from holdfast.audit.result import Diagnostic
from holdfast.tasks.objectives import margin

__all__ = ["broken_gradient", "no_gradient", "sparse_gradient", "vanishing_gradient", "zero_gradient"]

_CURE = "replace what has no derivative by BPDA, or ask without gradients (protocol blackbox)"
# What is seen at a single one of the points may be a dead corner of an honest network.
_SOME = 0.05
# The logits' change over the whole range of inputs, to first order, in shares of their own size: below the rounding of
# float32 no step can be seen. On nine published networks it was above 1.
_VANISHING = 1e-7


def no_gradient(subject: Subject) -> Diagnostic | None:
    """Whether any gradient reaches the input."""
    if not subject.sighted or not subject.continuous:
        return None
    return Diagnostic(
        name="no gradient",
        verdict="fail" if subject.refusal else "pass",
        message=f"no gradient can be had: {subject.refusal}" if subject.refusal else "gradients reach the input",
        advice="write it in torch from end to end, put the part that is not in BPDA, or ask without gradients "
        "(protocol blackbox)"
        if subject.refusal
        else "",
    )


def zero_gradient(subject: Subject) -> Diagnostic | None:
    """The share of inputs at which the margin's gradient is exactly 0: clean ones, and random and attacked points."""
    if not subject.differentiable:
        return None
    rows = torch.arange(len(subject.x), device=subject.x.device)
    clean = torch.cat([_margin_gradient(subject, some) for some in rows.split(subject.query.batch_size)])
    share = max(float(_still(grads).double().mean()) for grads in (clean, *subject.points.finite.chunk(3)))
    return judged(
        name="zero gradient",
        value=share,
        warn=0.0,
        fail=_SOME,
        well="the margin's gradient is nowhere exactly 0",
        ill=f"the margin's gradient is exactly 0 at {share:.0%} of inputs: gradients are masked, and attacks that "
        "follow them cannot show how robust the model is",
        advice=_CURE,
    )


def vanishing_gradient(subject: Subject) -> Diagnostic | None:
    """How much logits change over the range of inputs, to first order, at the median point where the gradient is not 0.

    Below the rounding of the logits themselves, no step along it can be told from noise.
    """
    if not subject.differentiable:
        return None
    points = subject.points
    moving = ~_still(points.finite)
    if not bool(moving.any()):
        return None
    span = (subject.x.amax() - subject.x.amin()).double()
    size = points.logits.double().abs().amax(1)[moving]
    value = float((points.finite[moving].double().abs().flatten(1).sum(1) * span / size).median())
    return judged(
        name="vanishing gradient",
        value=value,
        warn=_VANISHING,
        fail=_VANISHING,
        above=False,
        well="the gradient is large enough for steps to be seen",
        ill=f"over the whole range of inputs the gradient promises a change of the logits by a share of {value:.1g}, "
        "less than they are rounded by: it has vanished, and steps along it lead nowhere",
        advice=_CURE,
    )


def broken_gradient(subject: Subject) -> Diagnostic | None:
    """The share of points at which the gradient is not finite; attacks take it for 0."""
    if not subject.differentiable:
        return None
    share = float((~subject.points.grad.isfinite()).flatten(1).any(1).double().mean())
    return judged(
        name="gradient not finite",
        value=share,
        warn=0.0,
        fail=_SOME,
        well="gradients are finite",
        ill=f"the gradient has NaN or infinite entries at {share:.0%} of inputs, where attacks stand still",
        advice="find the operation (torch.autograd.detect_anomaly), such as a root or a logarithm at 0, and keep it "
        "away from there",
    )


# Features asked about at each input, and how large a part of what matters may have no gradient. On published networks
# features without a gradient do not matter at all.
_FEATURES, _HIDDEN = 8, 0.1


def sparse_gradient(subject: Subject) -> Diagnostic | None:
    """Whether features that have no gradient matter all the same: the share of those that move the margin.

    Each is moved by its reach, one at a time.
    """
    if not subject.differentiable or not subject.steady:
        return None
    points, reach = subject.points, subject.reach
    blank = (points.finite == 0) & (reach > 0) & ~_still(points.finite).reshape(-1, *[1] * (reach.dim() - 1))
    share = float(blank.double().mean())
    mattering = _mattering(subject, blank) if share > _HIDDEN else 0.0
    hidden = share * mattering
    return judged(
        name="sparse gradient",
        value=hidden,
        warn=_HIDDEN,
        fail=_HIDDEN,
        well="features that matter have gradients",
        ill=f"{hidden:.0%} of the features matter to the logits and have a gradient of exactly 0: attacks that follow "
        "it leave them alone",
        advice=_CURE,
    )


def _mattering(subject: Subject, blank: Tensor) -> float:
    """Of features marked as having no gradient, the share that changes the margin; random ones are tried."""
    points, flat = subject.points, blank.flatten(1)
    copies = len(points.x) // len(subject.x)
    found, asked = 0, 0
    for draw in range(_FEATURES):
        order = subject.draws(100 + draw, copies).uniform(flat.shape[1])
        chosen = torch.where(flat, order, -1.0).argmax(1, keepdim=True)
        rows = flat.any(1).nonzero()[:, 0]
        way = torch.zeros_like(flat, dtype=points.x.dtype).scatter(1, chosen, 1.0).reshape(points.x.shape)
        moved = points.x + way * subject.reach * 2
        logits = subject.query.bare_logits(moved[rows])
        before = contrast(points.logits[rows], points.y[rows], points.rival[rows])
        after = contrast(logits, points.y[rows], points.rival[rows])
        rounding = 1e-5 * points.logits[rows].abs().amax(1)
        found += int(((after - before).abs() > rounding).sum())
        asked += len(rows)
    return found / max(asked, 1)


def _margin_gradient(subject: Subject, rows: Tensor) -> Tensor:
    return subject.query.gradient(subject.x[rows], lambda logits: margin(logits, subject.y[rows])).grad


def _still(grad: Tensor) -> Tensor:
    return grad.flatten(1).abs().amax(1) == 0
