"""A piecewise-linear network as affine maps between units that take the largest of a few candidates.

ReLU is ``max(0, v)``, leaky ReLU ``max(s v, v)``, and a max pool the largest value of a window: so one rule covers them
all. Which candidate every unit takes is the activation pattern; with the pattern fixed, the network is affine, and an
affine map is known by its value at one point and by its change along each direction of a basis. A *frame* holds these:
``(1 + D, *shape)``, the value first, then the ``D`` changes.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.arguments import module_of
from holdfast.errors import DataError, ModelError
from holdfast.words import one_line

__all__ = ["Network", "Rectifier", "Stage", "Units", "Windows", "push", "take"]

_AFFINE = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Dropout,
)
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Units(Protocol):
    """Units that each take the largest of some linear functions of the layer before."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what comes out."""
        ...

    def candidates(self, values: Tensor) -> Tensor:
        """``(R, U, k)`` what each of the ``U`` units chooses from, for ``(R, *shape)`` values before."""
        ...

    def stretch(self, order: float) -> float:
        """A Lipschitz constant in the norm of an order, 1, 2 or infinity."""
        ...


@dataclass(frozen=True)
class Rectifier:
    """``max(slope * v, v)`` of every value: candidate 1 is the active side, candidate 0 the other."""

    slope: float
    shape: tuple[int, ...]

    def candidates(self, values: Tensor) -> Tensor:
        flat = values.flatten(1)
        return torch.stack([self.slope * flat, flat], -1)

    def stretch(self, order: float) -> float:
        return max(1.0, abs(self.slope))


@dataclass(frozen=True, eq=False)
class Windows:
    """The largest value of each window: ``index``, ``(U, k)``, says which values of the layer before are in it."""

    index: Tensor
    shape: tuple[int, ...]

    def candidates(self, values: Tensor) -> Tensor:
        return values.flatten(1)[:, self.index]

    def stretch(self, order: float) -> float:
        # A value counts once for every window that it is in.
        return float(torch.bincount(self.index.flatten()).max().double() ** (1 / order))


@dataclass(frozen=True, eq=False)
class Stage:
    """An affine map and the units behind it."""

    affine: nn.Sequential
    units: Units


