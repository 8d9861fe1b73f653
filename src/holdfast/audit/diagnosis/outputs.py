"""How a model's answers are read, and which objectives they allow."""

from collections.abc import Iterator

from holdfast.audit.diagnosis.subject import Subject
from holdfast.audit.result import Diagnostic
from holdfast.models.one_logit import OneLogit
from holdfast.models.query import Query

__all__ = ["examine_outputs", "few_classes"]


def examine_outputs(query: Query) -> Iterator[Diagnostic]:
    """How the model's answers are read, where that is not plain; it has been asked before."""
    if isinstance(query.model, OneLogit):
        side = query.model.positive
        yield Diagnostic(
            name="one logit",
            verdict="note",
            message=f"the model's one output was read as one logit: class {side} where it is positive, class "
            f"{1 - side} elsewhere (where it is the other way round, positive={1 - side} or --positive {1 - side})",
        )


def few_classes(subject: Subject) -> Diagnostic | None:
    """Whether targeted DLR has the four classes that it needs, where it is asked for."""
    classes = subject.logits.shape[1]
    if classes >= 4 or all(getattr(s.attack, "objective", None) != "dlr" for s in subject.protocol.stages):
        return None
    stand_in = "the third logit stands for the fourth" if classes == 3 else "the margin is used instead"
    return Diagnostic(
        name="few classes",
        verdict="note",
        message=f"targeted DLR needs 4 classes and the model has {classes}: {stand_in}",
    )
