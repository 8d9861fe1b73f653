"""The linear regions of a small ReLU network, counted, and the distances they tell."""

from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor, nn

from holdfast.certify import exact_distance
from holdfast.data import load_data
from holdfast.draws import Draws
from holdfast.geometry import (
    Slice,
    activation_pattern,
    boundary_distance,
    boundary_on_facets,
    facet_distance,
    nearest_adversarial,
    region_at,
    regions_in_slice,
    regions_on_segment,
)
from holdfast.lab.canvas import BLUE, GOLD, GREEN, GREY, INK, PURPLE, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.lab.networks import dense
from holdfast.threats import L2, Linf
from holdfast.train import Recipe, Standard, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

ZASLAVSKY, TELGARSKY = "Zaslavsky 1975; Pascanu et al., ICLR 2014", "Telgarsky, COLT 2016"
CROCE, JORDAN, TJENG = "Croce et al., AISTATS 2019", "Jordan et al., NeurIPS 2019", "Tjeng et al., ICLR 2019"
BRUTE = "brute force over 2^units patterns"
BOX = (-1.0, 1.0)
DISTANCES = {
    "facet": ("nearest facet", CROCE),
    "D_in": ("D_in", CROCE),
    "D_facet": ("D_facet", CROCE),
    "exact": ("nearest adversarial input", JORDAN),
}
MARKS = {
    "D_facet": ("_", 15, PURPLE, "$D_{facet}$"),
    "D_in": ("_", 11, GREEN, "$D_{in}$, inside its region"),
    "facet": ("_", 7, BLUE, "nearest facet"),
    "exact": ("o", 5, RED, "exact, over all regions"),
}


def run(units: int = 12, width: int = 5, depth: int = 8, inputs: int = 24, epochs: int = 40) -> Finding:
    """Count regions by geometry and by other means, and measure distances in the plane in both ways."""
    network = _trained(epochs)
    plane = regions_in_slice(network, torch.zeros(2), *torch.eye(2), extent=BOX + BOX)
    # One input on either side in each region that the boundary crosses: it is there that D_in is finite.
    crossed = [(of, cell) for of, cell in plane.decisions if _level(cell.logits).sum() == 2]
    x = torch.stack([cell.corners.mean(0) for _, cell in crossed[:inputs]])
    y = torch.tensor([of for of, _ in crossed[:inputs]])
    told = [_told(network, point, int(of)) for point, of in zip(x, y, strict=True)]
    drawn = [_drawn(plane, network, point, int(of)) for point, of in zip(x, y, strict=True)]
    threat = Linf("inf", box=BOX)
    searched = [nearest_adversarial(network, point, int(of), threat).upper for point, of in zip(x, y, strict=True)]
    proved = [answer.upper for answer in exact_distance(network, x, y, threat)]
    apart = np.abs(np.array(searched) / np.array(proved) - 1).max()
    facet, inside, on_facets, exact = (np.array([each[name] for each in told]) for name in DISTANCES)
    excess = np.max([np.minimum(facet, inside) - exact, exact - inside, inside - on_facets])
    pieces = [_pieces(layers) for layers in range(1, depth + 1)]
    claims = (
        *_counted(units, width),
        near(f"{depth} layers of 2 units, each a fold: linear pieces", TELGARSKY, pieces[-1][0], 2**depth, 0),
        near(f"{2 * depth} units in one layer: linear pieces", "a unit adds one", pieces[-1][1], 2 * depth + 1, 0),
        *(
            near(
                f"l2: {text}, computed and measured on polygons: relative difference",
                source,
                _apart(told, drawn, name),
                0,
                1e-9,
            )
            for name, (text, source) in DISTANCES.items()
        ),
        between("min(facet, D_in) <= exact <= D_in <= D_facet: largest excess", CROCE, excess, high=1e-9),
        near(
            "linf: nearest adversarial input, by regions and by branch and bound: relative difference",
            TJENG,
            apart,
            0,
            1e-4,
        ),
    )
    data = {
        "regions": len(plane.cells),
        "classes": [(of, cell.corners.round(decimals=5).tolist()) for of, cell in plane.decisions],
        "boundary": [cell.corners[_level(cell.logits)].tolist() for _, cell in crossed],
        "x": x.tolist(),
        "distances": told,
        "pieces": pieces,
    }
    return Finding(claims, data)


def _trained(epochs: int) -> nn.Sequential:
    """Two hidden layers that tell two half-moons apart."""
    network = dense(2, 10, 10, 2, gain=8, spread=0.7)
    fit(network, load_data(_moons(400)), Standard(), L2(0.05, box=BOX), Recipe(epochs, 100, lr=0.03))
    return network.double()


