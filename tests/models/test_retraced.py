from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.attacks import snapshot
from helpers.zoo import convnet, mlp, seeded, uniform
from holdfast.models.bpda import BPDA
from holdfast.models.retraced import retraced


class Around(nn.Module):
    """A network with something before, and something behind it."""

    def __init__(self, before: Callable[[Tensor], Tensor] | None = None, behind: Any = None) -> None:
        super().__init__()
        self.net = convnet()
        self.before, self.behind = before or (lambda x: x), behind or (lambda z: z)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.net(self.before(x)))


class Residual(nn.Module):
    """Batch norm, sums and activations in place, two kinds of pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.relu, self.last = nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Linear(72, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm(self.first(x)))
        k = self.second(h)
        k += h
        k[:, ::2].mul_(1.5)
        return (
            self.last(functional.max_pool2d(self.relu(k), 2).flatten(1))
            + functional.avg_pool2d(x, 6).mean((1, 2, 3))[:, None]
        )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.flatten(1, 2)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(6, 5, bidirectional=True, batch_first=True), nn.GRU(10, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x.flatten(1, 2))[0])[0][:, -1]


class Written(nn.Module):
    """What autograd allows to be written, through views; a ReLU and a maximum by hand; an own gradient inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = seeded(lambda: nn.Linear(108, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, :, ::2] = 2 * x[:, :, ::2]
        y[:, :, 1::2] += x[:, :, 1::2].exp()
        y.flatten(1)[:, ::7].sin_()
        with torch.enable_grad():
            z = y if y.requires_grad else y.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.net(z.flatten(1)).logsumexp(1).sum(), z, create_graph=True)
        h = self.net((y - g).flatten(1))
        return torch.where(h > 0, h, 0.1 * h) * (h.mean(1, keepdim=True) > -9)


HONEST = [
    lambda: seeded(convnet),
    lambda: seeded(Residual),
    lambda: seeded(Attention),
    lambda: seeded(Recurrent),
    Written,
]


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_(True)
    logits = model(x)
    weights = uniform(*logits.shape, seed=5).to(logits) - 0.5
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]


@pytest.mark.parametrize("make", HONEST)
def test_gradients_of_honest_networks_are_their_own(make: Callable[[], nn.Module]) -> None:
    model, x = make().eval(), uniform(12, 3, 6, 6)
    before = snapshot(model)
    found = retraced(model, x)
    assert found.module is not None, found.reason
    assert found.replaced == ()
    assert snapshot(model) == before
    for rows in (x, uniform(5, 3, 6, 6, seed=3)):
        with torch.no_grad():
            exact = model(rows.clone())
        logits, grad = gradient(BPDA(model, found.module), rows)
        assert torch.equal(logits, exact)
        torch.testing.assert_close(grad, gradient(model, rows)[1], rtol=1e-5, atol=1e-6)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lie: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.lie = lie
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.lie(grads[0]), None


