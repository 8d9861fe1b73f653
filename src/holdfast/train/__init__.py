"""Robust training: methods that map a batch to a loss, and the loop."""

from holdfast.train.loop import fit
from holdfast.train.method import Method
from holdfast.train.pgd import PGDTraining
from holdfast.train.standard import Standard

__all__ = ["Method", "PGDTraining", "Standard", "fit"]
