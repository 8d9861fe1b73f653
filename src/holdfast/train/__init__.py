"""Robust training: methods that say what is minimised and where, and the loop."""

from holdfast.train.evaluation import Evaluation, evaluate
from holdfast.train.loop import fit
from holdfast.train.method import Method
from holdfast.train.pgd import PGDTraining
from holdfast.train.recipe import Recipe
from holdfast.train.result import Epoch, Progress, TrainingResult
from holdfast.train.standard import Standard
from holdfast.train.step import Step

__all__ = [
    "Epoch",
    "Evaluation",
    "Method",
    "PGDTraining",
    "Progress",
    "Recipe",
    "Standard",
    "Step",
    "TrainingResult",
    "evaluate",
    "fit",
]
