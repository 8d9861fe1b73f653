"""Checks that say whether an audit's number deserves trust."""

from collections.abc import Iterator

import torch

from holdfast.audit.budget import doubts_about_budget
from holdfast.audit.protocols import EvaluationProtocol
from holdfast.audit.result import Diagnostic, StageResult
from holdfast.certify.certificate import APART, LOOSE, TIMEOUT
from holdfast.data import Batch
from holdfast.models.one_logit import OneLogit
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin
from holdfast.threats import Threat

__all__ = ["examine_model", "examine_outputs", "examine_proofs", "examine_stages", "examine_verdicts"]


def examine_model(query: Query, threat: Threat, protocol: EvaluationProtocol, batch: Batch) -> list[Diagnostic]:
    """What a first batch tells: how outputs are read, doubts about the budget, randomness, gradients, objectives."""
    return list(_examine_model(query, threat, protocol, batch))


def _examine_model(query: Query, threat: Threat, protocol: EvaluationProtocol, batch: Batch) -> Iterator[Diagnostic]:
    yield Diagnostic(name="protocol", level="note", message=protocol.caveat)
    yield from examine_outputs(query)
    if doubt := doubts_about_budget(threat, batch):
        yield Diagnostic(name="budget", level="note", message=doubt)
    x, y = batch.x[: query.batch_size], batch.y[: query.batch_size].to(query.device)
    first, second = query.bare_logits(x), query.bare_logits(x)
    if not torch.equal(first, second) and protocol.samples == 1:
        yield Diagnostic(
            name="random model",
            level="warning",
            message="the same input gave different logits: verdicts hold for single draws of the model's own noise, "
            "and gradient attacks without averaging overestimate its robustness; protocol rand averages",
        )
    classes = first.shape[1]
    if classes < 4 and any(getattr(stage.attack, "objective", None) == "dlr" for stage in protocol.stages):
        stand_in = "the third logit stands for the fourth" if classes == 3 else "the margin is used instead"
        yield Diagnostic(
            name="few classes",
            level="note",
            message=f"targeted DLR needs 4 classes and the model has {classes}: {stand_in}",
        )
    if all(stage.attack.knowledge != "gradient" for stage in protocol.stages):
        return
    known = y.clamp(0, classes - 1)
    grad = query.gradient(query.prepare(x), lambda logits: margin(logits, known)).grad
    flat = int((grad.flatten(1).abs().amax(1) == 0).sum())
    if flat:
        yield Diagnostic(
            name="zero gradient",
            level="warning",
            message=f"the margin's gradient is exactly 0 at {flat} of {len(x)} clean inputs: gradients are masked, and "
            "attacks that follow them cannot show how robust the model is",
        )


def examine_outputs(query: Query) -> Iterator[Diagnostic]:
    """How the model's answers are read, where that is not plain; it has been asked before."""
    if isinstance(query.model, OneLogit):
        side = query.model.positive
        yield Diagnostic(
            name="one logit",
            level="note",
            message=f"the model's one output was read as one logit: class {side} where it is positive, class "
            f"{1 - side} elsewhere (where it is the other way round, positive={1 - side} or --positive {1 - side})",
        )


def examine_stages(protocol: EvaluationProtocol, stages: list[StageResult], examples: int) -> list[Diagnostic]:
    """What the attacks tell about each other: one that sees no gradient should not find what those that do have not.

    The threshold is that of the published ensemble, 0.2 % of the examples.
    """
    seen = False
    for stage, result in zip(protocol.stages, stages, strict=True):
        sighted = stage.attack.knowledge == "gradient"
        if seen and not sighted and stage.polish is None and result.broken > 0.002 * examples:
            return [
                Diagnostic(
                    name="black box beats white box",
                    level="warning",
                    message=f"{stage.name}, which sees no gradient, broke {result.broken} examples that the gradient "
                    "attacks before it had left: the model's gradients mislead, and stronger attacks may break more",
                )
            ]
        seen = seen or sighted
    return []


def examine_verdicts(
    verdicts: dict[str, int], predictions: int, labels: int, correct: int, majority: int
) -> list[Diagnostic]:
    """What the verdicts themselves tell.

    Parameters
    ----------
    verdicts : dict
        How many examples have each verdict.
    predictions, labels : int
        How many different classes the model predicts on clean inputs, and how many they have.
    correct, majority : int
        Clean inputs classified correctly, and inputs of the commonest label.
    """
    found = []
    if undecided := verdicts.get("undecided", 0):
        found.append(
            Diagnostic(
                name="undecided",
                level="warning",
                message=f"{undecided} examples ran out of queries unbroken; they count as standing, so the robust "
                "accuracy may be lower",
            )
        )
    if labels == 1:
        found.append(
            Diagnostic(
                name="one label",
                level="note",
                message="all examples have one label: a model that always answers it would do as well or better, and "
                "nothing is known of other classes",
            )
        )
    elif predictions == 1:
        found.append(
            Diagnostic(
                name="constant model",
                level="warning",
                message="the model answers one and the same class to every clean input: it is of no use, however hard "
                "it is to change its mind",
            )
        )
    elif correct <= majority:
        found.append(
            Diagnostic(
                name="no better than the majority",
                level="warning",
                message=f"clean accuracy ({correct} right) is no better than always answering the commonest label "
                f"({majority} right): check the labels, their order and the input scaling (normalised twice, or "
                "not at all?)",
            )
        )
    return found


def examine_proofs(notes: dict[str, int], refuted: str | None) -> list[Diagnostic]:
    """What kept examples from being certified; the notes on them, and on how many each stands.

    ``refuted`` is what an earlier session has found of a false proof.
    """
    found = []
    if refuted is not None:
        found.append(
            Diagnostic(
                name="proof refuted before",
                level="warning",
                message="an earlier session found a false proof; all were made again, and each of them was attacked: "
                + refuted,
            )
        )
    for note, count in notes.items():
        if note in (APART, LOOSE, TIMEOUT):
            continue
        found.append(
            Diagnostic(
                name="cannot certify",
                level="warning",
                message=f"left without a proof, {_examples(count)}: {note}",
            )
        )
    if count := notes.get(TIMEOUT, 0):
        found.append(
            Diagnostic(
                name="proof cut off",
                level="note",
                message=f"out of time for a proof, {_examples(count)}: more of it may decide them, either way",
            )
        )
    return found


def _examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count} examples"