def lying(lie: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: Backward.apply(x, lie)


class Flipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Backward.apply(x, torch.neg)


def hooked(x: Tensor) -> Tensor:
    y = 1 * x
    if y.requires_grad:
        y.register_hook(torch.neg)
    return y


LIES = {
    "flipped": lying(torch.neg),
    "noise": lying(torch.randn_like),
    "ones": lying(torch.ones_like),
    "nothing": lying(torch.zeros_like),
    "detached": lambda x: x.detach(),
    "data": lambda x: x.data.clone(),
    "no_grad": torch.no_grad()(lambda x: x * 1),
    "hook": hooked,
    "mode": lambda x: x if not torch.is_grad_enabled() else 0 * x + 0.5,
    "requires": lambda x: 1 - x if x.requires_grad else x,
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() * np.float32(1)),
    "rows": lambda x: torch.stack([torch.tensor(row.tolist()) for row in x]),
    "channels": lambda x: torch.from_numpy(np.moveaxis(x.detach().numpy(), 1, 3).copy()).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_backward_pass_says_does_not_count(lie: str) -> None:
    x = uniform(12, 3, 6, 6)
    found = retraced(Around(LIES[lie]), x)
    assert found.module is not None, found.reason
    for rows in (x, uniform(5, 3, 6, 6, seed=3)):
        logits, grad = gradient(found.module, rows)
        exact, true = gradient(convnet(), rows)
        assert torch.equal(logits, exact)
        torch.testing.assert_close(grad, true, rtol=1e-4, atol=1e-6)
    own = "the backward pass of the model itself (Around)"
    words = {"numpy": "NumPy", "channels": "NumPy", "rows": "NumPy (12 times)"}
    assert found.replaced == ((f"{words[lie]} in the model itself",) if lie in words else (own,))


def test_the_module_that_lies_is_named() -> None:
    net = convnet()
    found = retraced(nn.Sequential(net[:3], Flipped(), net[3:]), uniform(12, 3, 6, 6))
    assert found.replaced == ("the backward pass of module 1 (Flipped)",)


STEPS = {
    "round": lambda x: (x * 16).round() / 16,
    "in place": lambda x: x.mul_(16).floor_().div_(16),
    "cast": lambda x: (x * 16).int().float() / 16,
    "byte": lambda x: (x * 255).byte() / 255,
    "division": lambda x: (x // 0.0625) * 0.0625,
    "remainder": lambda x: x - x % 0.0625,
    "clamp": lambda x: x.clamp(0.3, 0.4) if x.mean() > 0.9 else x,
    "thermometer": lambda x: torch.bucketize(x, torch.arange(1, 16) / 16) / 16,
    "table": lambda x: (torch.arange(17) / 16)[(x * 16).round().long()],
    "one-hot": lambda x: functional.one_hot((x * 16).round().long(), 17).float() @ (torch.arange(17) / 16),
    "bits": lambda x: ((x * 255).long() & 0xF0).float() / 255,
    "numpy": lambda x: torch.from_numpy(np.round(x.detach().numpy() * 16) / 16),
}


@pytest.mark.parametrize("step", STEPS)
def test_steps_are_gone_straight_through(step: str) -> None:
    model, x = Around(STEPS[step]), uniform(12, 3, 6, 6)
    found = retraced(model, x)
    assert found.module is not None, found.reason
    with torch.no_grad():
        moved = STEPS[step](x.clone())
    # At the ends of a table there is one neighbour, and the slope of a line through NumPy's numbers is nearly 1.
    grad, through = gradient(found.module, x)[1], gradient(convnet(), moved)[1]
    assert functional.cosine_similarity(grad.flatten(), through.flatten(), 0) > 0.95
    if step in ("round", "in place", "cast", "byte", "division", "remainder"):
        torch.testing.assert_close(grad, through, rtol=1e-4, atol=1e-6)


BEHIND = {
    "round": lambda z: z.round(),
    "clamp": lambda z: z.clamp(-0.01, 0.01),
    "one-hot": lambda z: functional.one_hot(z.argmax(1), 5).float(),
    "scatter": lambda z: torch.zeros_like(z).scatter_(1, z.argmax(1, keepdim=True), 1.0),
    "equality": lambda z: (z.argmax(1, keepdim=True) == torch.arange(5)).float(),
    "table": lambda z: torch.eye(5)[z.max(1).indices],
    "topk": lambda z: torch.zeros_like(z).scatter(1, z.topk(1).indices, 1.0),
    "saturated": lambda z: torch.tanh(1e4 * z),
    "sharp": lambda z: (1e4 * z).softmax(1),
}


@pytest.mark.parametrize("behind", BEHIND)
def test_dead_outputs_follow_the_logits_behind_them(behind: str) -> None:
    model, x = Around(behind=BEHIND[behind]), uniform(24, 3, 6, 6)
    found = retraced(model, x)
    assert found.module is not None, found.reason
    logits, grad = gradient(found.module, x)
    assert torch.equal(logits, model(x).detach())
    top = convnet()(x).detach().argmax(1)
    rows = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(found.module(rows).gather(1, top[:, None]).sum(), rows)
    (true,) = torch.autograd.grad((z := convnet()(rows)).gather(1, top[:, None]).sum() - z.mean(1).sum(), rows)
    assert functional.cosine_similarity(grad.flatten(1), true.flatten(1)).mean() > 0.5
    assert found.relaxed is not None
    with torch.no_grad():
        relaxed = found.relaxed(x)
    assert not torch.equal(relaxed, logits)
    assert (relaxed.argmax(1) == top).float().mean() > 0.9


def test_half_precision_is_followed_in_float32() -> None:
    model, x = convnet().half(), uniform(12, 3, 6, 6).half()
    found = retraced(model, x)
    assert found.module is not None, found.reason
    torch.testing.assert_close(
        gradient(found.module, x)[1].float(), gradient(convnet(), x.float())[1], rtol=1e-2, atol=1e-3
    )


def test_noise_is_drawn_anew_and_generators_are_given_back() -> None:
    model, x = Around(lambda x: functional.dropout(x, 0.5, True).detach()), uniform(12, 3, 6, 6)
    before, numpys = torch.get_rng_state(), np.random.mtrand._rand.get_state()[1].copy()
    found = retraced(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.mtrand._rand.get_state()[1], numpys)
    assert found.module is not None, found.reason
    with torch.random.fork_rng(devices=[]):
        one, other = gradient(found.module, x)[1], gradient(found.module, x)[1]
        assert not torch.equal(one, other)
        torch.manual_seed(3)
        exact = model(x).detach()
        torch.manual_seed(3)
        assert torch.equal(gradient(found.module, x)[0], exact)


def test_rows_do_not_see_each_other() -> None:
    x = uniform(12, 3, 6, 6)
    found = retraced(Around(lambda x: (x > 0.5).float(), BEHIND["one-hot"]), x)
    assert found.module is not None, found.reason
    others = torch.cat([x[:1], 1 - x[1:]])
    torch.testing.assert_close(gradient(found.module, others)[1][0], gradient(found.module, x)[1][0])


def test_what_cannot_be_followed_has_a_reason() -> None:
    x = uniform(12, 3, 6, 6)

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("not today")

    def elsewhere(z: Tensor) -> Tensor:
        return torch.tensor(np.eye(4, dtype=np.float32)[[hash(row.tobytes()) % 4 for row in z.detach().numpy()]])

    for behind, said in ((broken, "not today"), (elsewhere, "no gradient"), (lambda z: z * 0, "no gradient")):
        found = retraced(Around(behind=behind), x)
        assert found.module is None
        assert said in found.reason
    assert retraced(mlp(), torch.zeros(0, 6)).reason
    assert retraced(mlp(), torch.zeros(3, 6, dtype=torch.long)).reason
