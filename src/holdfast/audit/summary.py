"""From the verdicts in a run's store to the result of an audit."""

import math
import platform
from importlib import metadata
from typing import Any

from holdfast.attacks import Knowledge
from holdfast.audit.diagnostics import examine_stages, examine_verdicts
from holdfast.audit.interval import clopper_pearson
from holdfast.audit.protocols import EvaluationProtocol
from holdfast.audit.result import AuditResult, ClassResult, Cost, Diagnostic, StageResult
from holdfast.audit.store import RunStore
from holdfast.data import Source
from holdfast.threats import Ball, Threat

__all__ = ["summarise"]

CONFIDENCE = 0.95

KNOWLEDGE: dict[Knowledge, str] = {
    "gradient": "white box: the attacker knows the model, its weights and its gradients",
    "score": "black box: the attacker asks the model for its logits",
    "decision": "black box: the attacker asks the model for its class alone",
}


def summarise(
    store: RunStore,
    source: Source,
    plan: EvaluationProtocol,
    diagnostics: list[Diagnostic],
    *,
    threat: Threat,
    **given: Any,
) -> AuditResult:
    """The result of what the store holds; ``given`` is what else it cannot know (model, seed, device)."""
    verdicts = dict.fromkeys(("robust", "broken", "misclassified", "undecided"), 0)
    verdicts |= dict(store.select("SELECT verdict, count(*) FROM examples GROUP BY verdict"))
    total = sum(verdicts.values())
    standing = verdicts["robust"] + verdicts["undecided"]
    correct = total - verdicts["misclassified"]
    per_class = [
        ClassResult(
            label=label,
            name=source.classes[label] if source.classes else str(label),
            examples=count,
            clean_accuracy=right / count,
            robust_accuracy=left / count,
        )
        for label, count, right, left in store.select(
            "SELECT label, count(*), sum(verdict != 'misclassified'), sum(verdict IN ('robust', 'undecided')) "
            "FROM examples GROUP BY label ORDER BY label"
        )
    ]
    majority = max((c.examples for c in per_class), default=0)
    ((predictions,),) = store.select("SELECT count(DISTINCT clean_prediction) FROM examples")
    ((forwards, backwards),) = store.select(
        "SELECT coalesce(sum(forwards), 0), coalesce(sum(backwards), 0) FROM examples"
    )
    robust = standing / total
    stages = _stages(store, plan, total, correct)
    budget = threat.eps if isinstance(threat, Ball) and isinstance(threat.eps, float) else None
    used = {attack.knowledge for stage in plan.stages for attack in (stage.attack, stage.polish) if attack is not None}
    return AuditResult(
        **given,
        threat=threat.to_dict(),
        knowledge=next(text for kind, text in KNOWLEDGE.items() if kind in used or not used),
        data=source.name,
        examples=total,
        examples_asked=len(source),
        protocol=plan.to_dict(),
        clean_accuracy=correct / total,
        robust_accuracy=robust,
        robust_interval=clopper_pearson(standing, total, CONFIDENCE),
        confidence=CONFIDENCE,
        bracket=(0.0, robust),
        verdicts=verdicts,
        per_class=per_class,
        worst_class=min(per_class, key=lambda c: c.robust_accuracy).label if per_class else None,
        majority_class_rate=majority / total,
        stages=stages,
        median_distance=_median_distance(store),
        curve=_curve(store, total, correct) if budget == math.inf else None,
        cost=Cost(forwards=forwards, backwards=backwards, seconds=store.seconds),
        diagnostics=[
            *diagnostics,
            *examine_stages(plan, stages, total),
            *examine_verdicts(verdicts, predictions, correct, majority),
        ],
        versions=_versions(),
    )


def _stages(store: RunStore, plan: EvaluationProtocol, total: int, correct: int) -> list[StageResult]:
    counts = store.select("SELECT verdict, stage, count(*) FROM examples GROUP BY verdict, stage")
    ended = {(verdict, stage): count for verdict, stage, count in counts}
    results, standing = [], correct
    reached = correct - ended.pop(("undecided", None), 0)
    for stage in plan.stages:
        broken, spent = (ended.get((verdict, stage.name), 0) for verdict in ("broken", "undecided"))
        standing -= broken
        results.append(StageResult(name=stage.name, attacked=reached, broken=broken, robust_accuracy=standing / total))
        reached -= broken + spent
    return results


def _median_distance(store: RunStore) -> float | None:
    ((count,),) = store.select("SELECT count(*) FROM examples WHERE verdict = 'broken'")
    if not count:
        return None
    middle = store.select(
        "SELECT avg(distance) FROM (SELECT distance FROM examples WHERE verdict = 'broken' ORDER BY distance "
        "LIMIT ? OFFSET ?)",
        2 - count % 2,
        (count - 1) // 2,
    )
    return float(next(middle)[0])


def _curve(store: RunStore, total: int, correct: int) -> list[tuple[float, float]]:
    """The share still standing at 0 and at every distance at which an example falls."""
    curve, standing = [(0.0, correct / total)], correct
    fallen = store.select(
        "SELECT distance, count(*) FROM examples WHERE verdict = 'broken' GROUP BY distance ORDER BY distance"
    )
    for distance, count in fallen:
        standing -= count
        curve.append((distance, standing / total))
    return curve


def _versions() -> dict[str, str]:
    names = ("holdfast", "torch", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
