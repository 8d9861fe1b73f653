"""Small ReLU networks run in other ways than torch runs them, and networks whose proofs are as near as can be."""

from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor, nn

from holdfast.certify.bounds.capture import Program, tensors, trace
from holdfast.certify.bounds.crown import Bounds, crown, lower_bounds
from holdfast.certify.bounds.graph import Graph
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import Arithmetic
from holdfast.certify.bounds.rows import Rows

MARGIN = torch.tensor([[1.0, -1.0]])


def mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def drawn(model: nn.Sequential, generator: torch.Generator, spread: float) -> None:
    """Weights of sizes from ``10^-spread`` to ``10^spread``, many of which cancel."""
    with torch.no_grad():
        for parameter in model.parameters():
            size = 10 ** (
                spread * (2 * torch.rand(len(parameter), *[1] * (parameter.dim() - 1), generator=generator) - 1)
            )
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
            if parameter.dim() == 2 and parameter.shape[1] > 1 and bool(torch.rand((), generator=generator) < 0.5):
                parameter[:, 0] = -parameter[:, 1] * (1 + 1e-6 * torch.randn((), generator=generator))


def in_some_order(model: nn.Sequential, x: Tensor, generator: torch.Generator, fused: bool) -> Tensor:
    """Each sum of a layer one term after the other, in a random order, in float32; products fused with sums or not."""
    for layer in model:
        if isinstance(layer, nn.ReLU):
            x = x.relu()
            continue
        terms = [(x[:, i : i + 1], layer.weight[:, i]) for i in range(x.shape[1])]
        terms.append((torch.ones(len(x), 1), layer.bias))
        total = torch.zeros(len(x), len(layer.bias))
        for place in torch.randperm(len(terms), generator=generator).tolist():
            value, weight = terms[place]
            # The product of two float32 numbers is exact in float64.
            total = (total.double() + value.double() * weight.double()).float() if fused else total + value * weight
        x = total
    return x


def exactly(model: nn.Sequential, x: Tensor) -> list[Fraction]:
    """The network in rational numbers, at one input."""
    values = [Fraction(v) for v in x.tolist()]
    for layer in model:
        if isinstance(layer, nn.ReLU):
            values = [max(v, Fraction(0)) for v in values]
            continue
        values = [
            sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(bias))
            for row, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
    return values


def traced(model: nn.Sequential, inputs: int) -> Program:
    return trace(model, torch.zeros(1, inputs))


def graph_of(program: Program, model: nn.Sequential, arithmetic: Arithmetic) -> Graph:
    values = {name: value.detach() for name, value in tensors(model).items()}
    return program.graph(values, torch.float64).within(arithmetic)


def bound_of(graph: Graph, region: Region) -> float:
    """The lower bound of the margin of class 0, by CROWN."""
    bounds: Bounds = crown(graph, region)
    rows = Rows.whole(MARGIN.to(region.lower))
    return float(lower_bounds(graph, graph.output, rows, bounds.planes, bounds.errors, region))


def barely_proved(
    program: Program, model: nn.Sequential, region: Region, arithmetic: Arithmetic, dtype: torch.dtype
) -> bool:
    """Choose the last bias so that class 0 is just so proved; False where no bias does it."""
    bias = model[-1].bias
    with torch.no_grad():
        low, high = None, float(bias[1].abs()) + 1e-30
        for _ in range(90):
            bias[0] = high if low is None else (low + high) / 2
            proved = bound_of(graph_of(program, model, arithmetic).to(dtype), region.to(dtype)) > 0
            if proved:
                high = float(bias[0])
                low = -abs(high) - 1e-30 if low is None else low
            elif low is None:
                high *= 8
                if high > 1e37:
                    return False
            else:
                low = float(bias[0])
            if low is not None and abs(high - low) <= 2e-7 * abs(high):
                break
        bias[0] = high
    return bound_of(graph_of(program, model, arithmetic).to(dtype), region.to(dtype)) > 0
