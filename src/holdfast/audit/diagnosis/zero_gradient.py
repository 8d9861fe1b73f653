"""Whether gradients vanish."""

from holdfast.audit.diagnosis.subject import Subject
from holdfast.audit.result import Diagnostic
from holdfast.tasks.objectives import margin

__all__ = ["zero_gradient"]


def zero_gradient(subject: Subject) -> Diagnostic | None:
    """The share of clean inputs at which the margin's gradient is exactly 0."""
    if not subject.sighted:
        return None
    known = subject.y.clamp(0, subject.logits.shape[1] - 1)
    grad = subject.query.gradient(subject.x, lambda logits: margin(logits, known)).grad
    share = float((grad.flatten(1).abs().amax(1) == 0).double().mean())
    return Diagnostic(
        name="zero gradient",
        verdict="fail" if share else "pass",
        value=share,
        threshold=0.0,
        message=f"the margin's gradient is exactly 0 at {share:.0%} of clean inputs: gradients are masked, and attacks "
        "that follow them cannot show how robust the model is"
        if share
        else "the margin's gradient is nowhere exactly 0",
        advice="replace what has no derivative by BPDA, or ask without gradients (protocol blackbox)" if share else "",
    )
