"""Attacks, one file each, and the engine that drives them all."""

from .apgd import APGD
from .attack import Attack, AttackResult
from .craft import craft
from .engine import Outcome, Stage, drive, maximize
from .fgsm import FGSM
from .pgd import PGD
from .problem import Problem
from .rows import Rows

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "Outcome",
    "Problem",
    "Rows",
    "Stage",
    "craft",
    "drive",
    "maximize",
]
