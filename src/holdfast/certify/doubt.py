"""Attacks on what was proved: nothing else would show a false proof.

Random points of the set, corners of it and a few gradient steps, all strictly inside, on a sample of the examples that
were proved. What misleads the model is judged by the captured network in exact arithmetic: where that is wrong too, the
bounds were false; where it is right by far, the capture was; and where both are within rounding of a tie, what is known
of rounding was, if the proof is about the network as executed. A proof in exact arithmetic stands then, and the example
is broken all the same.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from holdfast.attacks import AnnealedPGD
from holdfast.certify.bounds.graph import Graph
from holdfast.certify.certificate import LEAVES, PROGRAM, SEARCH, Certificate
from holdfast.data import Batch
from holdfast.draws import Draws
from holdfast.engine import Attack, Knowledge, Outcome, Problem, Rows, Stage, drive
from holdfast.engine.rows import take
from holdfast.errors import ModelError, ProofError
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin
from holdfast.threats import Ball, Climbable, Threat
from holdfast.threats.norm import column

__all__ = ["CHECK", "CHECKS", "Doubt", "chosen"]

# What results call it where an example is broken only here, by rounding.
CHECK = "check of proofs"
# About how many of the examples are attacked though they are proved.
CHECKS = 100
_SAMPLE = 200  # the stage whose random numbers choose them
# How far inside the set attacks stay, relative to the budget; and in units in the last place of the largest input.
_INSIDE, _ULPS = 1e-5, 1.0
# As the check of a captured graph has them: in units in the last place of the largest number in the network.
_ROUNDING = 1e3
_PARTS = {
    "ibp": "the interval bounds (ibp)",
    "crown": "the linear bounds (crown)",
    "alpha-crown": "the optimised linear bounds (alpha-crown)",
    SEARCH: "branch and bound",
    LEAVES: "the bounds over leaves",
    PROGRAM: "the mixed-integer programs",
}


def chosen(seed: int, index: Tensor, share: float) -> Tensor:
    """``(N,)`` bool, which examples are attacked if they are proved: the same in any order, process or session."""
    return Draws(seed, index, _SAMPLE).uniform(1)[:, 0] < share


@dataclass(frozen=True, eq=False)
class Doubt:
    """Attacks on examples that were proved.

    Parameters
    ----------
    query : Query
        The model, entered as a context manager.
    graph : Graph or None
        What was bounded in its place; None where nothing was, and every counterexample refutes a proof.
    share : float
        Of all examples, how many are attacked if they are proved.
    seed, samples : int
        As attacks have them.
    """

    query: Query
    graph: Graph | None
    share: float
    seed: int
    samples: int = 1

    def attack(self, batch: Batch, certificates: Mapping[int, Certificate], threat: Threat) -> dict[int, Outcome]:
        """What attacks make of those examples that are certified and in the sample, by index.

        Parameters
        ----------
        batch : Batch
            Examples.
        certificates : mapping
            By index, what is known of them.
        threat : Threat
            The set that the proofs are about; per-example budgets are looked up by index.

        Returns
        -------
        dict
            Broken are those that only rounding breaks: in exact arithmetic they are as they were proved.

        Raises
        ------
        ProofError
            When a proof is false. The line says which, and what to distrust.
        """
        proved = [certificates[index].verdict == "certified" for index in batch.index.tolist()]
        batch = take(batch, torch.tensor(proved, dtype=torch.bool) & chosen(self.seed, batch.index.cpu(), self.share))
        if not len(batch):
            return {}
        x = self.query.prepare(batch.x)
        inner = _inner(threat, batch.index, x)
        found = {}
        for outcome in self._driven(inner, batch):
            if outcome.verdict == "broken":
                row = int((batch.index == outcome.index).nonzero()[0, 0])
                outcome = self._judged(outcome, x[row : row + 1], certificates[outcome.index], threat)
            found[outcome.index] = outcome
        return found

    def check(self, found: Mapping[int, Certificate], x: Tensor, y: Tensor, threat: Threat) -> dict[int, Certificate]:
        """What has become of the certificates of the examples ``x``, ``y`` that were attacked."""
        changed = {}
        for index in torch.arange(len(x), device=x.device).split(self.query.batch_size):
            began = time.perf_counter()
            outcomes = self.attack(Batch(index, x[index], y[index]), found, threat)
            share = (time.perf_counter() - began) / max(len(outcomes), 1)
            for number, outcome in outcomes.items():
                certificate = replace(found[number], seconds=found[number].seconds + share)
                broken = Certificate("broken", CHECK, None, outcome.x_adv, certificate.seconds)
                changed[number] = broken if outcome.verdict == "broken" else certificate
        return changed

    def _driven(self, threat: Threat, batch: Batch) -> list[Outcome]:
        def run(*attacks: Attack) -> list[Outcome]:
            stages = [Stage(attack.name, attack) for attack in attacks]
            steps = drive(self.query, threat, stages, [batch], seed=self.seed, samples=self.samples)
            return [outcome for some in steps for outcome in some]

        if not isinstance(threat, Climbable):
            return run(_Scatter())
        try:
            return run(_Scatter(), AnnealedPGD(steps=5, restarts=2))
        except ModelError:  # some models have no gradient
            return run(_Scatter())

    def _judged(self, outcome: Outcome, x: Tensor, certificate: Certificate, threat: Threat) -> Outcome:
        """A counterexample to a proof: what is at fault, if it is not rounding."""
        x_adv, y = outcome.x_adv.unsqueeze(0), torch.tensor([outcome.label], device=x.device)
        here = threat.at(torch.tensor([outcome.index], device=x.device))
        if not _strictly_inside(here, outcome, x_adv, x):
            return replace(outcome, verdict="robust", stage=None, attacked_wrong=outcome.clean_wrong)
        if self.graph is None:
            raise _false(
                outcome,
                certificate,
                here,
                f"distrust {_PARTS.get(certificate.method, 'what the model proves of itself')}",
            )
        values = self.graph.to(torch.float64).values(x_adv.double().contiguous())
        exact = -float(margin(values[-1], y))
        seen = -float(margin(self.query.bare_logits(x_adv).double(), y))
        largest = max(float(value.abs().max()) for value in values)
        eps = torch.finfo(self.query.inner_dtype).eps
        room = min(_ROUNDING * eps, math.sqrt(eps)) * largest
        if exact < -_ROUNDING * torch.finfo(torch.float64).eps * largest:
            fault = f"distrust {_PARTS.get(certificate.method, certificate.method)}"
        elif exact - seen > room or math.isnan(seen):
            fault = f"distrust the capture of the model, whose graph has a margin of {exact:.3g} there, not {seen:.3g}"
        elif self.graph.arithmetic is not None and self.graph.arithmetic.unit:
            fault = "distrust the bounds of rounding errors"
        else:
            return replace(outcome, stage=CHECK)
        raise _false(outcome, certificate, here, fault)


def _false(outcome: Outcome, certificate: Certificate, threat: Threat, fault: str) -> ProofError:
    return ProofError(
        f"example {outcome.index}: proved robust under {threat.name} by {certificate.method}, but misclassified at "
        f"{outcome.distance:.6g}, as {outcome.stage} found: {fault}, and all proofs of this run; please report it with "
        "the model"
    )


def _inner(threat: Threat, index: Tensor, x: Tensor) -> Threat:
    """A ball a little smaller, so that no rounding of ``x + z`` leaves it; by index too."""
    if not isinstance(threat, Ball) or threat.norm == "l0":
        return threat
    budget = threat.at(index).budget(x.double())
    size = x[0].numel()
    longest = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[threat.norm]
    largest = x.double().flatten(1).abs().amax(1) + budget
    budget = (budget * (1 - _INSIDE) - _ULPS * torch.finfo(x.dtype).eps * longest * largest).clamp_min(0)
    eps = budget.new_zeros(int(index.max()) + 1).index_copy(0, index.to(budget.device), budget)
    return replace(threat, eps=eps)


def _strictly_inside(threat: Threat, outcome: Outcome, x_adv: Tensor, x: Tensor) -> bool:
    """Without the tolerance of verdicts: what is a hair's breadth outside contradicts no proof."""
    if not isinstance(threat, Ball):
        return outcome.distance <= float(threat.budget(x))
    distance = float(threat.length(x_adv.double() - x.double()))
    budget = min(float(threat.budget(x)), float(threat.budget(x.double())))
    return distance <= budget and float(threat.box.excess(x_adv)) == 0


@dataclass(frozen=True)
class _Count:
    iteration: Tensor


@dataclass(frozen=True)
class _Scatter:
    """Looks at random points of the set and, where it is a ball, at random corners of it in turn."""

    points: int = 8
    name: ClassVar[str] = "random points"
    knowledge: ClassVar[Knowledge] = "score"
    minimum_norm: ClassVar[bool] = False

    def again(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows.found)

    def init(self, problem: Problem) -> _Count:
        return _Count(torch.zeros_like(problem.rows.index))

    def step(self, problem: Problem, state: _Count) -> _Count:
        x, draws = problem.x, problem.draws(state.iteration)
        # What is best for a linear function is a corner.
        direction = draws.normal(x[0].numel(), lane=1).to(x.dtype).reshape(x.shape)
        z = problem.threat.sample(x, draws)
        if isinstance(problem.threat, Ball):
            corner = problem.threat.maximize(direction, x)
            z = torch.where(column(state.iteration % 2 == 1, x), corner, z)
        problem.evaluate(z, problem.objective("margin"))
        return _Count(state.iteration + 1)

    def done(self, state: _Count) -> Tensor:
        return state.iteration >= self.points
