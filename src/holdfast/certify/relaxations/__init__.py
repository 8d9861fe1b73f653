"""Planes above and below nonlinear functions, for inputs between bounds."""

from holdfast.certify.relaxations.activations import ACTIVATIONS, clamp, elu, gelu, mish, power, silu, softplus
from holdfast.certify.relaxations.planes import Activation, Planes
from holdfast.certify.relaxations.pooling import contested, max_pool
from holdfast.certify.relaxations.steps import ROUNDED, Steps, cast

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
