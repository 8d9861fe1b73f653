"""Tiny models that always come out the same, and models that misbehave."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def seeded(make: Callable[[], M], seed: int = 0) -> M:
    """A module whose initial weights depend on the seed alone; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inputs in [0, 1], the same in every dtype up to rounding."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    """``weight x + bias`` of flattened inputs."""
    layer = nn.Linear(*reversed(weight.shape), dtype=weight.dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return nn.Sequential(nn.Flatten(), layer).eval()


def random_linear(features: int, classes: int, seed: int = 0) -> nn.Module:
    """A linear classifier in float64."""
    weight = 2 * uniform(classes, features, seed=seed, dtype=torch.float64) - 1
    return linear(weight, 0.1 * (uniform(classes, seed=seed + 1, dtype=torch.float64) - 0.5) - weight.sum(1) / 2)


def mlp(features: int = 6, classes: int = 4, hidden: int = 16, seed: int = 0) -> nn.Module:
    """One hidden layer."""
    return seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes)), seed
    )


class Wavy(nn.Module):
    """Sines of linear maps in float64: a landscape with many hills, on which no step size stays right for long."""

    def __init__(self, features: int = 8, classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.inner = seeded(lambda: nn.Linear(features, 32, dtype=torch.float64), seed)
        self.outer = seeded(lambda: nn.Linear(32, classes, dtype=torch.float64), seed + 1)
        with torch.no_grad():
            self.inner.weight *= 8

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x.flatten(1)).sin())


def convnet(channels: int = 3, classes: int = 5, seed: int = 0) -> nn.Module:
    """Convolutions with max pooling for images of 6 x 6, which uses all its classes."""
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, classes),
        ),
        seed,
    )
    with torch.no_grad():
        net[-1].bias -= net(uniform(100, channels, 6, 6, seed=9)).mean(0)
    return net


def constant(classes: int = 3) -> nn.Module:
    """Always class 1, with a gradient of 0."""
    return Answering(lambda model, x: model.head(x.flatten(1)) * 0 + 2 * torch.eye(classes)[1], classes=classes)


class Answering(nn.Module):
    """A linear model of 6 features whose answer is what a function makes of the model and its input."""

    def __init__(self, answer: Callable[..., object], classes: int = 3) -> None:
        super().__init__()
        self.answer = answer
        self.head = seeded(lambda: nn.Linear(6, classes))
        self.calls = 0
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> object:
        self.calls += 1
        return self.answer(self, x)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Moody(nn.Module):
    """In training mode, with dropout, batch normalisation, frozen parameters and a sublayer in evaluation mode.

    Its forward pass counts in a buffer, draws from the global generator, replaces another buffer and keeps a tensor of
    its first call; ``fail_at`` raises ``error`` at that call.
    """

    calls: Tensor
    seen: Tensor

    def __init__(self, fail_at: int = -1, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.body = seeded(
            lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3)
            )
        )
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.full((6,), torch.nan), persistent=False)
        self.fail_at, self.error = fail_at, error
        self.kept: Tensor | None = None
        self.train()
        self.body[3].eval()
        self.body[1].bias.requires_grad_(False)
        self.body[5].weight.grad = torch.ones_like(self.body[5].weight)
        self.body[3].register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        if self.calls == self.fail_at:
            raise self.error("stop here")
        self.calls += 1
        self.seen = x.detach().flatten(1)[0] * 1
        if self.kept is None:
            self.kept = torch.linspace(1, 2, 6)
        return self.body(x.flatten(1) * self.kept + 0 * torch.rand(1))


def _raises(model: Answering, x: Tensor) -> Tensor:
    raise ValueError("tensors of\n  no use")


def _cached(model: Answering, x: Tensor) -> Tensor:
    if model.kept is None or model.kept.shape[0] != len(x):
        model.kept = torch.zeros(len(x), 3, dtype=x.dtype)
    model.kept = model.kept.detach().copy_(model.logits(x))
    return model.kept


# name -> (model, what the error says); each is refused at the first clean forward pass.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "probabilities": (lambda: Answering(lambda m, x: m.logits(x).softmax(1)), "probabilities, not logits"),
    "one-hot": (lambda: Answering(lambda m, x: torch.eye(3)[m.logits(x).argmax(1)]), "probabilities, not logits"),
    "tuple": (lambda: Answering(lambda m, x: (m.logits(x), x)), "returned a tuple, not a tensor"),
    "dict": (lambda: Answering(lambda m, x: {"logits": m.logits(x)}), "returned a dict, not a tensor"),
    "one probability": (
        lambda: Answering(lambda m, x: m.logits(x)[:, :1].sigmoid()),
        r"remove its final sigmoid \(what is left is read as one logit, class 1",
    ),
    "flat probability": (lambda: Answering(lambda m, x: m.logits(x)[:, 0].sigmoid()), "remove its final sigmoid"),
    "class numbers": (lambda: Answering(lambda m, x: m.logits(x).argmax(1)), "torch.int64; return the scores"),
    "too few rows": (lambda: Answering(lambda m, x: m.logits(x)[1:]), r"shape \(3, 3\) for 4 inputs"),
    "feature maps": (lambda: Answering(lambda m, x: m.logits(x)[:, :, None]), r"shape \(4, 3, 1\) for 4 inputs"),
    "raises": (
        lambda: Answering(_raises),
        r"failed on an input batch of shape \(4, 6\): ValueError: tensors of no use",
    ),
}


def nan_logits() -> nn.Module:
    """NaN for inputs whose first coordinate is above 0.9."""
    return Answering(lambda m, x: m.logits(x).where(x[:, :1] <= 0.9, torch.nan))


def moving_classes() -> nn.Module:
    """Three logits at the first call, two later."""
    return Answering(lambda m, x: m.logits(x)[:, : 3 if m.calls == 1 else 2])


def cached_tensor() -> nn.Module:
    """Hands out one tensor that it keeps and overwrites at its next call."""
    return Answering(_cached)


def no_gradient() -> nn.Module:
    """Logits cut from the graph."""
    return Answering(lambda m, x: m.logits(x.detach()))


def in_place() -> nn.Module:
    """Normalises its input in place."""
    return Answering(lambda m, x: m.logits(x.sub_(0.5)))


class Standardised(nn.Module):
    """A network behind a normalisation, done in place on the input or, the very same numbers, on a copy of it."""

    def __init__(self, net: nn.Module, *, in_place: bool) -> None:
        super().__init__()
        self.net, self.in_place = net, in_place

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x if self.in_place else x.clone()).sub_(0.5).div_(0.25))


def noisy() -> nn.Module:
    """Adds noise from the global generator."""
    return Answering(lambda m, x: m.logits(x) + 0.01 * torch.randn(len(x), 3))


class Counting(nn.Module):
    """Counts the rows a model sees forwards and backwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls = self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.forwards += len(x)
        if x.requires_grad:
            x = x * 1
            x.register_hook(self._count)
        return self.model(x)

    def _count(self, grad: Tensor) -> None:
        self.backwards += len(grad)


class Wrapped(nn.Module):
    """A model whose logits are changed on the way out."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x))