def _moons(samples: int) -> tuple[Tensor, Tensor]:
    draws = Draws(0, torch.arange(samples))
    y = draws.index % 2
    angle = torch.pi * (draws.uniform(1)[:, 0] + y)
    x = torch.stack([angle.cos() + y, angle.sin() + y / 2], 1) + 0.12 * draws.normal(2, lane=1)
    return ((x - torch.tensor([0.5, 0.25])) / torch.tensor([2.0, 1.5])).clamp(*BOX), y


def _told(network: nn.Module, x: Tensor, y: int) -> dict[str, float]:
    """Distances by the closed forms and the programs of the library."""
    threat, region = L2("inf", box=BOX), region_at(network, x)
    return {
        "facet": facet_distance(region, x, threat).distance,
        "D_in": boundary_distance(region, x, y, threat).distance,
        "D_facet": boundary_on_facets(region, x, y, threat).distance,
        "exact": nearest_adversarial(network, x, y, threat).upper,
    }


def _drawn(plane: Slice, network: nn.Module, x: Tensor, y: int) -> dict[str, float]:
    """The same from the polygons into which the plane is cut, which are all there is of it."""
    own = activation_pattern(network, x[None])[0]
    wrong = [cell for of, cell in plane.decisions if of != y]
    here = [cell for cell in wrong if torch.equal(cell.pattern, own)]
    ends = [end for cell in here for end in cell.corners[_level(cell.logits)] if end.abs().max() < BOX[1] - 1e-9]
    others = [cell.corners for cell in plane.cells if not torch.equal(cell.pattern, own)]
    return {
        "facet": min(_to_polygon(x, corners) for corners in others),
        "D_in": min(_to_polygon(x, cell.corners) for cell in here),
        "D_facet": min(float((x - end).norm()) for end in ends),
        "exact": min(_to_polygon(x, cell.corners) for cell in wrong),
    }


def _to_polygon(x: Tensor, corners: Tensor) -> float:
    """From outside: the nearest point of an edge."""
    edges = corners.roll(-1, 0) - corners
    share = ((x - corners) * edges).sum(1) / edges.square().sum(1)
    return float((x - corners - share.clamp(0, 1).unsqueeze(1) * edges).norm(dim=1).min())


def _level(logits: Tensor) -> Tensor:
    """Corners at which two classes are level."""
    return (logits[:, 0] - logits[:, 1]).abs() <= 1e-9 * logits.abs().max()


def _apart(told: list[dict[str, float]], drawn: list[dict[str, float]], name: str) -> float:
    return max(abs(one[name] / other[name] - 1) for one, other in zip(told, drawn, strict=True))


def _counted(units: int, width: int) -> list[Claim]:
    """Regions in a plane through 20 dimensions, whole and in a window, and those of two layers, pattern by pattern."""
    one = dense(20, units, 2, spread=1.0).double()
    origin, *directions = Draws(1, torch.arange(3)).normal(20)
    weight, bias = _arrays(one)[0]
    rows = weight @ torch.stack([*directions, origin], 1).numpy()
    rows[:, 2] += bias
    pairs = [rows[list(pair)] for pair in combinations(range(units), 2)]
    crossings = np.array([np.linalg.solve(pair[:, :2], -pair[:, 2]) for pair in pairs])
    far = np.abs(crossings).max(1)
    counts, expected = [], []
    for half in (1.1 * far.max(), 0.9 * float(np.median(far))):
        found = regions_in_slice(one, origin, *directions, extent=(-half, half, -half, half))
        corners = np.array([(*corner, 1.0) for corner in product((-half, half), repeat=2)])
        meeting = np.ptp(np.sign(rows @ corners.T), axis=1) > 0
        counts.append(len(found.cells))
        expected.append(1 + int(meeting.sum()) + int((far < half).sum()))
    two = dense(2, width, width, 2, gain=8, spread=0.7).double()
    cells = regions_in_slice(two, torch.zeros(2), *torch.eye(2), extent=BOX + BOX).cells
    patterns = sum(_exists(_arrays(two)[:-1], np.array(signs)) for signs in product((-1.0, 1.0), repeat=2 * width))
    whole = 1 + units + units * (units - 1) // 2
    return [
        near(f"{units} units cut a plane into 1 + n + n(n-1)/2 regions", ZASLAVSKY, counts[0], whole, 0),
        near("a window of that plane: 1 + lines + crossings inside", ZASLAVSKY, counts[1], expected[1], 0),
        near(
            f"two layers of {width} units: regions, one for each sign pattern that a linear program finds room for",
            BRUTE,
            len(cells),
            patterns,
            0,
        ),
    ]


def _arrays(network: nn.Module) -> list[tuple[Array, Array]]:
    """Weights and biases, layer by layer."""
    values = [parameter.detach().numpy() for parameter in network.parameters()]
    return list(zip(values[::2], values[1::2], strict=True))


