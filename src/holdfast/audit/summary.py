"""From the verdicts in a run's store to the result of an audit."""

import math
import platform
from importlib import metadata
from typing import Any

import torch

from holdfast.audit.adaptation import Adaptation
from holdfast.audit.certification import CertificationPlan
from holdfast.audit.diagnosis import examine_proofs, examine_stages, examine_verdicts
from holdfast.audit.groups import matthews_of, summarise_groups
from holdfast.audit.interval import clopper_pearson
from holdfast.audit.protocols import EvaluationProtocol
from holdfast.audit.result import (
    Adapted,
    AuditResult,
    Certification,
    ClassResult,
    Cost,
    Diagnostic,
    OpenExample,
    StageResult,
)
from holdfast.audit.smoothing import SmoothingPlan, summarise_smoothed
from holdfast.audit.store import RunStore
from holdfast.certify.certificate import COVER, EARLY, PROGRAM, SEARCH
from holdfast.certify.doubt import CHECK, chosen
from holdfast.data import Source
from holdfast.data.groups import Groups
from holdfast.engine import Knowledge
from holdfast.threats import Ball, Threat

__all__ = ["summarise"]

CONFIDENCE = 0.95
# Open examples that a result lists one by one; the store has them all.
_LISTED = 20
_NOTES = "SELECT note, count(*) FROM examples WHERE note IS NOT NULL GROUP BY note ORDER BY count(*) DESC, note"
_OPEN = "verdict IN ('robust', 'undecided') AND certified IS NULL"

KNOWLEDGE: dict[Knowledge, str] = {
    "gradient": "white box: the attacker knows the model, its weights and its gradients",
    "score": "black box: the attacker asks the model for its logits",
    "decision": "black box: the attacker asks the model for its class alone",
}


def summarise(
    store: RunStore,
    source: Source,
    plan: EvaluationProtocol,
    adaptation: Adaptation,
    certification: CertificationPlan | None,
    smoothing: SmoothingPlan | None,
    diagnostics: list[Diagnostic],
    *,
    classes: int,
    groups: Groups | None,
    attacked: bool,
    threat: Threat,
    **given: Any,
) -> AuditResult:
    """The result of what the store holds; ``given`` is what else it cannot know (model, seed, device).

    ``classes`` says how many the model knows, ``attacked`` whether examples had queries left for attacks at all.
    """
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
            certified_accuracy=None if certification is None else proved / count,
        )
        for label, count, right, left, proved in store.select(
            "SELECT label, count(*), sum(verdict != 'misclassified'), sum(verdict IN ('robust', 'undecided')), "
            "count(certified) FROM examples GROUP BY label ORDER BY label"
        )
    ]
    majority = max((c.examples for c in per_class), default=0)
    ((predictions, labels),) = store.select(
        "SELECT count(DISTINCT clean_prediction), count(DISTINCT label) FROM examples"
    )
    ((forwards, backwards),) = store.select(
        "SELECT coalesce(sum(forwards), 0), coalesce(sum(backwards), 0) FROM examples"
    )
    ((clean_error, robust_error),) = store.select("SELECT avg(clean_wrong), avg(attacked_wrong) FROM examples")
    robust = standing / total
    clean_mcc, robust_mcc = matthews_of(store, classes)
    robust_interval = clopper_pearson(standing, total, CONFIDENCE)
    cascade = adaptation.applied(plan)
    stages = _stages(store, cascade, total, correct, attacked)
    search = [] if certification is None else _search(store, certification, robust)
    proofs = None
    if certification is not None:
        share = 1.0 if store.refuted else certification.checks / len(source)
        proofs = _certification(store, certification, threat, total, correct, _checked(store, given["seed"], share))
        search += _check(store, proofs.checked, robust)
    budget = threat.eps if isinstance(threat, Ball) and isinstance(threat.eps, float) else None
    used = {
        attack.knowledge for stage in cascade.stages for attack in (stage.attack, stage.polish) if attack is not None
    }
    return AuditResult(
        **given,
        threat={"name": threat.name, **threat.to_dict()},
        knowledge=next(text for kind, text in KNOWLEDGE.items() if kind in used or not used),
        data=source.name,
        examples=total,
        examples_asked=len(source),
        protocol=plan.to_dict(),
        clean_accuracy=correct / total,
        robust_accuracy=robust,
        clean_mcc=clean_mcc,
        robust_mcc=robust_mcc,
        robust_interval=robust_interval,
        clean_error=clean_error,
        robust_error=robust_error,
        confidence=CONFIDENCE,
        certified_accuracy=None if proofs is None else sum(proofs.methods.values()) / total,
        bracket=(0.0 if proofs is None else sum(proofs.methods.values()) / total, robust),
        bracket_interval=(0.0 if proofs is None else proofs.interval[0], robust_interval[1]),
        certification=proofs,
        smoothed=None if smoothing is None else summarise_smoothed(store, smoothing, CONFIDENCE),
        verdicts=verdicts,
        per_class=per_class,
        worst_class=min(per_class, key=lambda c: c.robust_accuracy).label if per_class else None,
        groups=None
        if groups is None
        else summarise_groups(store, groups, source.classes, classes, CONFIDENCE, proofs=certification is not None),
        majority_class_rate=majority / total,
        stages=[*stages, *search],
        adapted=_adapted(adaptation, stages, correct / total),
        median_distance=_median_distance(store),
        curve=_curve(store, total, correct) if budget == math.inf else None,
        cost=Cost(forwards=forwards, backwards=backwards, seconds=store.seconds),
        diagnostics=[
            # Of a number that is exact the attacks' caveat is not true.
            *(found for found in diagnostics if proofs is None or proofs.open or found.name != "protocol"),
            *examine_stages(cascade, stages, total),
            *examine_verdicts(verdicts, predictions, labels, correct, majority),
            *examine_proofs(dict(store.select(_NOTES)), store.refuted),
        ],
        versions=_versions(),
    )


