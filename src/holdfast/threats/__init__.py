"""What the adversary may do: norm balls intersected with a box."""

from .ball import L0, L1, L2, Ball, Linf
from .box import Box
from .parse import parse_threat
from .threat import Threat

__all__ = ["L0", "L1", "L2", "Ball", "Box", "Linf", "Threat", "parse_threat"]
