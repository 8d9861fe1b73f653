"""Checks that say whether an audit's number deserves trust, one a file."""

import torch

from holdfast.audit.diagnosis.budget import doubts_about_budget
from holdfast.audit.diagnosis.outputs import examine_outputs, few_classes
from holdfast.audit.diagnosis.proofs import examine_proofs
from holdfast.audit.diagnosis.randomness import random_model
from holdfast.audit.diagnosis.stages import examine_stages
from holdfast.audit.diagnosis.subject import Check, Subject
from holdfast.audit.diagnosis.true_gradient import true_gradient
from holdfast.audit.diagnosis.verdicts import examine_verdicts
from holdfast.audit.diagnosis.zero_gradient import (
    broken_gradient,
    no_gradient,
    sparse_gradient,
    vanishing_gradient,
    zero_gradient,
)
from holdfast.audit.result import Diagnostic
from holdfast.data import Batch
from holdfast.threats import Threat
from holdfast.words import reason

__all__ = [
    "CHECKS",
    "Subject",
    "examine_outputs",
    "examine_proofs",
    "examine_stages",
    "examine_subject",
    "examine_verdicts",
    "preface",
]

# Before the attacks, in the order in which they are told.
CHECKS: tuple[Check, ...] = (
    few_classes,
    random_model,
    no_gradient,
    zero_gradient,
    vanishing_gradient,
    broken_gradient,
    sparse_gradient,
    true_gradient,
)


def preface(subject: Subject, threat: Threat, batch: Batch) -> list[Diagnostic]:
    """What to know before any check: what the protocol's number is, how outputs are read, doubts about the budget."""
    caveat = Diagnostic(name="protocol", verdict="note", message=subject.protocol.caveat)
    doubt = doubts_about_budget(threat, batch)
    about_budget = [Diagnostic(name="budget", verdict="note", message=doubt)] if doubt else []
    return [caveat, *examine_outputs(subject.query), *about_budget]


def examine_subject(subject: Subject) -> list[Diagnostic]:
    """The findings of all checks that a subject gives occasion to."""
    return [found for check in CHECKS if (found := _examined(check, subject)) is not None]


def _examined(check: Check, subject: Subject) -> Diagnostic | None:
    """What a check finds; that the model fails in it is a finding too."""
    try:
        return check(subject)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's own code raises
        return Diagnostic(
            name="check failed",
            verdict="fail",
            message=f"the model failed where {check.__name__.replace('_', ' ')} was looked at: {reason(error)}",
            advice="mend the model, or ask without gradients (protocol blackbox)",
        )
