"""Robust training: methods that say what is minimised and where, and the loop."""

from holdfast.train.awp import AWP
from holdfast.train.classwise import ClassWise
from holdfast.train.crown_ibp import CROWNIBP
from holdfast.train.distillation import Distillation
from holdfast.train.evaluation import Evaluation, evaluate
from holdfast.train.fgsm import FGSMTraining
from holdfast.train.fgsm_rs import FGSMRS
from holdfast.train.free import Free
from holdfast.train.gaussian import Gaussian
from holdfast.train.gradalign import GradAlign
from holdfast.train.gradient_penalty import GradientPenalty
from holdfast.train.ibp import IBP
from holdfast.train.loop import fit
from holdfast.train.mart import MART
from holdfast.train.method import Method
from holdfast.train.mtl_ibp import MTLIBP
from holdfast.train.nfgsm import NFGSM
from holdfast.train.pgd import PGDTraining
from holdfast.train.recipe import Recipe
from holdfast.train.result import Epoch, Progress, TrainingResult
from holdfast.train.sabr import SABR
from holdfast.train.smoothadv import SmoothAdv
from holdfast.train.standard import Standard
from holdfast.train.step import Step
from holdfast.train.trades import TRADES
from holdfast.train.train import train
from holdfast.train.worst_of_k import WorstOfKTraining

__all__ = [
    "AWP",
    "CROWNIBP",
    "FGSMRS",
    "IBP",
    "MART",
    "MTLIBP",
    "NFGSM",
    "SABR",
    "TRADES",
    "ClassWise",
    "Distillation",
    "Epoch",
    "Evaluation",
    "FGSMTraining",
    "Free",
    "Gaussian",
    "GradAlign",
    "GradientPenalty",
    "Method",
    "PGDTraining",
    "Progress",
    "Recipe",
    "SmoothAdv",
    "Standard",
    "Step",
    "TrainingResult",
    "WorstOfKTraining",
    "evaluate",
    "fit",
    "train",
]
