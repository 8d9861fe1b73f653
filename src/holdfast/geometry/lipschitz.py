"""How far a representation can move: ``|f(x') - f(x)| <= C |x' - x|``, with ``C`` from below and from above."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from holdfast.arguments import ball_of, inputs, one_input, whole
from holdfast.draws import Draws
from holdfast.geometry.network import Network, push
from holdfast.geometry.polyhedron import refuse_l0
from holdfast.models.query import Query

if TYPE_CHECKING:
    from torch import Tensor, nn

    from holdfast.threats import Ball

__all__ = ["layer_norms", "lipschitz_above", "lipschitz_below"]

_ORDERS = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}


def lipschitz_below(
    model: nn.Module, x: Tensor, threat: Ball, *, steps: int = 20, restarts: int = 4, seed: int = 0
) -> Tensor:
    """The largest ``|f(x') - f(x)| / |x' - x|`` that an attack finds, both in the norm of the threat.

    Projected ascent on ``|f(x') - f(x)|``; every input looked at counts.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, D)`` representations, ``D`` at least 2; of a classifier, the layers up to the
        one wanted. It is given back as it was.
    x : Tensor
        ``(N, ...)`` inputs, all looked at in one call of the model.
    threat : Ball
        The set, in linf, l2 or l1.
    steps : int
        Each a fifth of the budget long.
    restarts : int
        Random starts.
    seed : int
        Of these.

    Returns
    -------
    Tensor
        ``(N,)``: no constant below these serves for the set around each input.

    Raises
    ------
    SettingError
        When the norm is L0.
    """
    x, threat = inputs(x), ball_of(threat)
    order = _order(threat)
    best = torch.zeros(len(x), device=x.device)
    with Query(model, batch_size=max(len(x), 1)) as query:
        x = query.prepare(x)
        clean, best = query.logits(x), best.to(x)
        size = threat.budget(x) / 5
        for restart in range(restarts):
            z = threat.sample(x, Draws(seed, torch.arange(len(x), device=x.device), draw=restart))
            for _ in range(steps + 1):
                moved = threat.apply(x, z)
                here = query.gradient(moved, lambda out: torch.linalg.vector_norm(out - clean, order, 1))
                way = threat.distance(moved, x)
                best = torch.where(way > 0, best.maximum(here.values / way), best)
                z = threat.ascend(z, x, here.grad, size)
    return best


def lipschitz_above(model: nn.Module, x: Tensor, threat: Ball) -> float:
    """A Lipschitz constant on the whole set around one input, by interval bounds of the Jacobian.

    Units that keep their choice everywhere in the set pass their own derivative on, others the interval between their
    candidates'; intervals of matrices are multiplied through the layers (Weng et al., "Towards fast computation of
    certified robustness for ReLU networks", ICML 2018, Fast-Lip). The norm of the largest entries bounds that of
    every Jacobian in the set.

    Parameters
    ----------
    model : nn.Module
        The representation: a sequence of layers that :class:`~holdfast.geometry.Network` knows. In float64.
    x : Tensor
        ``(*shape)``, without a batch dimension.
    threat : Ball
        The set, in linf, l2 or l1; inputs and outputs are measured in its norm.

    Returns
    -------
    float
        In real arithmetic no smaller than the constant; rounding in float64 is not accounted for.

    Raises
    ------
    ModelError
        When a layer is of another kind; it is named.
    DataError
        When the input does not fit the model.
    SettingError
        When the norm is L0.
    """
    x, threat = one_input(x), ball_of(threat)
    order = _order(threat)
    network = Network.of(model, tuple(x.shape))
    x = network.fits(x)
    eps, middle = threat.budget(x[None])[0], x[None]
    low, high = ((end[0].clamp(-eps, eps) + x).reshape(1, -1) for end in threat.box.around(x[None]))
    # The middle and the half-width of the Jacobian, ``(d, units)``.
    slope = torch.eye(x.numel(), dtype=torch.float64)
    spread, shape = torch.zeros_like(slope), network.shape
    for stage in network.stages:
        weight = _matrix(stage.affine, shape)
        middle = stage.affine(middle)
        low, high = _interval(low, high, weight, stage.affine, shape)
        slope, spread = slope @ weight, spread @ weight.abs()
        way = eps * threat.dual_norm((slope.abs() + spread).T.reshape(-1, *x.shape))
        low, high = (
            low.maximum(middle.reshape(1, -1) - way).minimum(high),
            high.minimum(middle.reshape(1, -1) + way).maximum(low),
        )
        shape = stage.units.shape
        entered = tuple(middle.shape[1:])
        candidates = [stage.units.candidates(part.reshape(-1, *entered)) for part in (low, high)]
        # A negative slope turns an interval round.
        least, most = torch.minimum(*candidates)[0], torch.maximum(*candidates)[0]
        possible = most >= least.amax(1, keepdim=True)
        low, high = least.amax(1)[None], most.amax(1)[None]
        middle = stage.units.candidates(middle).amax(2).reshape(1, *shape)
        ends = [stage.units.candidates((slope + s * spread).reshape(-1, *entered)) for s in (-1, 1)]
        down = torch.minimum(*ends).masked_fill(~possible, torch.inf).amin(2)
        up = torch.maximum(*ends).masked_fill(~possible, -torch.inf).amax(2)
        slope, spread = (down + up) / 2, (up - down) / 2
    weight = _matrix(network.tail, shape)
    largest = (slope @ weight).abs() + spread @ weight.abs()
    return float(torch.linalg.matrix_norm(largest.T, order))


def layer_norms(model: nn.Module, shape: tuple[int, ...], threat: Ball) -> float:
    """A Lipschitz constant everywhere: the product of the operator norms of the layers.

    Szegedy et al., "Intriguing properties of neural networks", ICLR 2014, section 4.3: cheap and loose. Affine layers
    that follow one another count as one, by the norm of their matrix.

    Parameters
    ----------
    model : nn.Module
        The representation: a sequence of layers that :class:`~holdfast.geometry.Network` knows. In float64.
    shape : tuple of int
        Of one input.
    threat : Ball
        Whose norm, linf, l2 or l1, measures inputs and outputs.

    Returns
    -------
    float

    Raises
    ------
    ModelError
        When a layer is of another kind; it is named.
    SettingError
        When the norm is L0.
    """
    order = _order(threat)
    threat = ball_of(threat)
    network = Network.of(model, tuple(whole("shape", size) for size in shape))
    constant = 1.0
    for stage in network.stages:
        constant *= float(torch.linalg.matrix_norm(_matrix(stage.affine, shape).T, order)) * stage.units.stretch(order)
        shape = stage.units.shape
    return constant * float(torch.linalg.matrix_norm(_matrix(network.tail, shape).T, order))


def _order(threat: Ball) -> float:
    refuse_l0(threat)
    return _ORDERS[threat.norm]


def _matrix(affine: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """``(inputs, outputs)`` the linear part."""
    eye = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
    return push(affine, torch.cat([0 * eye[:1], eye]).reshape(-1, *shape))[1:].flatten(1)


def _interval(
    low: Tensor, high: Tensor, weight: Tensor, affine: nn.Module, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    center = affine(((low + high) / 2).reshape(1, *shape)).flatten(1)
    radius = (high - low) / 2 @ weight.abs()
    return center - radius, center + radius
