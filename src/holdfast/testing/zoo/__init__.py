"""Broken defences of every kind in small, and honest networks beside them: what an evaluation has to tell apart."""

from holdfast.testing.zoo.registry import ZOO
from holdfast.testing.zoo.specimen import Specimen

__all__ = ["ZOO", "Specimen"]
