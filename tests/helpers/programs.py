"""Random small modules that work in place on views."""

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional

VIEWS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda a: a.view(len(a), 2, -1),
    lambda a: a.reshape(len(a), -1),
    lambda a: a.flatten(1),
    lambda a: a[:, 0],
    lambda a: a[:, 1:3],
    lambda a: a[:, ::2],
    lambda a: a[..., -1:],
    lambda a: a[:],
    lambda a: a.t(),
    lambda a: a.transpose(1, -1),
    lambda a: a.transpose(0, 1).reshape(a.shape[1], -1).transpose(0, 1),
    lambda a: a.movedim(1, -1),
    lambda a: a.unsqueeze(1),
    lambda a: a.squeeze(1),
    lambda a: a.chunk(2, 1)[0],
    lambda a: a.split(2, 1)[1],
    lambda a: a.unbind(1)[1],
    lambda a: a.narrow(1, 0, 2),
    lambda a: a.expand_as(a),
    lambda a: a.contiguous(),
    lambda a: a.detach(),
    lambda a: a.unflatten(1, (2, -1)),
    lambda a: a.to(a.dtype),
    lambda a: a.type_as(a),
    lambda a: a.diagonal(0, 1, 2),
    lambda a: functional.dropout(a, 0.5, False),
    lambda a: functional.pad(a, (0, 0)),
    lambda a: a.clone(),
    lambda a: a[:, [0, 1]],
)


def _assign(place: Callable[[Tensor], tuple[object, ...]], value: Callable[[Tensor, float], object]) -> Callable:
    def write(a: Tensor, c: float) -> Tensor:
        a[place(a)] = value(a, c)
        return a

    return write


_ALL = slice(None)
WRITES: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda a, c: a.relu_(),
    lambda a, c: functional.relu(a, inplace=True),
    lambda a, c: functional.leaky_relu(a, 0.1, inplace=True),
    lambda a, c: functional.hardtanh(a, -1, 1, inplace=True),
    lambda a, c: functional.relu6(a, inplace=True),
    lambda a, c: functional.silu(a, inplace=True),
    lambda a, c: functional.hardswish(a, inplace=True),
    lambda a, c: functional.dropout(a, 0.5, False, inplace=True),
    lambda a, c: a.clamp_(max=c),
    lambda a, c: a.tanh_(),
    lambda a, c: a.neg_(),
    lambda a, c: a.mul_(c),
    lambda a, c: a.add_(c),
    lambda a, c: a.pow_(2),
    lambda a, c: a.zero_(),
    lambda a, c: a.fill_(c),
    lambda a, c: a.copy_(a.relu()),
    lambda a, c: a.masked_fill_(torch.arange(a.shape[-1]) % 2 == 0, c),
    lambda a, c: a.index_fill_(1, torch.tensor([0]), c),
    lambda a, c: a.unsqueeze_(1),
    lambda a, c: torch.mul(a, c, out=a),
    _assign(lambda a: (_ALL, 0), lambda a, c: c),
    _assign(lambda a: (_ALL, slice(1, None)), lambda a, c: a[:, :-1].clone() * c),
    _assign(lambda a: (_ALL, 0), lambda a, c: a[:, 0] + c),
    _assign(lambda a: (_ALL, -1), lambda a, c: a[:, -1] * a[:, 0].relu()),
    _assign(lambda a: (_ALL, [0, 1]), lambda a, c: a[:, [0, 1]] + c),
    _assign(lambda a: (..., -1), lambda a, c: c),
    _assign(lambda a: (_ALL,), lambda a, c: a.relu()),
)
PAIRS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda a, b: a.copy_(b),
    lambda a, b: a.add_(b),
    lambda a, b: a.sub_(b, alpha=0.5),
    lambda a, b: a.mul_(b),
    lambda a, b: torch.add(a, b, out=a),
    lambda a, b: a + b,
    lambda a, b: a[:, 0].copy_(b[:, 1]),
)
NEW: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda a: a.relu(),
    lambda a: a * 2,
    lambda a: torch.zeros_like(a),
    lambda a: torch.empty_like(a).copy_(a),
    lambda a: a.new_zeros(a.shape),
)


class Program(nn.Module):
    """Random steps, each on a value of an earlier one; the answer is made of a few of the values."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        r = Random(seed)
        weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.on_input = r.random() < 0.3
        self.steps: list[Callable[[list[Tensor]], Tensor]] = []
        while len(self.steps) < 3 + seed % 6:
            self.steps.append(self._step(r, len(self.steps)))
            try:
                values = [self.values(torch.ones(rows, 3, dtype=torch.float64)) for rows in (1, 4)]
            except (RuntimeError, IndexError, ValueError):
                self.steps.pop()
                continue
            if values[1][-1].numel() > 200:
                self.steps.pop()
        values = self.values(torch.ones(4, 3, dtype=torch.float64))
        whole = [place for place, value in enumerate(values) if len(value) == 4]
        self.ends = sorted({whole[0], *r.sample(whole, min(2, len(whole)))})

    def _step(self, r: Random, steps: int) -> Callable[[list[Tensor]], Tensor]:
        count = steps + 2 if self.on_input else steps + 1
        i, j, c = r.choice([count - 1, r.randrange(count)]), r.randrange(count), r.choice([0.5, -0.7, 1.5])
        kind = r.random()
        if kind < 0.4:
            view = r.choice(VIEWS)
            return lambda values: view(values[i])
        if kind < 0.75:
            write = r.choice(WRITES)
            return lambda values: write(values[i], c)
        if kind < 0.9:
            pair = r.choice(PAIRS)
            return lambda values: pair(values[i], values[j])
        new = r.choice(NEW)
        return lambda values: new(values[i])

    def values(self, x: Tensor) -> list[Tensor]:
        x = x.clone()
        found = [x, x @ self.weight.T] if self.on_input else [x @ self.weight.T]
        for step in self.steps:
            found.append(step(found))
        return found

    def forward(self, x: Tensor) -> Tensor:
        values = self.values(x)
        return torch.cat([values[place].reshape(len(x), -1) for place in self.ends], 1)
