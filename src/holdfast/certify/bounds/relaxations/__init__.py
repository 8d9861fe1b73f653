"""Planes above and below nonlinear functions, for inputs between bounds."""

from holdfast.certify.bounds.relaxations.activations import ACTIVATIONS, clamp, elu, gelu, mish, power, silu, softplus
from holdfast.certify.bounds.relaxations.planes import Activation, Planes
from holdfast.certify.bounds.relaxations.pooling import contested, max_pool
from holdfast.certify.bounds.relaxations.steps import ROUNDED, Steps, cast

__all__ = [
    "ACTIVATIONS",
    "ROUNDED",
    "Activation",
    "Planes",
    "Steps",
    "cast",
    "clamp",
    "contested",
    "elu",
    "gelu",
    "max_pool",
    "mish",
    "power",
    "silu",
    "softplus",
]
