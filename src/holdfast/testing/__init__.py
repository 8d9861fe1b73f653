"""For users' own tests: a zoo of broken defences."""

from holdfast.testing.zoo import ZOO, Specimen

__all__ = ["ZOO", "Specimen"]
