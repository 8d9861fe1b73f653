"""What an audit is asked to prove."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

from torch import Tensor, nn

from holdfast.arguments import as_list, choice, real, shown, whole
from holdfast.audit.protocols import endless
from holdfast.certify.certificate import METHODS, PROOFS, RUNS, Method, Runs
from holdfast.certify.doubt import CHECKS
from holdfast.certify.own import OWN, OwnProver
from holdfast.certify.proving import ExampleProver, needs_proofs, prover_of
from holdfast.certify.smoothing.defended import Defended
from holdfast.errors import SettingError
from holdfast.models.query import Query
from holdfast.threats import Ball, Threat
from holdfast.threats.budget import parse_budget
from holdfast.threats.numbers import type_of

__all__ = ["Certification", "CertificationPlan"]

# How the model is proved: by one of the methods for networks, or by itself.
Way = Method | Literal["own"]
_CHOICES = f"choose none, {', '.join(METHODS)}, {OWN} or smoothing"
_STATEMENTS: dict[Runs, str] = {
    "executed": "a deterministic proof about the network as executed, in the model's own floating-point precision and "
    "whatever the order in which its sums are taken",
    "exact": "a deterministic proof in exact arithmetic; the rounding of the model's own forward pass is no part of it",
}
_OWN_STATEMENT = (
    "a certified example is answered with its label for every input of the threat's set, as the defended classifier "
    "proves of itself, in its own arithmetic; attacks and proofs are about that classifier, its votes included, and "
    "not about the one behind them"
)


@dataclass(frozen=True)
class Certification:
    """What proves examples robust in an audit, as a user asks for it.

    Parameters
    ----------
    method : str
        ``"none"``; ``"ibp"`` or ``"crown"``, before the attacks, which certified examples are spared;
        ``"alpha-crown"`` or ``"complete"`` (branch and bound, which may come upon counterexamples too), also after
        them, on what they left; ``"smoothing"``, of the smoothed classifier, which is another one than the model and
        told apart from its bracket; ``"own"``, of a defended classifier such as
        :class:`holdfast.certify.DoublyMasked`, which proves itself, before the attacks.
    seconds : float
        How long branch and bound may take, an example. Verdicts that it cuts off depend on the machine.
    arithmetic : str
        ``"executed"``: proofs are about the network as it runs, whatever the order in which its sums are taken;
        ``"exact"``: about the network in exact arithmetic.
    budgets : sequence of float
        Smaller budgets at which to say, by the quick bounds, how much is certified.
    checks : int
        About how many of the examples are attacked even if they are proved, drawn by the seed: a check of the prover.
    sigma : float, optional
        The scale of smoothing's noise.
    """

    method: str = "none"
    seconds: float = 20.0
    arithmetic: str = "executed"
    budgets: Sequence[float | str] = ()
    checks: int = CHECKS
    sigma: float | None = None

    @classmethod
    def of(cls, certify: Self | str) -> Self:
        """What a user gave, a word where no more is to be said.

        Raises
        ------
        SettingError
            When it is neither, or smoothing's noise is given to another method.
        """
        if not isinstance(certify, str | Certification):
            raise SettingError(f"certify: a word or a Certification is needed, not a {type_of(certify)}; {_CHOICES}")
        asked = cls(certify) if isinstance(certify, str) else certify
        if asked.sigma is not None and asked.method != "smoothing":
            raise SettingError("sigma: noise belongs to smoothing; choose it with certify")
        return asked


@dataclass(frozen=True)
class CertificationPlan:
    """How the lower end of the bracket is found.

    Parameters
    ----------
    method : str
        One of :data:`holdfast.certify.certificate.METHODS`, or ``"own"``.
    seconds : float
        How long branch and bound may take, an example.
    budgets : tuple of float
        Budgets below the threat's own at which to say how much is certified.
    threat : Threat
        What the proofs are about.
    arithmetic : str
        One of :data:`holdfast.certify.certificate.RUNS`: the network as it runs, or in exact arithmetic.
    checks : int
        About how many of the examples are attacked if they are proved.
    """

    method: Way
    seconds: float
    budgets: tuple[float, ...]
    threat: Threat
    arithmetic: Runs = "executed"
    checks: int = CHECKS

    @classmethod
    def of(cls, asked: Certification, threat: Threat) -> Self | None:
        """The plan as a user asks for it; None where nothing is to be proved of the model itself.

        Raises
        ------
        SettingError
            When there is no such method, the threat has no finite budget, or a number makes no sense.
        """
        method, budgets = asked.method, asked.budgets
        if not isinstance(method, str):
            raise SettingError(f"certify: a word is needed, not a {type_of(method)}; {_CHOICES}")
        seconds, checks = real("certify seconds", asked.seconds), whole("certify checks", asked.checks, 0, 2**50)
        arithmetic = choice("certify arithmetic", asked.arithmetic, RUNS)
        if method in ("none", "smoothing"):
            if _listed(budgets):
                raise SettingError(
                    "certify budgets: a certified curve needs proofs; choose ibp, crown or more with certify"
                )
            return None
        if method not in (*METHODS, OWN):
            raise SettingError(f"certify: unknown method {shown(method)}; {_CHOICES}")
        if method != OWN:
            needs_proofs(threat)
        if endless(threat):
            raise SettingError(f"certify: a proof needs a finite budget, but the threat is {threat.name}")
        return cls(cast("Way", method), seconds, _smaller(budgets, threat), threat, arithmetic, checks)

    def certifier(self, model: nn.Module, query: Query, x: Tensor) -> ExampleProver:
        """What proves something of a model, normalisation included, that takes inputs like ``x``.

        Raises
        ------
        SettingError
            When the model is to prove itself and does not.
        """
        if self.method == OWN:
            return OwnProver.of(model, self.threat, query.inner_dtype)
        return prover_of(
            model,
            query.prepare(x).contiguous(),
            cast("Method", self.method),
            self.threat,
            seconds=self.seconds,
            logits=query.bare_logits,
            arithmetic=self.arithmetic,
        )

    def proofs(self, model: nn.Module) -> tuple[str, ...]:
        """What may prove an example, as results call it."""
        return (model.procedure,) if self.method == OWN and isinstance(model, Defended) else PROOFS

    @property
    def statement(self) -> str:
        """What a certificate says."""
        if self.method == OWN:
            return _OWN_STATEMENT
        return (
            f"a certified example keeps its label for every input of the threat's set: {_STATEMENTS[self.arithmetic]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything that verdicts depend on, the threat aside."""
        return {
            "method": self.method,
            "seconds": self.seconds,
            "budgets": self.budgets,
            "arithmetic": self.arithmetic,
            "checks": self.checks,
        }


def _smaller(budgets: Sequence[float | str], threat: Threat) -> tuple[float, ...]:
    """Budgets in rising order, each of them below the threat's."""
    found = []
    for budget in _listed(budgets):
        eps = parse_budget(budget)
        if not isinstance(threat, Ball) or not isinstance(threat.eps, float) or not isinstance(eps, float):
            raise SettingError("certify budgets: a certified curve needs a norm ball with one budget for all examples")
        if not 0 < eps < threat.eps:
            raise SettingError(
                f"certify budgets: {eps:g} does not lie between 0 and the threat's budget {threat.eps:g}; budgets of a "
                "certified curve are smaller than that of the audit"
            )
        if threat.norm == "l0" and eps % 1:
            raise SettingError(f"certify budgets: an L0 budget counts coordinates, so {eps:g} must be a whole number")
        found.append(eps)
    return tuple(sorted(set(found)))


def _listed(budgets: Any) -> list[Any]:
    listed = as_list(budgets)
    if listed is None:
        raise SettingError("certify budgets: a list of budgets is needed, such as (0.01, '2/255')")
    return listed
