"""How far a representation can move: ``|f(x') - f(x)| <= C |x' - x|``, with ``C`` from below and from above.

Constants from above are about the network in exact arithmetic, and no rounding of float64 makes them too small: of
every number that they are made of there is a bound for what it may be off by, and where a sum has no negative terms the
whole is enlarged by the share that its roundings may have cost (Higham, "Accuracy and stability of numerical
algorithms", 2002, chapter 3). The constant from below is a measurement.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from holdfast.arguments import as_list, ball_of, inputs, one_input, seed_of, shown, whole
from holdfast.draws import Draws
from holdfast.errors import SettingError
from holdfast.geometry.network import Network
from holdfast.geometry.polyhedron import refuse_l0
from holdfast.models.query import Query
from holdfast.rounding import gamma, unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from holdfast.geometry.network import Units
    from holdfast.threats import Ball

__all__ = ["layer_norms", "lipschitz_above", "lipschitz_below"]

_ORDERS = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}
_UNIT = unit(torch.float64)
# The square of this is no number yet that vanishes.
_SQUARED = 1e-150
# Roundings of a term beside those of its sum, and those of numbers that are no sums.
_FEW = 16


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
        ``(N,)``: no constant below these serves for the set around each input. A measurement, in the precision of the
        model: where outputs are large, and moves small, their rounding is part of what is measured.

    Raises
    ------
    SettingError
        When the norm is L0.
    """
    steps, restarts, seed = whole("steps", steps, 0), whole("restarts", restarts), seed_of(seed)
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
                way = threat.length(moved - x)
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
        No smaller than the constant of the network in exact arithmetic, whatever the rounding of this computation.

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
    eps = threat.budget(x[None])[0]
    # The ends of what every value may be in the set, and of what it is at the input.
    ends = [end[0].clamp(-eps, eps) for end in threat.box.around(x[None])]
    room = 4 * _UNIT * (ends[0].abs().maximum(ends[1].abs()) + x.abs())
    low, high = ((end + x + sign * room).reshape(1, -1) for end, sign in zip(ends, (-1, 1), strict=True))
    here = there = x.reshape(1, -1)
    # The middle and the half-width of the Jacobian, ``(d, units)``.
    slope = torch.eye(x.numel(), dtype=torch.float64)
    spread, shape = torch.zeros_like(slope), network.shape
    for stage in network.stages:
        layer = _Layer.of(stage.affine, shape)
        here, there = layer.interval(here, there)
        low, high = layer.interval(low, high)
        slope, spread = layer.behind(slope, spread)
        largest = (slope.abs() + spread).clamp_min(_SQUARED)
        way = _above(eps * threat.dual_norm(largest.T.reshape(-1, *x.shape)), x.numel())
        low, high = _outwards(low.maximum(here - way), high.minimum(there + way))
        least, most = _candidates(stage.units, low, high, layer.leaves)
        # A negative slope turns an interval round.
        possible = (most >= least.amax(2, keepdim=True))[0]
        low, high = least.amax(2), most.amax(2)
        here, there = (part.amax(2) for part in _candidates(stage.units, here, there, layer.leaves))
        down, up = _candidates(stage.units, *_outwards(slope - spread, slope + spread), layer.leaves)
        down = down.masked_fill(~possible, torch.inf).amin(2)
        up = up.masked_fill(~possible, -torch.inf).amax(2)
        (slope, spread), shape = _halves(down, up), stage.units.shape
    slope, spread = _Layer.of(network.tail, shape).behind(slope, spread)
    return _operator_norm((slope.abs() + spread).T, torch.zeros_like(slope.T), order)


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
        No smaller than the constant of the network in exact arithmetic, whatever the rounding of this computation.

    Raises
    ------
    ModelError
        When a layer is of another kind; it is named.
    SettingError
        When the norm is L0.
    """
    threat = ball_of(threat)
    order = _order(threat)
    sizes = as_list(shape)
    if sizes is None:
        raise SettingError(f"shape: a tuple of whole numbers is needed, such as (3, 32, 32), not {shown(shape)}")
    network = Network.of(model, tuple(whole("shape", size) for size in sizes))
    constant = 1.0
    for stage in network.stages:
        layer = _Layer.of(stage.affine, shape)
        constant *= _operator_norm(layer.weight.T, layer.room.T, order) * stage.units.stretch(order)
        shape = stage.units.shape
    layer = _Layer.of(network.tail, shape)
    constant *= _operator_norm(layer.weight.T, layer.room.T, order)
    return constant * (1 + gamma(4 * len(network.stages) + _FEW, _UNIT))


def _order(threat: Ball) -> float:
    refuse_l0(threat)
    return _ORDERS[threat.norm]


@dataclass(frozen=True, eq=False)
class _Layer:
    """An affine map, and what float64 may make of it.

    Parameters
    ----------
    affine, sizes : nn.Sequential
        The map, and the one of the sizes of all its numbers.
    weight, room : Tensor
        ``(inputs, outputs)`` the linear part as it was computed, and by how much entries may be off.
    share : float
        By how much a value may be off, relatively to the sum of the sizes of its terms.
    enters, leaves : tuple of int
        The shapes of what is mapped and of what comes out.
    """

    affine: nn.Sequential
    sizes: nn.Sequential
    weight: Tensor
    room: Tensor
    share: float
    enters: tuple[int, ...]
    leaves: tuple[int, ...]

    @classmethod
    def of(cls, affine: nn.Sequential, shape: tuple[int, ...]) -> Self:
        """A map of inputs of a shape."""
        count, values = _FEW, torch.zeros(1, *shape, dtype=torch.float64)
        for layer in affine:
            # No sum of a layer has more terms than there are values before it, and a constant.
            count += values[0].numel() + _FEW
            values = layer(values)
        share = gamma(2 * count, _UNIT)
        eye = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
        weight = _remade(affine, lambda v: v, torch.zeros_like)(eye).flatten(1)
        terms = _remade(affine, torch.abs, torch.zeros_like)(eye).flatten(1)
        sizes = _remade(affine, torch.abs, torch.abs)
        return cls(affine, sizes, weight, _above(terms * share, count), share, tuple(shape), tuple(values.shape[1:]))

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """``(1, outputs)`` the ends of what comes out, given ``(1, inputs)`` those of what goes in."""
        middle, half = _halves(low, high)
        value = self.affine(middle.reshape(1, *self.enters)).flatten(1)
        off = self.share * self.sizes(middle.abs().reshape(1, *self.enters)).flatten(1)
        radius = _above(half @ (self.weight.abs() + self.room) + off, len(self.weight))
        return _outwards(value - radius, value + radius)

    def behind(self, slope: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """The middle and the half-width of matrices, ``(d, inputs)``, times this one."""
        terms = self.weight.abs() + self.room
        off = slope.abs() @ (self.room + gamma(len(terms) + _FEW, _UNIT) * terms)
        return slope @ self.weight, _above(spread @ terms + off, len(terms))


def _remade(
    affine: nn.Sequential, factors: Callable[[Tensor], Tensor], constants: Callable[[Tensor], Tensor]
) -> nn.Sequential:
    """The same layers with other numbers."""
    made = copy.deepcopy(affine)
    for layer in made:
        for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            if name == "weight":
                value.data = factors(value.data)
            elif name == "bias":
                value.data = constants(value.data)
            elif name == "running_mean":  # which is taken away
                value.data = -constants(value.data)
    return made


def _candidates(units: Units, low: Tensor, high: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``(R, U, k)`` the least and the most of what each unit chooses from, between ``(R, inputs)`` ends."""
    ends = [units.candidates(part.reshape(-1, *shape)) for part in (low, high)]
    return _outwards(torch.minimum(*ends), torch.maximum(*ends))


