"""What the adversary may do."""

from holdfast.threats.ball import L0, L1, L2, Ball, Linf
from holdfast.threats.box import Box
from holdfast.threats.parse import parse_threat
from holdfast.threats.patch import Patch
from holdfast.threats.spatial import Spatial
from holdfast.threats.table import Table
from holdfast.threats.then import Then
from holdfast.threats.threat import Climbable, Coverable, Recognisable, Scalable, Sloped, Threat

__all__ = [
    "L0",
    "L1",
    "L2",
    "Ball",
    "Box",
    "Climbable",
    "Coverable",
    "Linf",
    "Patch",
    "Recognisable",
    "Scalable",
    "Sloped",
    "Spatial",
    "Table",
    "Then",
    "Threat",
    "parse_threat",
]
