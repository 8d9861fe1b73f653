"""Planes above and below nonlinear functions, for inputs between bounds."""

from holdfast.certify.relaxations.activations import ACTIVATIONS, clamp, gelu, power, silu
from holdfast.certify.relaxations.planes import Activation, Planes
from holdfast.certify.relaxations.pooling import contested, max_pool

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Planes",
    "clamp",
    "contested",
    "gelu",
    "max_pool",
    "power",
    "silu",
]
