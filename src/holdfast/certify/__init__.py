"""Proofs: what holds for every input of a set."""

from holdfast.certify.bounds.region import Region
from holdfast.certify.certificate import Certificate
from holdfast.certify.certify import certify
from holdfast.certify.distance import Distance, exact_distance
from holdfast.certify.output import OutputBounds, output_bounds
from holdfast.certify.smoothing.ablation import (
    Ablated,
    BlockAblation,
    ColumnAblation,
    Deletion,
    FeatureAblation,
    Fill,
    mark,
)
from holdfast.certify.smoothing.log import LogFault, SmoothingLog, check_log, read_log
from holdfast.certify.smoothing.masking import DoublyMasked, Masks
from holdfast.certify.smoothing.noise import Gaussian, Uniform
from holdfast.certify.smoothing.result import SmoothingResult
from holdfast.certify.smoothing.smoothing import Smoothed, SmoothedPrediction
from holdfast.certify.trees import certify_trees
from holdfast.certify.verify import Verification, verify
from holdfast.certify.vnnlib import Property, parse_vnnlib, read_vnnlib

__all__ = [
    "Ablated",
    "BlockAblation",
    "Certificate",
    "ColumnAblation",
    "Deletion",
    "Distance",
    "DoublyMasked",
    "FeatureAblation",
    "Fill",
    "Gaussian",
    "LogFault",
    "Masks",
    "OutputBounds",
    "Property",
    "Region",
    "Smoothed",
    "SmoothedPrediction",
    "SmoothingLog",
    "SmoothingResult",
    "Uniform",
    "Verification",
    "certify",
    "certify_trees",
    "check_log",
    "exact_distance",
    "mark",
    "output_bounds",
    "parse_vnnlib",
    "read_log",
    "read_vnnlib",
    "verify",
]