def _halves(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of an interval, and how far it reaches from there at most."""
    middle = low / 2 + high / 2
    return middle, _above(high / 2 - low / 2 + 4 * _UNIT * (low.abs() + high.abs()), 0)


def _outwards(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ends that are each the result of one rounding."""
    infinity = low.new_tensor(torch.inf)
    return low.nextafter(-infinity), high.nextafter(infinity)


def _above(value: Tensor, terms: int) -> Tensor:
    """No less than a sum of so many terms, none of them negative, is without rounding; also where they vanish."""
    return value * (1 + gamma(terms + _FEW, _UNIT)) + (terms + _FEW) * torch.finfo(torch.float64).tiny


def _operator_norm(matrix: Tensor, room: Tensor, order: float) -> float:
    """No less than the norm of any matrix within ``room`` of this one, of order 1, 2 or infinity."""
    if not bool((matrix.isfinite() & room.isfinite()).all()):
        return torch.inf
    if order != 2:
        sums = (matrix.abs() + room).sum(0 if order == 1 else 1)
        return float(_above(sums.amax(), max(matrix.shape)))
    return float(_above(_spectral(matrix) + _frobenius(room), 2))


def _spectral(matrix: Tensor) -> Tensor:
    """No less than the largest singular value.

    With ``A = U S V + E``, whatever they are, it is at most ``|U| |S| |V| + |E|``, and ``|U|^2 <= 1 + |U^T U - 1|``
    (as in Rump, "Verified bounds for singular values", BIT 51, 2011).
    """
    scale = matrix.abs().amax().clamp_min(torch.finfo(matrix.dtype).tiny)
    scaled = matrix / scale
    u, s, v = torch.linalg.svd(scaled, full_matrices=False)
    largest, many = s[0], gamma(max(matrix.shape) + _FEW, _UNIT)
    stretch = (1 + _from_orthonormal(u)) * (1 + _from_orthonormal(v.T))
    off = many * (_frobenius(scaled) + _frobenius(u) * largest * _frobenius(v))
    return _above(scale * (largest * stretch.sqrt() + _frobenius(scaled - (u * s) @ v) + off), 0)


def _from_orthonormal(columns: Tensor) -> Tensor:
    """No less than the Frobenius norm of ``U^T U - 1``."""
    eye = torch.eye(columns.shape[1], dtype=columns.dtype)
    off = gamma(len(columns) + _FEW, _UNIT) * (_frobenius(columns) ** 2 + _frobenius(eye))
    return _above(_frobenius(columns.T @ columns - eye) + off, 2)


def _frobenius(matrix: Tensor) -> Tensor:
    """No less than the Frobenius norm."""
    largest = matrix.abs().amax()
    if not bool(largest > 0):
        return torch.zeros_like(largest)
    return _above(largest * torch.linalg.vector_norm(matrix / largest), matrix.numel())
