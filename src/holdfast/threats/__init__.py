"""What the adversary may do: norm balls intersected with a box."""

from holdfast.threats.ball import L0, L1, L2, Ball, Linf
from holdfast.threats.box import Box
from holdfast.threats.parse import parse_threat
from holdfast.threats.threat import Threat

__all__ = ["L0", "L1", "L2", "Ball", "Box", "Linf", "Threat", "parse_threat"]