def _adapted(adaptation: Adaptation, stages: list[StageResult], clean: float) -> Adapted | None:
    """What was done beyond the protocol, with the number before it."""
    if not adaptation.reasons:
        return None
    own = stages[: len(stages) - len(adaptation.stages)]
    return Adapted(
        reasons=list(adaptation.reasons),
        changes=list(adaptation.changes),
        before=own[-1].robust_accuracy if own else clean,
    )


def _stages(store: RunStore, plan: EvaluationProtocol, total: int, correct: int, attacked: bool) -> list[StageResult]:
    counts = store.select("SELECT verdict = 'broken', stage, count(*) FROM examples GROUP BY verdict = 'broken', stage")
    ended = {(bool(broken), stage): count for broken, stage, count in counts}
    ((spared,),) = store.select(
        f"SELECT count(*) FROM examples WHERE certified IN ({', '.join('?' * len(EARLY))})", *EARLY
    )
    results, standing = [], correct
    reached = correct - spared if attacked else 0
    for stage in plan.stages:
        broken, spent = (ended.get((verdict, stage.name), 0) for verdict in (True, False))
        standing -= broken
        results.append(StageResult(name=stage.name, attacked=reached, broken=broken, robust_accuracy=standing / total))
        reached -= broken + spent
    return results


def _search(store: RunStore, certification: CertificationPlan, robust: float) -> list[StageResult]:
    """The search for a proof as the last stage: it may come upon a counterexample instead."""
    ((proved, broken, left),) = store.select(
        f"SELECT coalesce(sum(certified IN (?, ?, ?)), 0), coalesce(sum(stage = ? AND verdict = 'broken'), 0), "
        f"coalesce(sum({_OPEN}), 0) FROM examples",
        SEARCH,
        COVER,
        PROGRAM,
        SEARCH,
    )
    if certification.method != "complete" and not broken:
        return []
    return [StageResult(name=SEARCH, attacked=proved + broken + left, broken=broken, robust_accuracy=robust)]


def _checked(store: RunStore, seed: int, share: float) -> int:
    """How many of the examples that are proved were attacked too."""
    proved = [index for (index,) in store.select("SELECT idx FROM examples WHERE certified IS NOT NULL")]
    return int(chosen(seed, torch.tensor(proved, dtype=torch.int64), share).sum())


def _check(store: RunStore, stood: int, robust: float) -> list[StageResult]:
    """The check of proofs as a stage, where rounding has broken what is true in exact arithmetic."""
    ((broken,),) = store.select("SELECT count(*) FROM examples WHERE stage = ? AND verdict = 'broken'", CHECK)
    return [StageResult(name=CHECK, attacked=stood + broken, broken=broken, robust_accuracy=robust)] if broken else []


def _certification(
    store: RunStore, plan: CertificationPlan, threat: Threat, total: int, correct: int, checked: int
) -> Certification:
    methods = dict(
        store.select(
            "SELECT certified, count(*) FROM examples WHERE certified IS NOT NULL GROUP BY certified ORDER BY 2 DESC, 1"
        )
    )
    certified = sum(methods.values())
    ((still_open,),) = store.select(f"SELECT count(*) FROM examples WHERE {_OPEN}")
    nearest = store.select(
        f"SELECT idx, bound, coalesce(note, '') FROM examples WHERE {_OPEN} "
        "ORDER BY bound DESC NULLS LAST, idx LIMIT ?",
        _LISTED,
    )
    curve = [(0.0, correct / total)]
    for budget in plan.budgets:
        ((more,),) = store.select("SELECT count(*) FROM curve WHERE eps >= ?", budget)
        curve.append((budget, (certified + more) / total))
    if isinstance(threat, Ball) and isinstance(threat.eps, float):
        curve.append((threat.eps, certified / total))
    return Certification(
        method=plan.method,
        seconds=plan.seconds,
        statement=plan.statement,
        interval=clopper_pearson(certified, total, CONFIDENCE),
        methods=methods,
        checked=checked,
        open=still_open,
        open_examples=[OpenExample(index=index, bound=bound, note=note) for index, bound, note in nearest],
        curve=curve if plan.budgets else [],
    )


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
