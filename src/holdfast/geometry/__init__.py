"""The geometry of networks: linear regions of piecewise-linear ones, and how any loss bends."""

from holdfast.geometry.cells import Cell
from holdfast.geometry.curvature import Crossing, crossing, curvature
from holdfast.geometry.distance import Nearest, boundary_distance, boundary_on_facets, facet_distance
from holdfast.geometry.linearity import gradient_alignment, linearity_violation
from holdfast.geometry.lipschitz import layer_norms, lipschitz_above, lipschitz_below
from holdfast.geometry.network import Network
from holdfast.geometry.pattern import activation_pattern
from holdfast.geometry.region import LinearRegion, neighbour, region_at
from holdfast.geometry.saturation import Saturation, gradient_saturation
from holdfast.geometry.search import RegionSearch, nearest_adversarial
from holdfast.geometry.segment import Segment, regions_on_segment
from holdfast.geometry.slice import Slice, draw_slice, regions_in_slice

__all__ = [
    "Cell",
    "Crossing",
    "LinearRegion",
    "Nearest",
    "Network",
    "RegionSearch",
    "Saturation",
    "Segment",
    "Slice",
    "activation_pattern",
    "boundary_distance",
    "boundary_on_facets",
    "crossing",
    "curvature",
    "draw_slice",
    "facet_distance",
    "gradient_alignment",
    "gradient_saturation",
    "layer_norms",
    "linearity_violation",
    "lipschitz_above",
    "lipschitz_below",
    "nearest_adversarial",
    "neighbour",
    "region_at",
    "regions_in_slice",
    "regions_on_segment",
]
