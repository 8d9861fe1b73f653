"""Attacks, one file each; what drives them is :mod:`holdfast.engine`, whose names are here as well."""

from holdfast.attacks.annealed import AnnealedPGD
from holdfast.attacks.apgd import APGD
from holdfast.attacks.apgd_l1 import APGDL1
from holdfast.attacks.ascent import climb
from holdfast.attacks.bim import BIM
from holdfast.attacks.contracting import ContractingPGD
from holdfast.attacks.cw import CW
from holdfast.attacks.ddn import DDN
from holdfast.attacks.deepfool import DeepFool
from holdfast.attacks.ead import EAD
from holdfast.attacks.evolution import Evolution
from holdfast.attacks.fab import FAB
from holdfast.attacks.fgsm import FGSM
from holdfast.attacks.fmn import FMN
from holdfast.attacks.grid import Grid
from holdfast.attacks.hopskipjump import HopSkipJump
from holdfast.attacks.mifgsm import MIFGSM
from holdfast.attacks.nes import NES
from holdfast.attacks.patch_pgd import PatchPGD
from holdfast.attacks.patch_rs import PatchRS
from holdfast.attacks.pgd import PGD
from holdfast.attacks.ray import Ray
from holdfast.attacks.refined_grid import RefinedGrid
from holdfast.attacks.shrinking import ShrinkingBall
from holdfast.attacks.sigma_zero import SigmaZero
from holdfast.attacks.sparse_rs import SparseRS
from holdfast.attacks.spsa import SPSA
from holdfast.attacks.square import Square
from holdfast.attacks.transfer import Diversity, Transfer, TranslationKernel, VarianceTuning
from holdfast.attacks.universal import UniversalResult, universal_perturbation
from holdfast.attacks.worst_of_k import WorstOfK
from holdfast.engine import Attack, AttackResult, Knowledge, Outcome, Problem, Rows, Stage, craft, drive, maximize

__all__ = [
    "APGD",
    "APGDL1",
    "BIM",
    "CW",
    "DDN",
    "EAD",
    "FAB",
    "FGSM",
    "FMN",
    "MIFGSM",
    "NES",
    "PGD",
    "SPSA",
    "AnnealedPGD",
    "Attack",
    "AttackResult",
    "ContractingPGD",
    "DeepFool",
    "Diversity",
    "Evolution",
    "Grid",
    "HopSkipJump",
    "Knowledge",
    "Outcome",
    "PatchPGD",
    "PatchRS",
    "Problem",
    "Ray",
    "RefinedGrid",
    "Rows",
    "ShrinkingBall",
    "SigmaZero",
    "SparseRS",
    "Square",
    "Stage",
    "Transfer",
    "TranslationKernel",
    "UniversalResult",
    "VarianceTuning",
    "WorstOfK",
    "climb",
    "craft",
    "drive",
    "maximize",
    "universal_perturbation",
]
