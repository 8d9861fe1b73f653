"""What an audit says: the documented, versioned content of ``audit.json``."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from holdfast.errors import SettingError

__all__ = ["AuditResult", "ClassResult", "Cost", "Diagnostic", "StageResult"]

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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


class Diagnostic(_Frozen):
    """Something to know before trusting the number."""

    name: str
    level: Literal["note", "warning"]
    message: str


class AuditResult(_Frozen):
    """Robust accuracy of a model under a threat, bracketed, with what it takes to judge and to repeat it.

    Accuracies are shares of all examples asked for that were decided. ``robust_accuracy`` is what the attacks left
    standing, an upper bound; ``certified_accuracy`` a lower bound, null where nothing was certified.
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
    robust_interval: tuple[float, float] = Field(description="Clopper-Pearson, at the given confidence")
    confidence: float
    certified_accuracy: float | None = None
    bracket: tuple[float, float] = Field(description="what was proved, and what attacks left standing")
    verdicts: dict[str, int]
    per_class: list[ClassResult]
    worst_class: int | None
    majority_class_rate: float = Field(description="what answering the commonest label would score, attacked or not")
    stages: list[StageResult]
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
            When the audit was made under a finite budget.
        """
        if self.curve is None:
            raise SettingError("this audit knows its own budget only: run it under an infinite one for the whole curve")
        return next(share for eps, share in reversed(self.curve) if eps <= max(budget, 0.0))
