"""What an audit does where gradients cannot be trusted: it follows others, and attacks without any."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from torch import Tensor, nn

from holdfast.audit.diagnosis import Subject
from holdfast.audit.protocols import EvaluationProtocol, endless, protocol_for
from holdfast.audit.result import Diagnostic
from holdfast.engine import Guide, Stage
from holdfast.errors import HoldfastError, SettingError
from holdfast.models.query import Query
from holdfast.models.retraced import retraced
from holdfast.threats import Threat

__all__ = ["UNCHANGED", "Adaptation", "adaptation_for"]

# The checks whose failure says that gradients lead attacks nowhere, or astray.
_GRADIENTS = frozenset(
    {
        "check failed",
        "gradient not finite",
        "no gradient",
        "sparse gradient",
        "true gradient",
        "vanishing gradient",
        "zero gradient",
    }
)


@dataclass(frozen=True)
class Adaptation:
    """What is done beyond a protocol, and why.

    Parameters
    ----------
    reasons : tuple of str
        The checks that failed.
    changes : tuple of str
        What follows from that, in words.
    dropped : tuple of str
        Stages of the protocol that cannot run: they follow gradients, and none can be had.
    stages : tuple of Stage
        For the examples that the protocol leaves standing.
    """

    reasons: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()

    def applied(self, protocol: EvaluationProtocol) -> EvaluationProtocol:
        """The protocol without what cannot run, and with what is added."""
        kept = (stage for stage in protocol.stages if stage.name not in self.dropped)
        return replace(protocol, stages=(*kept, *self.stages))


UNCHANGED = Adaptation()


def adaptation_for(
    subject: Subject, model: nn.Module, threat: Threat, findings: Sequence[Diagnostic], stack: ExitStack
) -> Adaptation:
    """What the failure of a check calls for.

    The gradients of the operations that the model executes, with smooth slopes where those are 0 (see
    :func:`holdfast.models.retraced.retraced`), are followed by the attacks of ``quick``; then come the attacks of
    ``blackbox``. The model itself says what fools it.

    Parameters
    ----------
    subject : Subject
        The model as it is asked, and some of the examples.
    model : nn.Module
        The model, the normalisation of its inputs included.
    threat : Threat
        What the adversary may do.
    findings : sequence of Diagnostic
        What the checks have found.
    stack : ExitStack
        Closes the stand-ins' queries.

    Returns
    -------
    Adaptation
        :data:`UNCHANGED` where nothing failed that it has an answer to.
    """
    reasons = tuple(found.name for found in findings if found.verdict == "fail" and found.name in _GRADIENTS)
    if not reasons or not subject.sighted:
        return UNCHANGED
    known = {stage.name for stage in subject.protocol.stages}
    stages: list[Stage] = []
    changes: list[str] = []
    for name, twin, words in _twins(model, subject.x):
        guide = _guide(twin, subject, stack)
        if guide is not None:
            guided = _stages("nearest" if endless(threat) else "quick", threat)
            sighted = (stage for stage in guided if stage.attack.knowledge == "gradient")
            stages += [replace(stage, name=f"{stage.name}, {name}", guide=guide) for stage in sighted]
            changes.append(words)
    blind = [stage for stage in _stages("blackbox", threat) if stage.name not in known]
    if blind:
        changes.append(f"tried attacks without gradients: {', '.join(stage.name for stage in blind)}")
    dropped: tuple[str, ...] = ()
    if "no gradient" in reasons:
        dropped = tuple(s.name for s in subject.protocol.stages if "gradient" in _knowledge(s))
        if dropped:
            changes.append(f"left out what needs a gradient: {', '.join(dropped)}")
    return Adaptation(reasons, tuple(changes), dropped, (*stages, *blind))


def _twins(model: nn.Module, x: Tensor) -> Iterator[tuple[str, nn.Module, str]]:
    """Stand-ins to follow, each with the word for its stages, and with what it is."""
    found = retraced(model, x)
    if found.module is None:
        return
    what = f", in place of {'; '.join(found.replaced)}" if found.replaced else ""
    yield "retraced", found.module, f"followed the gradients of the operations that the model executes{what}"
    if found.relaxed is not None:
        yield "relaxed", found.relaxed, "followed the model with smooth operations in place of steps"


def _guide(twin: nn.Module, subject: Subject, stack: ExitStack) -> Guide | None:
    """A query of a stand-in; None where it cannot be asked."""
    query = Query(twin, batch_size=subject.query.batch_size, seed=subject.seed)
    try:
        with ExitStack() as opened:
            opened.enter_context(query)
            logits = query.bare_logits(subject.x)
            if logits.shape != subject.logits.shape:
                return None
            query.gradient(subject.x[: query.batch_size], lambda logits: logits.sum(1))
            stack.enter_context(opened.pop_all())
    except HoldfastError:
        return None
    return Guide(query)


def _stages(name: str, threat: Threat) -> tuple[Stage, ...]:
    """Those of a named protocol; none where there is none for the threat's kind of set."""
    try:
        return protocol_for(name, threat).stages
    except SettingError:
        return ()


def _knowledge(stage: Stage) -> set[str]:
    return {attack.knowledge for attack in (stage.attack, stage.polish) if attack is not None}