@dataclass(frozen=True, eq=False)
class Network:
    """A piecewise-linear network in float64.

    Parameters
    ----------
    shape : tuple of int
        Of one input.
    stages : tuple of Stage
        In order.
    tail : nn.Sequential
        The affine map from the last units to the output.
    """

    shape: tuple[int, ...]
    stages: tuple[Stage, ...]
    tail: nn.Sequential

    @classmethod
    def of(cls, model: nn.Module, shape: tuple[int, ...]) -> Self:
        """A copy of a model, in evaluation mode; the model itself is left alone.

        Parameters
        ----------
        model : nn.Module
            A layer or a sequence of layers: linear layers, convolutions, average and max pooling, batch
            normalisation, ReLU, leaky ReLU, flattening.
        shape : tuple of int
            Of one input.

        Raises
        ------
        ModelError
            When a layer is of another kind; it is named.
        DataError
            When inputs of that shape do not fit the model.
        """
        model = module_of(model)
        if 0 in shape:
            raise DataError(f"an input of shape {tuple(shape)} has no features")
        values = torch.zeros(1, *shape, dtype=torch.float64)
        stages: list[Stage] = []
        affine: list[nn.Module] = []
        for name, layer in _layers(model, ""):
            if type(layer) in _AFFINE or (type(layer) in _NORMALIZATIONS and layer.running_mean is not None):
                affine.append(_frozen(layer))
                values = _applied(affine[-1], values, name, layer)
                continue
            units = _units(layer, tuple(values.shape[1:]), name)
            stages.append(Stage(nn.Sequential(*affine), units))
            values, affine = values.new_zeros(1, *units.shape), []
        return cls(tuple(shape), tuple(stages), nn.Sequential(*affine))

    @property
    def units(self) -> list[int]:
        """How many there are in each stage."""
        return [torch.Size(stage.units.shape).numel() for stage in self.stages]

    def whole(self, x: Tensor) -> Tensor:
        """``(1 + d, *shape)`` the frame of all ``d`` coordinates, at one input ``(*shape)``."""
        d = torch.Size(self.shape).numel()
        return torch.cat([x.reshape(1, d), torch.eye(d, dtype=torch.float64)]).reshape(-1, *self.shape)

    def fits(self, x: Tensor) -> Tensor:
        """One input in float64 on the CPU.

        Raises
        ------
        DataError
            When its shape is another, or it is no number.
        """
        if tuple(x.shape) != self.shape:
            raise DataError(f"an input of shape {self.shape} is needed, without a batch; got {tuple(x.shape)}")
        if not bool(x.isfinite().all()):
            raise DataError("the input is not finite: geometry needs numbers")
        return x.detach().to("cpu", torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        """``(N, ...)`` the output for ``(N, *shape)`` inputs."""
        for stage in self.stages:
            x = stage.units.candidates(stage.affine(x)).amax(2).reshape(-1, *stage.units.shape)
        out: Tensor = self.tail(x)
        return out


def push(affine: nn.Module, frame: Tensor) -> Tensor:
    """The frame behind an affine map: its constant moves the value alone."""
    out: Tensor = affine(frame)
    return torch.cat([out[:1], out[1:] - affine(torch.zeros_like(frame[:1]))])


def take(candidates: Tensor, choice: Tensor) -> Tensor:
    """``(R, U)`` the candidate that each unit takes: ``choice`` is ``(U,)`` for all rows, or ``(R, U)``."""
    return candidates.gather(2, choice.expand(candidates.shape[:2]).unsqueeze(2)).squeeze(2)


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Layers in the order of the forward pass, with their names."""
    if type(module).forward is not nn.Sequential.forward:
        yield name or "the model", module
        return
    for child, part in module.named_children():
        yield from _layers(part, f"{name}.{child}" if name else child)


def _frozen(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).to("cpu", torch.float64).eval().requires_grad_(False)


def _applied(affine: nn.Module, values: Tensor, name: str, layer: nn.Module) -> Tensor:
    try:
        out: Tensor = affine(values)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"inputs do not fit {name}, {layer}: {one_line(error)[:200]}") from error
    return out


def _units(layer: nn.Module, shape: tuple[int, ...], name: str) -> Units:
    if type(layer) is nn.ReLU:
        return Rectifier(0.0, shape)
    # Above 1 it would be a least and not a largest value.
    if type(layer) is nn.LeakyReLU and layer.negative_slope <= 1:
        return Rectifier(layer.negative_slope, shape)
    if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d) and not layer.ceil_mode and not layer.return_indices:
        return _windows(layer, shape)
    raise ModelError(
        f"{name}, {layer}, is none of the layers whose geometry is known: linear, convolution, flatten, average or max "
        "pooling without ceil_mode, batch norm with running statistics, ReLU, leaky ReLU of slope at most 1"
    )


def _windows(pool: nn.MaxPool1d | nn.MaxPool2d, shape: tuple[int, ...]) -> Windows:
    flat = isinstance(pool, nn.MaxPool1d)
    sides = (1,) if flat else ()
    kernel, stride, padding, dilation = (
        (*fill, *(value if isinstance(value, tuple) else (value,) * len(shape[1:])))
        for fill, value in (
            (sides, pool.kernel_size),
            (sides, pool.stride),
            ((0,) if flat else (), pool.padding),
            (sides, pool.dilation),
        )
    )
    channels, height, width = (shape[0], 1, shape[1]) if flat else shape
    # Numbers from 1, so that the 0 that unfolding pads with is nobody's.
    places = torch.arange(1, channels * height * width + 1, dtype=torch.float64).reshape(1, channels, height, width)
    columns = functional.unfold(places, kernel, dilation, padding, stride)
    index = columns.reshape(channels, -1, columns.shape[2]).transpose(1, 2).flatten(0, 1).long() - 1
    # A value of the window stands in for what lies in the padding.
    index = torch.where(index < 0, index.amax(1, keepdim=True), index)
    sizes = [
        (side + 2 * p - e * (k - 1) - 1) // s + 1
        for side, k, s, p, e in zip((height, width), kernel, stride, padding, dilation, strict=True)
    ]
    return Windows(index, (channels, *sizes[1:]) if flat else (channels, *sizes))
