"""What drives the attacks: one loop for all of them, the rows that it moves, and the last word on what they claim.

An attack (:mod:`~holdfast.engine.attack`) is settings and pure functions of a state. The loop
(:mod:`~holdfast.engine.engine`) sends examples through a cascade of stages, keeps each stage's batch full
(:mod:`~holdfast.engine.lane`), and lets the bare model and the threat judge what was found
(:mod:`~holdfast.engine.verification`). It knows no attack by name.
"""

from holdfast.engine.attack import Attack, AttackResult, Knowledge
from holdfast.engine.craft import craft
from holdfast.engine.engine import Outcome, Stage, drive, maximize
from holdfast.engine.guide import Guide
from holdfast.engine.problem import Problem
from holdfast.engine.rows import Rows

__all__ = [
    "Attack",
    "AttackResult",
    "Guide",
    "Knowledge",
    "Outcome",
    "Problem",
    "Rows",
    "Stage",
    "craft",
    "drive",
    "maximize",
]
