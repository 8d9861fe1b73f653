"""Adversarial learning in one vocabulary: attack, certify, train, audit, understand.

What ``__all__`` names, and the documentation, is the public interface.
"""

from importlib.metadata import version

from holdfast.attacks import APGD, FGSM, PGD
from holdfast.audit import AuditResult, Certification, audit
from holdfast.certify import Certificate, certify
from holdfast.data import Batch, Source, load_data
from holdfast.engine import AttackResult
from holdfast.errors import DataError, HoldfastError, ModelError, ProofError, RunError, SettingError
from holdfast.models import BPDA, Model, Query, load_model
from holdfast.processes import Processes
from holdfast.threats import L0, L1, L2, Box, Linf, Patch, Spatial, Threat, parse_threat
from holdfast.train import TrainingResult, train

__version__ = version("holdfast")

__all__ = [
    "APGD",
    "BPDA",
    "FGSM",
    "L0",
    "L1",
    "L2",
    "PGD",
    "AttackResult",
    "AuditResult",
    "Batch",
    "Box",
    "Certificate",
    "Certification",
    "DataError",
    "HoldfastError",
    "Linf",
    "Model",
    "ModelError",
    "Patch",
    "Processes",
    "ProofError",
    "Query",
    "RunError",
    "SettingError",
    "Source",
    "Spatial",
    "Threat",
    "TrainingResult",
    "__version__",
    "audit",
    "certify",
    "load_data",
    "load_model",
    "parse_threat",
    "train",
]
