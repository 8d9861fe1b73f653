"""Whether the same input gets the same answer."""

from holdfast.audit.diagnosis.subject import Subject
from holdfast.audit.result import Diagnostic

__all__ = ["random_model"]


def random_model(subject: Subject) -> Diagnostic:
    """Ask twice, and see whether the answers differ where the protocol does not average over them."""
    apart = float((subject.again - subject.logits).abs().max())
    return Diagnostic(
        name="random model",
        verdict="warn" if apart and subject.protocol.samples == 1 else "pass",
        value=apart,
        threshold=0.0,
        message=f"the same input gave logits that differ by up to {apart:.2g}: verdicts hold for single draws of the "
        "model's own noise, and gradient attacks without averaging overestimate its robustness"
        if apart
        else "the same input gives the same logits",
        advice="use protocol rand, which averages" if apart and subject.protocol.samples == 1 else "",
    )
