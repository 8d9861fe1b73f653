"""What is known of one example after certification."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from torch import Tensor

__all__ = [
    "APART",
    "COVER",
    "EARLY",
    "LEAVES",
    "LOOSE",
    "METHODS",
    "PROGRAM",
    "PROOFS",
    "QUICK",
    "RUNS",
    "SEARCH",
    "TIE",
    "TIMEOUT",
    "Certificate",
    "Method",
    "Runs",
    "Verdict",
    "better",
]

Method = Literal["ibp", "crown", "alpha-crown", "complete"]
METHODS: tuple[Method, ...] = get_args(Method)
# The network that a certificate is about: the one that runs, in floating-point arithmetic and in whatever order its
# sums are taken, or its ideal in exact arithmetic.
Runs = Literal["executed", "exact"]
RUNS: tuple[Runs, ...] = get_args(Runs)
Verdict = Literal["certified", "broken", "undecided"]
# What is tried before anything that takes long, cheapest first.
QUICK: tuple[Method, ...] = ("ibp", "crown")
# What "complete" adds, as results call it: proofs, and now and then a counterexample.
SEARCH = "branch and bound"

# What proofs over covers, of trees and of rules are called.
COVER, LEAVES, PROGRAM = "cover", "leaf bounds", "mixed-integer programming"
# All that may prove an example: what is tried before the attacks, and what after them.
EARLY: tuple[str, ...] = (*QUICK, LEAVES)
PROOFS: tuple[str, ...] = (*METHODS, SEARCH, COVER, LEAVES, PROGRAM)
# Why an example may be open for good: the answer is what the rounding of its sums makes it.
TIE = "two classes tie up to rounding"

# Notes on examples that are simply open.
LOOSE = "the bound is not positive"
TIMEOUT = "timeout"
APART = "the votes behind the answer differ too much"


@dataclass(frozen=True, eq=False)
class Certificate:
    """A proof, a counterexample, or how near a proof came.

    Parameters
    ----------
    verdict : str
        ``"certified"``: every admissible input keeps the label. ``"broken"``: ``x_adv`` does not. ``"undecided"``:
        neither was found.
    method : str
        What decided it, or what was tried last: ``"ibp"``, ``"crown"``, ``"alpha-crown"``, ``"branch and bound"``.
    bound : float or None
        The best proved lower bound of the worst margin ``z_y - max_k z_k`` over the set; positive for a certified
        example. None where there is none.
    x_adv : Tensor or None
        ``(*shape)``, for a broken example an admissible input that a plain forward pass misclassifies.
    seconds : float
        Spent on it; of work that examples shared, its share.
    note : str
        Why an example is open, in one line: ``"timeout"``, or what the model has that no bound is known for.
    choice : Tensor or None
        The adversary's choice that gives ``x_adv``, for sets that are no norm balls.
    arithmetic : str
        What a proof speaks of: ``"executed"``, the network as it runs in the model's own precision, whatever the order
        in which its sums are taken; ``"exact"``, the network in exact arithmetic.
    """

    verdict: Verdict
    method: str
    bound: float | None
    x_adv: Tensor | None
    seconds: float
    note: str = ""
    choice: Tensor | None = None
    arithmetic: Runs = "executed"


def better(first: Certificate, second: Certificate) -> Certificate:
    """Two looks at one example, the second at what the first left open."""
    bounds = [c.bound for c in (first, second) if c.bound is not None]
    return replace(second, bound=max(bounds, default=None), seconds=first.seconds + second.seconds)
