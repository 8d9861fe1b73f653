"""The robust hinge loss, and what it has to do with the soft-margin SVM."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.svm import LinearSVC

from holdfast.draws import Draws
from holdfast.lab.canvas import BLUE, GREEN, INK, RED, canvas, label
from holdfast.lab.claim import between, near
from holdfast.lab.experiment import Finding
from holdfast.linear import RobustLinearSVC
from holdfast.threats import Linf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

UNREGULARISED = 1e6
XU, DUAL = "Xu et al., JMLR 2009, theorem 3", "Hölder's inequality, equality case"
BOUND = "max(0, s + t) <= max(0, s) + t"


def run(samples: int = 200, eps: float = 0.3, planes: int = 1000) -> Finding:
    """Compare three objectives at many planes and at their own minimisers."""
    x, y = _sample(samples)
    tried = np.asarray(Draws(2, torch.arange(planes)).normal(3).numpy())
    inside, outside, attacked, shared = (
        np.array([value(plane, x, y, eps) for plane in tried]) for value in (_robust, _bound, _attacked, _shared)
    )
    small = 0.05 * tried
    slack = max(_bound(p, x, y, eps) - _robust(p, x, y, eps) for p in small)
    svm, exact = (
        np.array([*model.fit(x, y).coef_[0], *np.atleast_1d(model.intercept_)])
        for model in (
            LinearSVC(loss="hinge", max_iter=100_000, random_state=0),
            RobustLinearSVC(eps, norm=np.inf, C=UNREGULARISED),
        )
    )
    around = exact + 0.05 * tried
    better = _robust(exact, x, y, eps) - min(_robust(p, x, y, eps) for p in (svm, *around))
    gained = _kept(exact, x, y, eps) - _kept(svm, x, y, eps)
    claims = (
        near("eps ||w||_1 inside the hinge is its worst case: apart", DUAL, _apart(inside, attacked), 0, 1e-9),
        between("outside it is an upper bound: excess", BOUND, (inside - outside).max(), high=1e-12),
        near("tight where every margin is below 1: slack", BOUND, slack, 0, 1e-12),
        near("and is the worst case of a budget that all share: apart", XU, _apart(outside, shared), 0, 1e-9),
        between("no plane nearby, and no soft margin, is below the robust SVM", "optimality", better, high=1e-6),
        between("robust accuracy gained on the soft margin", "what the objective is for", gained, -0.02),
    )
    scales = np.linspace(0, 2, 81)
    data = {
        "eps": eps,
        "x": x.tolist(),
        "y": y.tolist(),
        "svm": svm.tolist(),
        "robust": exact.tolist(),
        "scales": scales.tolist(),
        "curves": {
            "hinge": [_robust(s * exact, x, y, 0.0) for s in scales],
            "robust hinge": [_robust(s * exact, x, y, eps) for s in scales],
            "upper bound": [_bound(s * exact, x, y, eps) for s in scales],
        },
    }
    return Finding(claims, data)


def _sample(samples: int) -> tuple[Array, Array]:
    draws = Draws(1, torch.arange(samples))
    y = torch.where(draws.index % 2 == 0, 1.0, -1.0).double()
    x = y.unsqueeze(1) * torch.tensor([1.5, 0.4], dtype=torch.float64) + draws.normal(2)
    return np.asarray(x.numpy()), np.asarray(y.numpy())


def _apart(first: Array, second: Array) -> float:
    return float(np.abs(first - second).max())


def _margins(plane: Array, x: Array, y: Array) -> Array:
    return np.asarray(y * (x @ plane[:2] + plane[2]))


def _length(plane: Array) -> float:
    weights = torch.from_numpy(plane[None, :2])
    return float(Linf(1.0, box=None).dual_norm(weights))


def _robust(plane: Array, x: Array, y: Array, eps: float) -> float:
    """The robust SVM's objective: the dual norm inside the hinge."""
    return float(np.maximum(0, 1 - _margins(plane, x, y) + eps * _length(plane)).mean())


def _bound(plane: Array, x: Array, y: Array, eps: float) -> float:
    """The dual norm outside, as a regulariser: what a soft-margin SVM minimises, in another norm."""
    return float(np.maximum(0, 1 - _margins(plane, x, y)).mean() + eps * _length(plane))


def _worst(plane: Array, x: Array, y: Array, eps: float) -> Array:
    """Every input moved against the plane, by the threat's own maximiser."""
    at = torch.from_numpy(x)
    move = Linf(eps, box=None).maximize(torch.from_numpy(-y[:, None] * plane[:2]), at)
    return np.asarray((at + move).numpy())


def _attacked(plane: Array, x: Array, y: Array, eps: float) -> float:
    return float(np.maximum(0, 1 - _margins(plane, _worst(plane, x, y, eps), y)).mean())


def _shared(plane: Array, x: Array, y: Array, eps: float) -> float:
    """The hinge where the budgets of all examples are spent on the one that is worst off."""
    worst = _margins(plane, x, y).argmin()
    moved = x.copy()
    moved[worst] = _worst(plane, x[[worst]], y[[worst]], eps * len(x))[0]
    return float(np.maximum(0, 1 - _margins(plane, moved, y)).mean())


def _kept(plane: Array, x: Array, y: Array, eps: float) -> float:
    return float((_margins(plane, _worst(plane, x, y, eps), y) > 0).mean())


def draw(data: dict[str, Any]) -> "Figure":
    """The two boundaries among the balls, and the objectives along a ray."""
    figure, (plane, curves) = canvas(
        "The robust hinge loss, the soft margin, and the bound between", 5.2, 5.2, height=4.8
    )
    x, y, eps = np.array(data["x"]), np.array(data["y"]), data["eps"]
    corners = eps * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    for side, colour in ((1, BLUE), (-1, RED)):
        for point in x[y == side]:
            plane.fill(*(point + corners).T, color=colour, alpha=0.10, lw=0)
        plane.plot(*x[y == side].T, "o", color=colour, ms=3.5, mew=0)
    ends = np.array([-4.0, 4.0])
    for key, text, style in (("svm", "soft margin", "--"), ("robust", "robust", "-")):
        first, second, offset = data[key]
        # Parametrised by the second coordinate: the robust boundary may be upright.
        plane.plot(-(second * ends + offset) / first, ends, style, color=INK, lw=2, label=text)
    plane.set(xlim=(-4, 4), ylim=(-3.5, 3.5), aspect="equal")
    plane.legend(frameon=False, fontsize=10, loc="upper left")
    label(plane, f"boundaries, and boxes of half-width {eps:g}", "$x_1$", "$x_2$")
    for (text, values), colour in zip(data["curves"].items(), (BLUE, INK, GREEN), strict=True):
        curves.plot(data["scales"], values, color=colour, lw=2, label=text)
    inside, above = data["curves"]["robust hinge"], data["curves"]["upper bound"]
    curves.fill_between(data["scales"], inside, above, color=GREEN, alpha=0.15, lw=0)
    curves.plot(1, np.interp(1, data["scales"], inside), "o", color=INK, ms=7)
    curves.legend(frameon=False, fontsize=10)
    label(curves, "along the robust SVM's own direction", "scale of $w$ and $b$", "mean loss")
    return figure
