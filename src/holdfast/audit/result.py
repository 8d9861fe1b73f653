"""What an audit says: the documented, versioned content of ``audit.json``."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from holdfast.errors import SettingError
from holdfast.words import plain

__all__ = [
    "Adapted",
    "AuditResult",
    "Certification",
    "ClassResult",
    "Cost",
    "Diagnostic",
    "GroupResult",
    "GroupResults",
    "OpenExample",
    "Share",
    "SmoothedResult",
    "StageResult",
]

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _only_plain_words(cls, content: Any) -> Any:
        """Names of models, data, classes and stages are others' words, and a result is shown in many places."""
        return _plain(content)


def _plain(content: Any) -> Any:
    """The same with every text in it plain."""
    if isinstance(content, dict):
        return {_plain(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(_plain, content))
    return plain(content) if isinstance(content, str) else content


class Cost(_Frozen):
    """What the verdicts cost, all examples together."""

    forwards: int = Field(description="examples passed forward through the model")
    backwards: int = Field(description="examples passed backward through it")
    seconds: float = Field(description="wall time, all sessions of the run together")


class StageResult(_Frozen):
    """One attack of the cascade."""

    name: str
    attacked: int = Field(description="examples that reached it")
    broken: int = Field(description="examples that it broke first")
    robust_accuracy: float = Field(description="share of all examples still standing after it")


class ClassResult(_Frozen):
    """The examples of one class."""

    label: int
    name: str
    examples: int
    clean_accuracy: float
    robust_accuracy: float
    certified_accuracy: float | None = None


class Share(_Frozen):
    """A share of some examples, and how sure it is."""

    share: float
    examples: int = Field(description="of how many examples")
    interval: tuple[float, float] = Field(description="Clopper-Pearson, at the audit's confidence")


class GroupResult(_Frozen):
    """The examples of one group."""

    name: str
    examples: int
    positives: int | None = Field(description="examples of the positive class; null unless there are two classes")
    clean: Share = Field(description="classified correctly")
    robust: Share = Field(description="left standing by the attacks")
    certified: Share | None = Field(description="proved robust; null where no proof was asked for")
    sensitivity: Share | None = Field(
        description="of the positive class, classified correctly; null where there is none"
    )
    robust_sensitivity: Share | None = Field(description="of the positive class, left standing by the attacks")
    certified_sensitivity: Share | None = Field(description="of the positive class, proved robust")


class GroupResults(_Frozen):
    """Examples told apart by what a column of their table holds."""

    column: str
    positive: str | None = Field(description="the class whose sensitivity is told; null unless there are two")
    groups: list[GroupResult]
    gaps: dict[str, float] = Field(description="of each share, how far apart the best and the worst group are")


class OpenExample(_Frozen):
    """An example that is neither broken nor proved robust."""

    index: int
    bound: float | None = Field(description="the best proved lower bound of the worst margin")
    note: str = Field(description="why it is open, where more can be said than that the bound is not positive")


class Certification(_Frozen):
    """How the lower end of the bracket came about, and what it is worth."""

    method: str
    seconds: float = Field(description="how long branch and bound was allowed, an example")
    statement: str = Field(description="what a certificate says")
    interval: tuple[float, float] = Field(description="Clopper-Pearson, of the certified accuracy")
    methods: dict[str, int] = Field(description="how many examples each method proved robust")
    checked: int = Field(
        description="how many of the examples that were proved at the audit's own budget were attacked all the same"
    )
    open: int = Field(description="examples that are neither broken nor proved robust")
    open_examples: list[OpenExample] = Field(description="those nearest to a proof, at most 20")
    curve: list[tuple[float, float]] = Field(
        description="pairs of a budget and the share of all examples certified there by quick bounds, from 0 on; at "
        "the audit's own budget the certified accuracy"
    )


class SmoothedResult(_Frozen):
    """What is certified of the smoothed classifier, which is another than the model that is attacked."""

    sigma: float = Field(description="scale of the Gaussian noise")
    alpha: float = Field(description="the chance that an example's certificate is false")
    radius: float = Field(description="the L2 radius that holds every admissible change")
    accuracy: float = Field(description="share of all examples that it answers correctly, and does not abstain from")
    certified_accuracy: float = Field(description="share of all examples certified and correct within that radius")
    interval: tuple[float, float] = Field(description="Clopper-Pearson, of the certified accuracy")
    abstained: int
    samples: int = Field(description="noisy inputs that were asked about, all examples together")
    statement: str = Field(description="what a certificate says")


class Diagnostic(_Frozen):
    """Something to know before trusting the number."""

    name: str
    verdict: Literal["pass", "note", "warn", "fail"] = Field(
        description="of a check: pass, warn or fail, which says that the number cannot be trusted as it is; note, what "
        "is no check and good to know"
    )
    message: str = Field(description="what was found, and what that means")
    advice: str = Field(default="", description="what to do about it; empty where there is nothing to do")
    value: float | None = Field(default=None, description="what a check measured")
    threshold: float | None = Field(default=None, description="beyond which it does not pass")


class Adapted(_Frozen):
    """What an audit did beyond its protocol, because a check failed."""

    reasons: list[str] = Field(description="the checks that failed")
    changes: list[str] = Field(description="what was done about it")
    before: float = Field(description="robust accuracy after the protocol's own stages, before that")


class AuditResult(_Frozen):
    """Robust accuracy of a model under a threat, bracketed, with what it takes to judge and to repeat it.

    Accuracies are shares of all examples asked for that were decided. ``robust_accuracy`` is what the attacks left
    standing, an upper bound; ``certified_accuracy`` a lower bound, null where no proof was asked for.
    """

    schema_version: int = SCHEMA_VERSION
    model: str
    data: str
    examples: int = Field(description="examples with a verdict")
    examples_asked: int = Field(description="examples the audit was asked for")
    threat: dict[str, Any]
    knowledge: str = Field(description="what the attacker knows of the model")
    protocol: dict[str, Any]
    seed: int
    clean_accuracy: float
    robust_accuracy: float
    clean_mcc: float | None = Field(
        default=None, description="Matthews correlation of clean predictions and labels; that of a constant answer is 0"
    )
    robust_mcc: float | None = Field(
        default=None, description="the same under attack, broken examples answered wrongly; null beyond two classes"
    )
    robust_interval: tuple[float, float] = Field(description="Clopper-Pearson, at the given confidence")
    confidence: float
    clean_error: float = Field(description="mean share of an example that is wrong; of classes 1 - clean accuracy")
    robust_error: float = Field(
        description="mean of the largest share that the attacks found; of classes 1 - robust accuracy"
    )
    certified_accuracy: float | None = None
    bracket: tuple[float, float] = Field(description="what was proved, and what attacks left standing")
    bracket_interval: tuple[float, float] = Field(
        description="where the population's robust accuracy lies, against any adversary of the threat, at the given "
        "confidence: the lower end of what was proved, the upper end of what was left standing"
    )
    certification: Certification | None = Field(default=None, description="null where no proof was asked for")
    smoothed: SmoothedResult | None = Field(
        default=None, description="the smoothed classifier, where it was asked for; no part of the bracket"
    )
    verdicts: dict[str, int]
    per_class: list[ClassResult]
    worst_class: int | None
    groups: GroupResults | None = Field(default=None, description="group by group, where a column tells them apart")
    majority_class_rate: float = Field(description="what answering the commonest label would score, attacked or not")
    stages: list[StageResult]
    adapted: Adapted | None = Field(default=None, description="null where the audit went by its protocol alone")
    median_distance: float | None = Field(description="of the adversarial inputs found, in units of the budget")
    curve: list[tuple[float, float]] | None = Field(
        default=None,
        description="under an infinite budget the security curve: pairs of a budget and the share of all examples that "
        "stands there, a step at each distance at which an example falls; null under a finite one",
    )
    cost: Cost
    diagnostics: list[Diagnostic]
    versions: dict[str, str]
    device: str

    def robust_accuracy_at(self, budget: float) -> float:
        """The security curve at a budget.

        Raises
        ------
        SettingError
            When the audit was made under a finite budget, or the budget is no number.
        """
        if math.isnan(budget):
            raise SettingError("budget: NaN is no budget; give a number")
        if self.curve is None:
            raise SettingError("this audit knows its own budget only: run it under an infinite one for the whole curve")
        return next(share for eps, share in reversed(self.curve) if eps <= max(budget, 0.0))
