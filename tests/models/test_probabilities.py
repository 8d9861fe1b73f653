"""Which outputs are taken for probabilities: linear maps never are, whatever they give on the data."""

import pytest
import torch
from torch import Tensor, nn

from holdfast.errors import ModelError
from holdfast.models.query import Query


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def refused(model: nn.Module, x: Tensor, **settings: int) -> bool:
    with Query(model, **settings) as query:
        try:
            query.bare_logits(x)
        except ModelError as error:
            return "returns probabilities, not logits" in str(error)
    return False


def complement(scale: float) -> nn.Linear:
    """Logits ``(s x, 1 - s x)`` of the first coordinate: a row of non-negative numbers with sum 1 at many inputs."""
    net = nn.Linear(2, 2)
    net.weight.data = torch.tensor([[scale, 0.0], [-scale, 0.0]])
    net.bias.data = torch.tensor([0.0, 1.0])
    return net


def seeded(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def mlp(outputs: int) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, outputs)))


X = torch.rand(10, 2, generator=torch.Generator().manual_seed(0))


def rectified() -> nn.Module:
    """Behind units that are dead at 0, and on one side of it, the same logits."""
    return nn.Sequential(nn.ReLU(), complement(1.0))


def moved() -> nn.Module:
    return nn.Sequential(Function(lambda x: x - 1e-3), complement(0.5))


LOGITS = {
    "x and 1 - x": lambda: complement(1.0),
    "tiny weights": lambda: complement(1e-6),
    "double": lambda: complement(1.0).double(),
    "half": lambda: complement(1.0).bfloat16(),
    "rectified": rectified,
    "moved": moved,
    "a constant": lambda: Function(lambda x: torch.tensor([0.0, 1.0]).expand(len(x), 2) + 0 * x),
    "one of two": lambda: Function(lambda x: x[:, :1]),
    "one constant": lambda: Function(lambda x: 0 * x[:, :1]),
    "clamped": lambda: nn.Sequential(mlp(3), Function(lambda z: z.clamp(0, 1))),
    "clamped half": lambda: nn.Sequential(mlp(3), nn.Hardtanh(0, 1)).half(),
    "clamped inputs": lambda: Function(lambda x: x.clamp(0, 1)),
    "clamped squares": lambda: nn.Sequential(mlp(3), Function(lambda z: z.square().clamp(max=1))),
    "hard sigmoid": lambda: nn.Sequential(mlp(3), nn.Hardsigmoid()),
    "hard tanh": lambda: nn.Sequential(mlp(3), nn.Hardtanh()),
    "tanh": lambda: nn.Sequential(mlp(3), nn.Tanh()),
    "steps of several": lambda: nn.Sequential(mlp(3), Function(lambda z: (z > 0).to(z) + 0 * z)),
    "near and far": lambda: Function(lambda x: torch.stack([(-(x - c).square().sum(1)).exp() for c in (0, 1)], 1)),
    "unchanged": lambda: Function(lambda x: x),
    "overflow": lambda: Function(lambda x: torch.stack([x[:, 0].exp() - 1, 2 - x[:, 0].exp()], 1) / 2),
}
PROBABILITIES = {
    "softmax": lambda: nn.Sequential(seeded(lambda: nn.Linear(2, 3)), nn.Softmax(1)),
    "saturated": lambda: nn.Sequential(seeded(lambda: nn.Linear(2, 3)), Function(lambda z: 1e6 * z), nn.Softmax(1)),
    "many classes": lambda: nn.Sequential(seeded(lambda: nn.Linear(2, 1000)), nn.Softmax(1)),
    "half": lambda: nn.Sequential(seeded(lambda: nn.Linear(2, 100)), nn.Softmax(1)).bfloat16(),
    "one-hot": lambda: nn.Sequential(
        seeded(lambda: nn.Linear(2, 3)), Function(lambda z: torch.eye(3, dtype=z.dtype)[z.argmax(1)] + 0 * z)
    ),
    "votes": lambda: nn.Sequential(
        seeded(lambda: nn.Linear(2, 5)), Function(lambda z: torch.stack([z > 0, z <= 0], 1).to(z).mean(2))
    ),
    "behind a norm": lambda: nn.Sequential(
        seeded(lambda: nn.Linear(2, 8)), nn.LayerNorm(8), seeded(lambda: nn.Linear(8, 3)), nn.Softmax(1)
    ),
    "sigmoid": lambda: nn.Sequential(seeded(lambda: nn.Linear(2, 1)), nn.Sigmoid()),
    "flat sigmoid": lambda: nn.Sequential(seeded(lambda: nn.Linear(2, 1)), nn.Sigmoid(), nn.Flatten(0)),
    **{f"{count} sigmoids": lambda count=count: nn.Sequential(mlp(count), nn.Sigmoid()) for count in (2, 3, 10)},
    "sigmoids in half": lambda: nn.Sequential(mlp(4), nn.Sigmoid()).half(),
    "sigmoids in bfloat16": lambda: nn.Sequential(mlp(4), nn.Sigmoid()).bfloat16(),
    "sigmoids in double": lambda: nn.Sequential(mlp(4), nn.Sigmoid()).double(),
    "sigmoids of small numbers": lambda: nn.Sequential(mlp(4), Function(lambda z: 1e-3 * z), nn.Sigmoid()),
    "sigmoids behind a norm": lambda: nn.Sequential(
        mlp(8), nn.LayerNorm(8), seeded(lambda: nn.Linear(8, 6)), Function(lambda z: 6 * z), nn.Sigmoid()
    ),
    "shifted tanh": lambda: nn.Sequential(mlp(4), Function(lambda z: (z.tanh() + 1) / 2)),
    "two sigmoids": lambda: nn.Sequential(
        seeded(lambda: nn.Linear(2, 1)), nn.Sigmoid(), Function(lambda p: torch.cat([1 - p, p], 1))
    ),
}


@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_not_refused(name, rows):
    assert not refused(LOGITS[name](), X[:rows])


@pytest.mark.parametrize("rows", [1, 10])
@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_are_refused(name, rows, size):
    assert refused(PROBABILITIES[name](), X[:rows], batch_size=size)


def test_a_model_that_takes_no_other_inputs_is_judged_by_what_it_takes():
    def strict(x: Tensor) -> Tensor:
        if bool((x.abs() > 1).any()):
            raise ValueError("outside [-1, 1]")
        return x

    assert refused(nn.Sequential(Function(strict), PROBABILITIES["softmax"]()), X)
    assert not refused(nn.Sequential(Function(strict), complement(1.0)), X)


def test_asking_elsewhere_changes_neither_counts_nor_logits():
    net = complement(1.0)
    with Query(net, batch_size=4) as query:
        logits = query.bare_logits(X)
        assert query.forwards == len(X)
    assert torch.allclose(logits, net(X))
