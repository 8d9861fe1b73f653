"""Examples made on one model, tried on others."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, one_hot

from holdfast.attacks import Transfer
from holdfast.data import load_data
from holdfast.draws import Draws
from holdfast.lab.canvas import BLUE, GREEN, GREY, INK, RED, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.lab.networks import dense, half_spaces
from holdfast.models import Query
from holdfast.tasks.objectives import cross_entropy
from holdfast.threats import L2, Linf
from holdfast.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

EPS = 0.15
THREAT = Linf(EPS)
# Of the planes: how far the classes' means are from the boundary, in their standard deviations, and the budget.
MEAN, BUDGET, DIMENSION = 1.5, 3.0, 10
PLAIN, ROBUST = ("linear", "MLP", "MLP'", "conv"), "robust"
SURROGATES = (*PLAIN, ROBUST)
SZEGEDY, PAPERNOT = "Szegedy et al., ICLR 2014", "Papernot et al. 2016, arXiv:1605.07277"
DEMONTIS, MADRY = "Demontis et al., USENIX Security 2019", "Madry et al., ICLR 2018"
PLANE = "a step at an angle t to w gains eps cos t ||w||"


def run(
    samples: int = 2000, angles: int = 9, examples: int = 400, learned_from: int = 1297, epochs: int = 15
) -> Finding:
    """Attack planes from other planes, where the outcome is known, and models of digits from each other."""
    degrees = np.linspace(0, 80, angles)
    wrong, rates = zip(*(_plane(np.deg2rad(angle), samples) for angle in degrees), strict=True)
    expected = norm.cdf(BUDGET * np.cos(np.deg2rad(degrees)) - MEAN)
    error = float(np.abs(np.array(rates) - expected).max())
    found = _digits(examples, f"0:{learned_from}", epochs)
    claims = (
        near("a plane attacked from another: examples that do not fall as predicted", PLANE, sum(wrong), 0, 0),
        near("share that falls less Phi(eps cos t - mean), largest of all angles", PLANE, error, 0, 2 / samples**0.5),
        *_transferred(found),
    )
    return Finding(claims, {"degrees": degrees.tolist(), "rates": rates, **found})


def _plane(angle: float, samples: int) -> tuple[int, float]:
    """Attack a linear classifier of two Gaussian classes from another: wrong predictions, the share that falls."""
    draws = Draws(0, torch.arange(samples))
    y = draws.index % 2
    sign = 2.0 * y - 1
    x = draws.normal(DIMENSION)
    x[:, 0] += MEAN * sign
    target, surrogate = torch.zeros(2, DIMENSION, dtype=torch.float64)
    target[0], surrogate[0], surrogate[1] = 1, np.cos(angle), np.sin(angle)
    result = Transfer(half_spaces(surrogate))(half_spaces(target), x, y, threat=L2(BUDGET, box=None))
    falls = sign * x[:, 0] < BUDGET * np.cos(angle)
    return int((falls != result.success).sum()), float(result.success.double().mean())


class _Foreign(nn.Module):
    """A classifier of scikit-learn, which tells its answer and no more."""

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.from_numpy(self.estimator.predict(x.flatten(1).numpy()))
        # Not 0 and 1, which would be probabilities.
        return 2 * one_hot(answers, 10).to(x.dtype) - 1


def _learned(network: nn.Module | str, split: str, epochs: int, method: str = "standard", seed: int = 0) -> nn.Module:
    settings = {"epochs": epochs, "batch_size": 50, "lr": 0.01, "validation": 20}
    trained = train(network, "digits", THREAT, method=method, settings=settings, examples=split, seed=seed)
    return trained.model.cpu()


def _flat(*hidden: int, seed: int = 0) -> nn.Module:
    return nn.Sequential(nn.Flatten(), *dense(64, *hidden, 10, seed=seed))


def _surrogates(split: str, epochs: int) -> dict[str, nn.Module]:
    """Models with gradients, in the order of the matrix."""
    return {
        "linear": _learned(_flat(), split, epochs),
        "MLP": _learned(_flat(100), split, epochs),
        "MLP'": _learned(_flat(100, seed=1), split, epochs, seed=1),
        "conv": _learned("conv-small", split, epochs),
        "robust": _learned(_flat(100), split, epochs, "pgd"),
    }


def _foreign(split: str) -> dict[str, nn.Module]:
    """Models without."""
    source = load_data("digits", split="train", examples=split)
    batch = next(source.batches(len(source)))
    x, y = batch.x.flatten(1).numpy(), batch.y.numpy()
    estimators = {"SVM": SVC(), "tree": DecisionTreeClassifier(random_state=0), "k-NN": KNeighborsClassifier()}
    return {name: _Foreign(estimator.fit(x, y)) for name, estimator in estimators.items()}


def _digits(examples: int, split: str, epochs: int) -> dict[str, Any]:
    """How many of the examples that all models know fall to those made on each, and how gradients align."""
    surrogates = _surrogates(split, epochs)
    models = {**surrogates, **_foreign(split)}
    batch = next(load_data("digits").batches(examples))
    known = torch.stack([_answers(model, batch.x) == batch.y for model in models.values()]).all(0)
    x, y = batch.x[known], batch.y[known]
    signs = Draws(1, torch.arange(len(x))).normal(x[0].numel()).sign().reshape(x.shape)
    noisy = THREAT.apply(x, EPS * signs.to(x.dtype))
    gradients = [_gradient(model, x, y) for model in surrogates.values()]
    return {
        "models": list(models),
        "matrix": [[_falls(source, model, x, y) for model in models.values()] for source in surrogates.values()],
        "random": [float((_answers(model, noisy) != y).double().mean()) for model in models.values()],
        "alignment": [[float(cosine_similarity(a, b).mean()) for b in gradients] for a in gradients],
    }


def _falls(surrogate: nn.Module, model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(Transfer(surrogate)(model, x, y, threat=THREAT).success.double().mean())


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with Query(model, batch_size=len(x)) as query:
        return query.gradient(query.prepare(x), lambda logits: cross_entropy(logits, y)).grad.flatten(1)


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits.argmax(1)


def _transferred(found: dict[str, Any]) -> list[Claim]:
    matrix, random, alignment = (np.array(found[key]) for key in ("matrix", "random", "alignment"))
    count, plain = len(SURROGATES), len(PLAIN)
    other = ~np.eye(count, len(random), dtype=bool)
    ahead = min(matrix[i, i] - matrix[other[:, i], i].max() for i in range(count))
    gained = (matrix - random)[other].min()
    first, second = SURROGATES.index("MLP"), SURROGATES.index("MLP'")
    kin = (matrix[first, second] + matrix[second, first]) / 2
    others = [SURROGATES.index(name) for name in ("linear", "conv")]
    strangers = matrix[np.ix_(others, [first, second])].mean()
    pairs = ~np.eye(plain, dtype=bool)
    resisted = matrix[:plain, plain].mean() / matrix[:plain, :plain][pairs].mean()
    rank = spearmanr(alignment[:plain, :plain][pairs], matrix[:plain, :plain][pairs]).statistic
    foreign = (matrix - random)[:, count:].mean()
    return [
        between("a model falls to its own examples more than to any other's: smallest lead", PAPERNOT, ahead, 0),
        between(
            "share that falls to transferred examples less to random signs of that size: smallest",
            SZEGEDY,
            gained,
            0.01,
        ),
        between(
            "share that falls, from one MLP to another, less from other kinds to MLPs", PAPERNOT, kin - strangers, 0.05
        ),
        between("SVM, tree and k-NN, never asked for a gradient: mean lead over random signs", PAPERNOT, foreign, 0.1),
        between("share that falls, from plain to robust over plain to plain", MADRY, resisted, 0, 0.6),
        between("success follows the alignment of gradients: rank correlation", DEMONTIS, rank, 0.3),
    ]


def draw(data: dict[str, Any]) -> "Figure":
    """The matrix, success over alignment, and two planes."""
    title = "Adversarial examples travel, as far as gradients point the same way"
    figure, (table, scatter, plane) = canvas(title, 6.4, 4.2, 4.2)
    rows, columns = [*SURROGATES, "random signs"], data["models"]
    values = np.array([*data["matrix"], data["random"]])
    table.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value > 0.6 else INK
        weight = "bold" if i == j < len(SURROGATES) else "normal"
        table.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=11, fontweight=weight)
    table.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    table.grid(visible=False)
    table.axhline(len(SURROGATES) - 0.5, color="white", lw=4)
    table.axvline(len(SURROGATES) - 0.5, color="white", lw=4)
    for i, source in enumerate(SURROGATES):
        for j, target in enumerate(SURROGATES):
            if i != j:
                colour = RED if target == ROBUST else GREEN if source == ROBUST else BLUE
                scatter.plot(data["alignment"][i][j], data["matrix"][i][j], "o", color=colour, ms=6)
    for text, colour in (("plain to plain", BLUE), ("robust to plain", GREEN), ("plain to robust", RED)):
        scatter.plot([], [], "o", color=colour, ms=6, label=text)
    scatter.legend(frameon=False, fontsize=9.5, loc="upper left")
    scatter.set_ylim(0, 1)
    angle = np.linspace(0, 90, 200)
    plane.plot(angle, norm.cdf(BUDGET * np.cos(np.deg2rad(angle)) - MEAN), "-", color=INK, lw=1.2)
    plane.plot(data["degrees"], data["rates"], "o", color=BLUE, ms=6)
    plane.axhline(norm.cdf(-MEAN), color=GREY, lw=1, ls="--")
    plane.annotate("without an attack", (2, norm.cdf(-MEAN) + 0.02), color=GREY, fontsize=10)
    plane.annotate("$\\Phi(\\epsilon\\cos\\theta - \\mu)$", (50, 0.75), color=INK, fontsize=11)
    plane.set(ylim=(0, 1), xticks=range(0, 91, 30))
    label(table, f"digits, $\\epsilon$ = {EPS:g} in L-infinity: percent that fall", "tried on", "made on")
    label(scatter, "pairs of models", "cosine of their gradients", "share that falls")
    label(plane, "one plane attacked from another", "angle between them, in degrees", "share that falls")
    return figure