def _exists(layers: list[tuple[Array, Array]], signs: Array) -> bool:
    """Whether some disc inside the box has the units' signs."""
    matrix, shift = np.eye(2), np.zeros(2)
    rows, room = [np.eye(2), -np.eye(2)], [np.full(4, BOX[1])]
    for (weight, bias), sign in zip(layers, np.split(signs, len(layers)), strict=True):
        matrix, shift = weight @ matrix, weight @ shift + bias
        rows.append(-sign[:, None] * matrix)
        room.append(sign * shift)
        matrix, shift = matrix * (sign > 0)[:, None], shift * (sign > 0)
    sides = np.concatenate(rows)
    sides = np.column_stack([sides, np.linalg.norm(sides, axis=1)])
    found = linprog([0, 0, -1], sides, np.concatenate(room), bounds=[(None, None), (None, None), (0, None)])
    return bool(found.status == 0 and found.x[2] > 1e-9)


def _pieces(layers: int) -> tuple[int, int]:
    """On the unit interval, of a network that folds it in every layer, and of as many units side by side."""
    folding = dense(1, *[2] * layers, 1).double()
    flat = dense(1, 2 * layers, 1).double()
    for weight, bias in _arrays(folding):
        # 2 relu(v) - 4 relu(v - 1/2) is a tent over [0, 1].
        weight[:] = [2.0, -4.0] if weight.shape[1] == 2 else [1.0]
        bias[:] = [0.0, -0.5] if len(bias) == 2 else [0.0]
    weight, bias = _arrays(flat)[0]
    weight[:], bias[:] = 1.0, -(np.arange(2 * layers) + 0.5) / (2 * layers)
    return _bends(folding), _bends(flat)


def _bends(network: nn.Module) -> int:
    line = regions_on_segment(network, torch.zeros(1), torch.ones(1))
    slopes = line.logits[:, 0].diff() / line.breakpoints.diff()
    return 1 + int((slopes.diff().abs() > 1e-6 * slopes.abs().max()).sum())


def draw(data: dict[str, Any]) -> "Figure":
    """The plane with one input's distances, all inputs' distances, and pieces over units."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Circle

    figure, (plane, bars, pieces) = canvas("The pieces of a ReLU network, and the distances they tell", 4.9, 5.2, 3.9)
    classes, polygons = zip(*data["classes"], strict=True)
    shades = [to_rgba((BLUE, GOLD)[of], 0.4) for of in classes]
    plane.add_collection(PolyCollection(polygons, facecolors=shades, edgecolors="white", linewidths=0.8))
    plane.add_collection(LineCollection(data["boundary"], colors=INK, linewidths=2))
    # The input about which its own region says least.
    x, shown = max(zip(data["x"], data["distances"], strict=True), key=lambda each: each[1]["D_in"] - each[1]["exact"])
    for name in ("facet", "exact", "D_in"):
        plane.add_patch(Circle(x, shown[name], fill=False, color=MARKS[name][2], lw=2))
    plane.plot(*x, "o", color=INK, ms=4)
    plane.set(xlim=BOX, ylim=BOX, aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    plane.grid(visible=False)
    label(plane, f"{data['regions']} regions; an input and its distances", "$x_1$", "$x_2$")
    order = sorted(data["distances"], key=lambda each: each["exact"])
    for place, each in enumerate(order):
        bars.plot([place, place], [min(each.values()), max(each.values())], color=GREY, lw=0.8, alpha=0.6, zorder=0)
    for name, (mark, size, colour, text) in MARKS.items():
        bars.plot([each[name] for each in order], mark, color=colour, ms=size, mew=2, label=text)
    bars.set(xticks=[], ylim=(0, 1.25 * max(each["D_facet"] for each in order)))
    bars.legend(frameon=False, fontsize=10, loc="upper left", ncols=2)
    label(bars, "the same distances of more inputs, in l2", "inputs, the least robust first", "distance")
    folded, flat = np.array(data["pieces"]).T
    units = 2 * np.arange(1, len(flat) + 1)
    pieces.plot(units, folded, "o-", color=RED, lw=1.2, ms=6)
    pieces.plot(units, flat, "o-", color=INK, lw=1.2, ms=6)
    pieces.annotate("$2^{n/2}$: one fold\na layer", (0.62, 0.8), xycoords="axes fraction", color=RED, ha="right")
    pieces.annotate("$n+1$: one layer", (0.98, 0.28), xycoords="axes fraction", color=INK, ha="right")
    pieces.set(xticks=units[1::2])
    pieces.set_yscale("log", base=2)
    label(pieces, "linear pieces on a line", "units $n$", "pieces")
    return figure
