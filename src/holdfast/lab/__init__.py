"""The field's claims as experiments that anyone can run."""

from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Experiment, Finding
from holdfast.lab.gallery import EXPERIMENTS, load
from holdfast.lab.page import write_page

__all__ = ["EXPERIMENTS", "Claim", "Experiment", "Finding", "between", "load", "near", "write_page"]
