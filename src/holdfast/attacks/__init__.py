"""Attacks, one file each, and the engine that drives them all."""

from holdfast.attacks.apgd import APGD
from holdfast.attacks.attack import Attack, AttackResult, Knowledge
from holdfast.attacks.craft import craft
from holdfast.attacks.engine import Outcome, Stage, drive, maximize
from holdfast.attacks.fgsm import FGSM
from holdfast.attacks.pgd import PGD
from holdfast.attacks.problem import Problem
from holdfast.attacks.rows import Rows

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "Knowledge",
    "Outcome",
    "Problem",
    "Rows",
    "Stage",
    "craft",
    "drive",
    "maximize",
]
