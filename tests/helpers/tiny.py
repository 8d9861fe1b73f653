"""Random tiny networks of every operation, and what the bounds of any network must satisfy."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast import L0, L1, L2, Linf
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import Bounds, crown, interval_planes, lower_bounds
from holdfast.certify.bounds.graph import Graph, Interval
from holdfast.certify.bounds.interval import interval_bounds, least_of
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rows import Rows
from holdfast.certify.search.domains import Domains, Problem, bound_domains
from holdfast.certify.search.hidden import tightened

CLASSES = 3


class Fn(nn.Module):
    """A function of the input and of some layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


@dataclass(frozen=True)
class Tiny:
    """A network with the shape of one of its inputs, and what it was made from."""

    model: nn.Module
    shape: tuple[int, ...]
    label: str


ACTIVATIONS: dict[str, Callable[[Random], nn.Module]] = {
    "relu": lambda r: nn.ReLU(),
    "leaky": lambda r: nn.LeakyReLU(r.choice([0.01, 0.3, -0.2, 1.5])),
    "sigmoid": lambda r: nn.Sigmoid(),
    "tanh": lambda r: nn.Tanh(),
    "gelu": lambda r: nn.GELU(),
    "gelu tanh": lambda r: nn.GELU(approximate="tanh"),
    "silu": lambda r: nn.SiLU(),
    "exp": lambda r: Fn(lambda x: (x / 2).exp()),
    "relu6": lambda r: nn.ReLU6(),
    "hardtanh": lambda r: nn.Hardtanh(-0.5, 0.7),
    "clamp": lambda r: Fn(lambda x: x.clamp(-0.3, 0.4)),
    "clamp below": lambda r: Fn(lambda x: x.clamp(min=-0.2)),
    "clamp above": lambda r: Fn(lambda x: x.clamp(max=0.3)),
    "abs": lambda r: Fn(torch.abs),
    "square": lambda r: Fn(lambda x: x**2),
    "sqrt": lambda r: Fn(lambda x: (x.abs() + 0.1).sqrt()),
    "log": lambda r: Fn(lambda x: (x.relu() + 0.2).log()),
    "reciprocal": lambda r: Fn(lambda x: 1 / (x.square() + 0.3)),
    "elu": lambda r: r.choice([nn.ELU(), nn.ELU(-0.4), nn.SELU(), nn.CELU(0.6), nn.CELU(3.0)]),
    "softplus": lambda r: r.choice([nn.Softplus(), nn.Softplus(3.3), nn.Softplus(0.7, 1.0), nn.LogSigmoid()]),
    "gated": lambda r: r.choice([nn.Mish(), nn.Hardswish(), Fn(lambda x: x * x.sigmoid()), nn.Softsign()]),
    "pieces": lambda r: r.choice(
        [
            *(nn.PReLU(), nn.PReLU(init=-0.7), nn.Softshrink(0.2), nn.Hardshrink(0.3)),
            *(nn.Threshold(0.3, 0.3), nn.Threshold(-0.3, 0.4)),
        ]
    ),
    "chosen": lambda r: Fn(CHOICES[r.randrange(len(CHOICES))]),
    "steps": lambda r: Fn(STEPS[r.randrange(len(STEPS))]),
    "waves": lambda r: Fn(r.choice([torch.sin, torch.cos, torch.erf, torch.atan, lambda x: (9 * x).sin()])),
    "grown": lambda r: Fn(r.choice([lambda x: x.abs().log1p(), lambda x: (x / 2).expm1(), lambda x: x**3])),
    "powers": lambda r: powers(r.choice([1.5, 0.3, -0.75, -2.0, -1.3])),
}

CHOICES: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.where(x > 0.1, x, 0.3 * x + 0.07),
    lambda x: torch.where(x <= 0, 0.2 * x, 1.5 * x),
    lambda x: torch.where(x > 0.25, x.sin(), x.square()),
    lambda x: torch.where(x >= x.roll(1, -1) + 0.01, x, 1 - x),
    lambda x: torch.where(x < 0, -1.0, x),
    lambda x: torch.where(2 * x - 1 > 0.5, torch.ones_like(x), -torch.ones_like(x)) + x,
    lambda x: (x > 0.2) * x + (x >= 0) * torch.full_like(x, 0.5),
    lambda x: torch.where(torch.arange(x.shape[-1]) % 2 == 0, x, x.abs() - 0.3),
    lambda x: x.masked_fill(torch.arange(x.shape[-1]) % 2 == 0, 0.4).clamp(torch.tensor(-0.3), torch.tensor(0.6)),
    lambda x: put(x.clone(), x < 0.1, 0.3),
]


def put(x: Tensor, mask: Tensor, value: float) -> Tensor:
    x[mask] = value
    return x


STEPS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.half().to(x.dtype),
    lambda x: (60000 * x.tanh()).half().type_as(x) / 60000,
    lambda x: (1e-7 * x).to(torch.half).to(x) * 1e7,
    lambda x: x.to(torch.bfloat16).to(x.dtype) + x,
    lambda x: (x.double() / 3).to(x.dtype),
    lambda x: (4 * x).round() / 4 + x,
    lambda x: x.floor() + (3 * x).ceil() - x.trunc(),
    lambda x: x.sign() + x,
    lambda x: (x > 0.2).to(x.dtype) * x + (~(x < 0.4)).to(x),
    lambda x: torch.where((x > -0.3) & (x < 0.3), x, 1.0) + torch.where((x > 0.3) | (x < -0.5), x, 1.0),
    lambda x: torch.where(x.round() == 1, x, -x) + torch.where(x.round() != 0, x, 0.5),
]


def powers(exponent: float) -> nn.Module:
    return Fn(lambda x: (x.abs() + 0.3) ** exponent)


def activation(r: Random) -> nn.Module:
    return ACTIVATIONS[r.choice(["relu", "relu", "leaky", "sigmoid", "tanh", "gelu", "clamp"])](r)


def norm(layer: nn.Module) -> nn.Module:
    """A batch normalisation with statistics and weights that matter."""
    nn.init.normal_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.3, 2)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def mlp(r: Random, name: str) -> Tiny:
    features, hidden = r.randint(1, 3), r.randint(2, 6)
    layers = [nn.Linear(features, hidden), ACTIVATIONS[name](r)]
    for _ in range(r.randint(0, 2)):
        layers += [nn.Linear(hidden, hidden, bias=r.random() < 0.7), ACTIVATIONS[name](r)]
    return Tiny(nn.Sequential(*layers, nn.Linear(hidden, CLASSES)), (features,), f"mlp {name}")


def ended(layers: list[nn.Module], shape: tuple[int, ...], label: str, r: Random) -> Tiny:
    """The layers, an activation more often than not, and a linear layer on the flattened value."""
    if r.random() < 0.7:
        layers.append(activation(r))
    body = nn.Sequential(*layers, nn.Flatten())
    with torch.no_grad():
        width = body.eval()(torch.zeros(2, *shape)).shape[1]
    return Tiny(nn.Sequential(body, nn.Linear(width, CLASSES)), shape, label)


def image(r: Random, channels: int | None = None) -> tuple[int, int, int]:
    return channels or r.randint(1, 3), r.randint(4, 6), r.randint(4, 6)


def conv2d(r: Random, channels: int, out: int) -> nn.Conv2d:
    groups = math.gcd(channels, out) if r.random() < 0.3 else 1

    def pair(low: int, high: int) -> tuple[int, int]:
        return r.randint(low, high), r.randint(low, high)

    dilated = r.random() < 0.3
    return nn.Conv2d(
        channels, out, pair(1, 2 if dilated else 3), pair(1, 2), pair(0, 2), pair(1, 2) if dilated else 1, groups
    )


def convolution(r: Random) -> Tiny:
    shape = image(r)
    layers: list[nn.Module] = [conv2d(r, shape[0], 4), activation(r)]
    if r.random() < 0.6:
        layers += [
            nn.Conv2d(4, 2, r.choice([1, 2, (1, 2)]), r.choice([1, 2]), r.choice([0, 1]), groups=r.choice([1, 2]))
        ]
    return ended(layers, shape, "convolution", r)


def same(r: Random) -> Tiny:
    return ended([nn.Conv2d(2, 2, r.choice([1, 3]), padding="same"), nn.ReLU()], image(r, 2), "same padding", r)


def convolution_1d(r: Random) -> Tiny:
    first = nn.Conv1d(2, 4, r.randint(1, 3), r.randint(1, 2), r.randint(0, 2), r.randint(1, 2), r.choice([1, 2]))
    return ended([first, activation(r), nn.Conv1d(4, 2, 1)], (2, r.randint(5, 7)), "convolution 1d", r)


def convolution_3d(r: Random) -> Tiny:
    first = nn.Conv3d(2, 4, r.randint(1, 2), r.randint(1, 2), r.randint(0, 1), 1, r.choice([1, 2]))
    return ended([first, activation(r)], (2, 3, 3, 4), "convolution 3d", r)


def transposed(r: Random) -> Tiny:
    if r.random() < 0.4:
        layer = nn.ConvTranspose1d(2, 4, r.randint(1, 3), 2, r.randint(0, 1), r.randint(0, 1), r.choice([1, 2]))
        return ended([layer, activation(r)], (2, r.randint(3, 5)), "transposed convolution 1d", r)
    layer = nn.ConvTranspose2d(2, 4, r.randint(2, 3), 2, r.randint(0, 1), r.randint(0, 1), r.choice([1, 2]))
    return ended([layer, activation(r), nn.Conv2d(4, 1, 2)], (2, 3, 3), "transposed convolution", r)


def batch_norm(r: Random) -> Tiny:
    if r.random() < 0.4:
        layers = [nn.Linear(2, 4), norm(nn.BatchNorm1d(4)), nn.ReLU(), norm(nn.BatchNorm1d(4))]
        return ended(layers, (2,), "batch norm 1d", r)
    return ended([conv2d(r, 2, 3), norm(nn.BatchNorm2d(3)), nn.ReLU()], image(r, 2), "batch norm", r)


def max_pool(r: Random) -> Tiny:
    kernel = r.randint(2, 3)
    pool = nn.MaxPool2d(kernel, r.randint(1, 3), r.randint(0, 1), r.randint(1, 2), ceil_mode=r.random() < 0.5)
    return ended([nn.Conv2d(2, 2, 2, padding=1), activation(r), pool], (2, 5, 6), "max pool", r)


def max_pool_1d(r: Random) -> Tiny:
    pool = nn.MaxPool1d(r.randint(2, 3), r.choice([None, 1, 2]), r.randint(0, 1), r.randint(1, 2))
    return ended([nn.Conv1d(2, 2, 2), activation(r), pool], (2, 7), "max pool 1d", r)


def other_pool(r: Random) -> Tiny:
    make = r.choice(
        [
            lambda: nn.AvgPool2d(r.randint(1, 3), r.randint(1, 2), ceil_mode=r.random() < 0.5),
            lambda: nn.AvgPool2d((2, 3), padding=1, count_include_pad=r.random() < 0.5),
            lambda: nn.AdaptiveAvgPool2d(r.choice([1, 2, (3, 2)])),
        ]
    )
    return ended([nn.Conv2d(2, 3, 2), activation(r), make()], (2, 6, 6), "average pool", r)


def other_pool_1d(r: Random) -> Tiny:
    pool = r.choice([nn.AvgPool1d(2), nn.AvgPool1d(3, 2, 1), nn.AdaptiveAvgPool1d(2), nn.AdaptiveAvgPool1d(1)])
    return ended([nn.Conv1d(2, 3, 2), activation(r), pool], (2, 7), "average pool 1d", r)


def residual(r: Random) -> Tiny:
    def forward(x, first, body, other):
        x = first(x).relu()
        y = x + body(x)
        return y - other(x.relu()) if r_sub else (y + x).relu()

    r_sub = r.random() < 0.5
    body = nn.Sequential(nn.Linear(4, 4), activation(r), nn.Linear(4, 4))
    return ended([Fn(forward, nn.Linear(2, 4), body, nn.Linear(4, 4))], (2,), "residual", r)


def residual_convolution(r: Random) -> Tiny:
    def forward(x, first, body, shortcut):
        x = first(x).relu()
        return (body(x) + shortcut(x)).relu()

    channels, stride = r.randint(1, 3), r.choice([1, 2])
    body = nn.Sequential(nn.Conv2d(2, 3, 3, stride, 1), activation(r), nn.Conv2d(3, 2, 3, 1, 1))
    first = nn.Conv2d(channels, 2, 3, 1, 1)
    return ended([Fn(forward, first, body, nn.Conv2d(2, 2, 1, stride))], image(r, channels), "residual convolution", r)


def concatenated(r: Random) -> Tiny:
    def forward(x, first, second):
        parts = [x, first(x).relu(), second(x), torch.full((len(x), 1), 0.5, dtype=x.dtype)]
        order = r_order
        return torch.cat([parts[i] for i in order], 1)

    r_order = r.sample(range(4), 4)
    return ended([Fn(forward, nn.Linear(2, 3), nn.Linear(2, 2)), activation(r)], (2,), "concat", r)


def concatenated_channels(r: Random) -> Tiny:
    def forward(x, first, second):
        return torch.cat([first(x), second(x).relu(), x], 1)

    layers = [Fn(forward, nn.Conv2d(2, 1, 3, 1, 1), nn.Conv2d(2, 2, 1)), nn.ReLU(), nn.Conv2d(5, 2, 3)]
    return ended(layers, image(r, 2), "concat channels", r)


def constants(r: Random) -> Tiny:
    """Arithmetic with numbers and tensors on either side."""
    c = torch.randn(4).double()

    def forward(x, first):
        x = first(x)
        k = c.to(x.dtype)
        return [
            lambda: (2 - x) * k + 1,
            lambda: (x - k) / 3 - (-x),
            lambda: k - x * 0.5 + 2 * x / k.abs().add(0.5),
            lambda: (k + x.unsqueeze(1) * k.view(4, 1)).flatten(1),
            lambda: torch.add(x, x.relu(), alpha=-2) + torch.sub(x, k, alpha=3),
            lambda: torch.rsub(x, 1) @ torch.diag(k) + k,
        ][which]()

    which = r.randrange(6)
    return ended([Fn(forward, nn.Linear(3, 4))], (3,), f"constants {which}", r)


MOVES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.permute(0, 2, 3, 1),
    lambda x: x.transpose(-1, -2)[:, :, 1:],
    lambda x: x[:, 1:, ::2, :-1],
    lambda x: functional.pad(x, (1, 0, 2, 1), value=0.5),
    lambda x: functional.pad(x, (1, 1), value=-1.0),
    lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
    lambda x: functional.pad(x, (-1, 1, 0, -1)),
    lambda x: x.mean((2, 3)),
    lambda x: x.mean(1, keepdim=True) + x.sum(-1, keepdim=True),
    lambda x: x.sum((1, 3)),
    lambda x: x.reshape(len(x), 4, -1).flip(1),
    lambda x: x.flatten(2).unflatten(2, (2, -1)).unsqueeze(1).squeeze(1),
    lambda x: torch.stack([x, x.relu()], 1)[:, :, 1],
    lambda x: torch.stack([x[:, 0], x[:, 1], torch.ones_like(x[:, 0])], -1),
    lambda x: torch.cat(x.chunk(2, 3)[::-1], 3),
    lambda x: x.split([1, 3], 2)[1] - x.split(3, 2)[0],
    lambda x: sum(x.unbind(1)),
    lambda x: x[:, [1, 0, 1]],
    lambda x: x[:, :, torch.tensor([0, 2])],
    lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 2, 3),
    lambda x: x[:, 0].select(1, 2),
    lambda x: functional.interpolate(x, scale_factor=2, mode="nearest"),
    lambda x: x.flatten(1).roll(1, 1),
    lambda x: x.narrow(2, 1, 2).contiguous().view(len(x), -1),
    lambda x: x.swapaxes(1, 2).movedim(1, 3),
    lambda x: x.repeat(1, 1, 2, 1),
    lambda x: x.squeeze(),
    lambda x: x.flatten(1).sum(1).relu().unsqueeze(1),
    lambda x: x.transpose(0, 1).relu().flatten(2).permute(1, 2, 0),
    lambda x: torch.maximum(x, x.mean((2, 3), keepdim=True)) - torch.minimum(x, 0.1 * torch.ones_like(x)),
    lambda x: functional.pixel_shuffle(x.reshape(len(x), 4, 2, -1), 2),
]


def moved(r: Random) -> Tiny:
    number = r.randrange(len(MOVES))
    layers = [nn.Conv2d(1, 2, 2, padding=(1, 0)), activation(r), Fn(lambda x: MOVES[number](x)), nn.Flatten(1)]
    return ended(layers, (1, 3, 5), f"move {number}", r)


def products(r: Random) -> Tiny:
    def forward(x, first, second):
        a, b = first(x), second(x)
        return [
            lambda: a * b,
            lambda: a.sigmoid() * b.relu() + a,
            lambda: a / (1 + b.exp()),
            lambda: a * a - b,
            lambda: a * b.mean(1, keepdim=True),
            lambda: a.unsqueeze(1).mul(b.unsqueeze(2)).flatten(1),
            lambda: a / b.square().add(0.5).sqrt(),
            lambda: a * (b + 1.0).square().add(0.1).rsqrt(),
        ][which]()

    which = r.randrange(8)
    return ended([Fn(forward, nn.Linear(2, 3), nn.Linear(2, 3))], (2,), f"product {which}", r)


def feature_product(r: Random) -> Tiny:
    def forward(x, first, gate):
        y = first(x)
        return y * gate(y.mean((2, 3))).sigmoid()[:, :, None, None]

    layers = [Fn(forward, conv2d(r, 2, 3), nn.Linear(3, 3)), nn.ReLU(), nn.Conv2d(3, 1, 2, padding=1)]
    return ended(layers, (2, 5, 5), "squeeze and excitation", r)


def attention(r: Random) -> Tiny:
    def forward(x, q, k, v):
        q, k, v = q(x), k(x), v(x)
        if heads == 2:
            q, k, v = (t.unflatten(2, (2, 2)).transpose(1, 2) for t in (q, k, v))
        if fused:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
        return y.transpose(1, 2).flatten(2) if heads == 2 else y

    heads, fused = r.choice([1, 2]), r.random() < 0.5
    layers = [Fn(forward, *(nn.Linear(2, 4) for _ in range(3)))]
    return ended(layers, (3, 2), f"attention of {heads}{' fused' if fused else ''}", r)


def softmax(r: Random) -> Tiny:
    dim = r.choice([1, -1, 2])
    return ended([nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), nn.Softmax(dim)], (4,), f"softmax {dim}", r)


def log_softmax(r: Random) -> Tiny:
    tiny = mlp(r, "relu")
    return Tiny(nn.Sequential(tiny.model, nn.LogSoftmax(1)), tiny.shape, "log softmax")


def layer_norm(r: Random) -> Tiny:
    return ended([nn.Linear(2, 4), nn.LayerNorm(4, eps=0.1), activation(r), nn.Linear(4, 3)], (2,), "layer norm", r)


def group_norm(r: Random) -> Tiny:
    return ended([nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4, eps=0.1)], (1, 3, 3), "group norm", r)


def encoder(r: Random) -> Tiny:
    make = r.choice(
        [
            lambda: nn.TransformerEncoderLayer(
                4, 2, 4, batch_first=True, norm_first=r.random() < 0.5, layer_norm_eps=0.1
            ),
            lambda: Fn(
                lambda x, inner: inner(x, x, x, need_weights=False)[0], nn.MultiheadAttention(4, 2, batch_first=True)
            ),
            lambda: Fn(lambda x, inner: inner(x, x, x)[0], nn.MultiheadAttention(4, 1, batch_first=True)),
        ]
    )
    return ended([nn.Linear(2, 4), make()], (3, 2), "encoder", r)


def channels_bent(r: Random) -> Tiny:
    prelu = nn.PReLU(3)
    nn.init.normal_(prelu.weight)
    return ended([nn.Conv2d(2, 3, 2), prelu], image(r, 2), "channels bent", r)


REDUCTIONS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.amax(1, keepdim=True) + x.amin(-1, keepdim=True),
    lambda x: torch.cat([x.amax((2, 3)), x.amin((1, 3))], 1),
    lambda x: x.max(2)[0] - x.min(2, keepdim=True).values.squeeze(2),
    lambda x: torch.max(x, x.flip(1)) * torch.min(x, 0.3 * x),
    lambda x: functional.adaptive_max_pool2d(x, 1),
    lambda x: functional.adaptive_max_pool2d(x, (2, 3)),
    lambda x: functional.adaptive_max_pool2d(x, (3, 4)),
    lambda x: functional.adaptive_max_pool1d(x.flatten(2), 4),
    lambda x: functional.max_pool3d(x.unsqueeze(1), (2, 2, 3), (1, 2, 1), (1, 1, 0)),
    lambda x: functional.max_pool3d(x.unsqueeze(1), 2, 2, ceil_mode=True),
    lambda x: functional.avg_pool3d(x.unsqueeze(1), (1, 2, 2), 1),
    lambda x: functional.adaptive_avg_pool3d(x.unsqueeze(1), (1, 2, 3)),
    lambda x: functional.normalize(x, dim=1) + x.norm(p=1, dim=2, keepdim=True),
    lambda x: x.cumsum(2).flatten(1).cumsum(1),
]


def reduced(r: Random) -> Tiny:
    number = r.randrange(len(REDUCTIONS))
    return ended([nn.Conv2d(1, 2, 2), activation(r), Fn(REDUCTIONS[number])], (1, 4, 5), f"reduction {number}", r)


def resampled(r: Random) -> Tiny:
    sizes = r.choice([{"scale_factor": 2.0}, {"scale_factor": (1.7, 3.0)}, {"size": (5, 3)}, {"size": (2, 7)}])
    mode = r.choice(["bilinear", "bilinear", "nearest", "nearest-exact", "linear"])
    if mode == "linear":
        resize = Fn(lambda x: functional.interpolate(x.flatten(2), size=7, mode="linear"))
    else:
        corners = {"align_corners": r.random() < 0.4} if mode == "bilinear" else {}
        resize = Fn(lambda x: functional.interpolate(x, mode=mode, **sizes, **corners))
    return ended([nn.Conv2d(1, 2, 2), activation(r), resize], (1, 4, 5), f"resampled {mode} {sizes}", r)


def other_norm(r: Random) -> Tiny:
    if r.random() < 0.3:
        return ended([nn.Linear(2, 4), nn.RMSNorm(4, eps=0.1), activation(r), nn.Linear(4, 3)], (2,), "rms norm", r)
    layer = r.choice([nn.InstanceNorm2d(2, 0.1, affine=True), norm(nn.InstanceNorm2d(2, 0.1, 0.1, True, True))])
    layer = r.choice([layer, nn.LocalResponseNorm(2, 0.5)])
    return ended([nn.Conv2d(1, 2, 2), layer], (1, 3, 3), f"other norm {type(layer).__name__}", r)


def variance(r: Random) -> Tiny:
    function = r.choice(
        [
            lambda x: x / (x.var((2, 3), keepdim=True) + 0.1).sqrt(),
            lambda x: x / (x.flatten(1).std(1, correction=0) + 0.2).view(-1, 1, 1, 1),
            lambda x: x + x.var(1, unbiased=False, keepdim=True),
            lambda x: x.softmax(1) + x[:, :1].softmax(1),
        ]
    )
    return ended([nn.Conv2d(1, 2, 2), Fn(function), activation(r)], (1, 3, 3), "variance", r)


def recurrent(r: Random) -> Tiny:
    make = r.choice([nn.LSTM, nn.LSTM, nn.GRU, nn.GRU, nn.RNN, lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)])
    layers, both, first, last = r.choice([1, 1, 2]), r.random() < 0.3, r.random() < 0.7, r.random() < 0.5
    cell = make(2, 2, layers, bidirectional=both, batch_first=first, bias=r.random() < 0.8)

    def forward(x, cell):
        found, state = cell(x if first else x.transpose(0, 1))
        state = state[0] if isinstance(state, tuple) else state
        return state[-1] if last else (found if first else found.transpose(0, 1))

    return ended([Fn(forward, cell)], (3, 2), f"recurrent {type(cell).__name__}", r)


def recurrent_cell(r: Random) -> Tiny:
    cell = r.choice([nn.LSTMCell(2, 3), nn.GRUCell(2, 3), nn.RNNCell(2, 3)])

    def forward(x, cell):
        state = cell(x)
        state = cell(x.flip(1), state)
        return state[0] if isinstance(state, tuple) else state

    return ended([Fn(forward, cell)], (2,), f"recurrent {type(cell).__name__}", r)


def masked_attention(r: Random) -> Tiny:
    lower = torch.ones(3, 3).tril().bool()
    put = r.choice([-math.inf, -math.inf, -1e30, -1e4, -1e9, float(torch.finfo(torch.float32).min)])

    def forward(x, q, k, v):
        q, k, v = q(x), k(x), v(x)
        scores = q @ k.transpose(1, 2) / 2
        return [
            lambda: functional.scaled_dot_product_attention(*(t.unsqueeze(1) for t in (q, k, v)), is_causal=True),
            lambda: functional.scaled_dot_product_attention(q, k, v, attn_mask=lower),
            lambda: functional.scaled_dot_product_attention(
                q, k, v, torch.zeros(3, 3, dtype=x.dtype).where(lower, put)
            ),
            lambda: scores.masked_fill(~lower, put).softmax(-1) @ v,
            lambda: torch.where(lower, scores, put).softmax(-1) @ v,
            lambda: (scores + torch.zeros(3, 3, dtype=x.dtype).masked_fill(~lower, put)).softmax(1) @ v,
        ][which]()

    which = r.randrange(6)
    return ended([Fn(forward, *(nn.Linear(2, 4) for _ in range(3)))], (3, 2), f"masked attention {which} {put}", r)


def masked_encoder(r: Random) -> Tiny:
    mask = torch.ones(3, 3).triu(1).bool()

    def forward(x, first, inner):
        x = first(x)
        if isinstance(inner, nn.MultiheadAttention):
            return inner(x, x, x, attn_mask=mask)[0]
        return inner(x, src_mask=mask, is_causal=True)

    inner = r.choice(
        [
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.TransformerEncoderLayer(4, 2, 4, batch_first=True, norm_first=True, layer_norm_eps=0.1),
        ]
    )
    return ended([Fn(forward, nn.Linear(2, 4), inner)], (3, 2), "masked encoder", r)


def contracted(r: Random) -> Tiny:
    def forward(x, first, second):
        a, b = first(x), second(x)
        return [
            lambda: torch.einsum("bij,bkj->bik", a, b),
            lambda: torch.einsum("bij,kj->bki", a, second.weight),
            lambda: torch.baddbmm(torch.ones(1, 3, 3, dtype=x.dtype), a, b.transpose(1, 2), beta=0.5, alpha=2.0),
            lambda: functional.glu(a, -1) * 2,
            lambda: functional.silu(a) * b,
            lambda: torch.ops.aten.add.Scalar(torch.ops.aten.div.Scalar(a, 3.0), 0.25) - b,
        ][which]()

    which = r.randrange(6)
    return ended([Fn(forward, nn.Linear(2, 4), nn.Linear(2, 4))], (3, 2), f"contracted {which}", r)


KINDS: dict[str, Callable[[Random], Tiny]] = {
    **{f"mlp {name}": lambda r, name=name: mlp(r, name) for name in ACTIVATIONS},
    **{
        make.__name__: make
        for make in (
            convolution, same, convolution_1d, convolution_3d, transposed, batch_norm, max_pool, max_pool_1d,
            other_pool, other_pool_1d, residual, residual_convolution, concatenated, concatenated_channels, constants,
            moved, products, feature_product, attention, softmax, log_softmax, layer_norm, group_norm, encoder,
            channels_bent, reduced, resampled, other_norm, variance, recurrent, recurrent_cell, masked_attention,
            masked_encoder, contracted,
        )
    },
}  # fmt: skip


def tiny(kind: str, seed: int, dtype: torch.dtype = torch.float64) -> Tiny:
    """A network of a kind, the same for the same seed, with weights large enough for bounds to be hard."""
    for attempt in range(20):
        with torch.random.fork_rng(devices=[]), torch.no_grad(), suppress(RuntimeError):
            torch.manual_seed(seed)
            # The sizes drawn may not go together: a kernel may come out larger than its image.
            made = _drawn(kind, Random(f"{kind} {seed}" + " again" * attempt))
            return Tiny(made.model.to(dtype).eval(), made.shape, f"{made.label}, kind {kind!r}, seed {seed}")
    raise AssertionError(f"no network of kind {kind!r} fits together for seed {seed}")


def _drawn(kind: str, r: Random) -> Tiny:
    made = KINDS[kind](r)
    scale = r.choice([1.0, 2.0, 3.0])
    for parameter in made.model.parameters():
        parameter *= scale if parameter.dim() > 1 else 1
    for rows in (1, 2):
        made.model.eval()(torch.zeros(rows, *made.shape))
    return made


def random_region(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64, count: int = 2) -> Region:
    """Sets of inputs of some norm, in the unit box or without it."""
    r = Random(f"region {seed}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *shape, generator=generator, dtype=dtype)
    box = r.choice([(0, 1), None])
    eps = r.choice([0.02, 0.1, 0.3])
    size = math.prod(shape)
    threat = r.choice(
        [
            Linf(eps, box),
            Linf(eps, box),
            L2(eps * math.sqrt(size), box),
            L1(eps * size / 2, box),
            L0(r.randint(1, min(size, 3))),
            None,
        ]
    )
    if threat is not None:
        return Region.around(threat, x)
    width = torch.rand(count, *shape, generator=generator, dtype=dtype) * eps
    # Some coordinates are fixed.
    width *= torch.rand(count, *shape, generator=generator) < 0.8
    return Region.box(x - width, x + width / 2)


def points_of(region: Region, count: int, generator: torch.Generator) -> Tensor:
    """``(N, 2 count, *shape)`` points of each set: corners, and points between."""
    n, shape = len(region), region.center.shape[1:]
    low, high, center = (t.flatten(1).unsqueeze(1) for t in (region.lower, region.upper, region.center))
    size = low.shape[2]
    dtype = low.dtype
    uniform = torch.rand(n, count, size, generator=generator, dtype=dtype)
    corner = torch.where(torch.rand(n, count, size, generator=generator) < 0.5, low, high)
    points = torch.cat([low + uniform * (high - low), corner], 1).clamp(low, high)
    if region.norm != "linf":
        # Few coordinates move in some of them, all in others; then each is drawn to the centre until it is inside.
        moving = torch.rand(n, 2 * count, size, generator=generator) < torch.rand(n, 2 * count, 1, generator=generator)
        delta = torch.where(moving, points - center, 0)
        eps = region.eps.view(-1, 1, 1)
        if region.norm == "l0":
            rank = torch.rand(delta.shape, generator=generator).argsort(-1).argsort(-1)
            delta = torch.where(rank < eps, delta, 0)
        else:
            length = delta.norm(p=2 if region.norm == "l2" else 1, dim=2, keepdim=True)
            delta = delta * (eps / length.clamp_min(1e-30)).clamp(max=1)
        points = center + delta
    return points.unflatten(2, shape)


def tolerance(graph: Graph, intervals: list[Interval]) -> float:
    """What rounding may come to."""
    dtype = intervals[0].lower.dtype
    largest = max(float(end.abs().max()) for interval in intervals for end in interval)
    return max(largest, 1.0) * torch.finfo(dtype).eps * 1e3


def row_bounds(graph: Graph, bounds: Bounds, region: Region, rows: Tensor) -> Tensor:
    """``(N, S)`` backward bounds of functions of the output, ``(N, S, K)``."""
    whole = Rows.whole(rows.flatten(0, 1))
    return lower_bounds(graph, graph.output, whole, bounds.planes, bounds.errors, region).view(rows.shape[:2])


def check_bounds(net: Tiny, region: Region, seed: int = 0, samples: int = 500, steps: int = 4) -> None:
    """Bounds hold at corners and samples, tighten from method to method, and do not depend on how they are computed."""
    generator = torch.Generator().manual_seed(seed)
    note = f"{net.label}, region {seed} {region.norm}"
    graph = capture(net.model, region.center)
    assert graph.nodes[0].shape == net.shape
    n = len(region)
    plain = interval_bounds(graph, region)
    slack = tolerance(graph, plain)
    direct, full = interval_planes(graph, region), crown(graph, region)
    rows = torch.randn(n, 4, CLASSES, generator=generator, dtype=region.lower.dtype)
    rows[:, 0] = torch.eye(CLASSES, dtype=rows.dtype)[0] - torch.eye(CLASSES, dtype=rows.dtype)[1]
    by_interval = least_of(rows, plain[-1])
    by_planes, by_crown = (row_bounds(graph, bounds, region, rows) for bounds in (direct, full))
    better = tightened(graph, region, full, 1)
    problem = Problem(graph, region, full, graph.output)
    domains = Domains.whole(problem, torch.arange(n).repeat_interleave(4), rows.flatten(0, 1))
    by_alpha = bound_domains(problem, domains, steps).bound.view(n, 4)

    # Inputs: those of the set, and those to which the functions themselves lead.
    points = points_of(region, samples, generator)
    x = region.center.detach().clone().repeat_interleave(4, 0)
    found = [points]
    for step in range(4):
        x.requires_grad_(True)
        (grad,) = torch.autograd.grad((graph(x).view(n, 4, -1) * rows).sum(), x)
        x = torch.lerp(x.detach(), region.minimiser(grad), 2 / (step + 2))
        found.append(x.unflatten(0, (n, 4)))
    points = torch.cat(found, 1)
    with torch.no_grad():
        values = graph.values(points.flatten(0, 1))
        torch.testing.assert_close(values[-1], net.model(points.flatten(0, 1)), rtol=1e-9, atol=slack, msg=note)
    for number, value in enumerate(values):
        name = f"{note}, node {graph.nodes[number].name}"
        value = value.unflatten(0, points.shape[:2])
        least, most = value.amin(1), value.amax(1)
        for method, intervals in (("ibp", plain), ("crown", full.intervals), ("alpha", better.intervals)):
            low, high = intervals[number]
            assert low.shape == (n, *graph.nodes[number].shape), f"{name}, {method}: shape"
            assert bool((low <= least + slack).all()), f"{name}, {method}: {float((low - least).max())} above a value"
            assert bool((high >= most - slack).all()), f"{name}, {method}: {float((most - high).max())} below a value"
        for tight, loose in ((full.intervals, plain), (better.intervals, full.intervals)):
            assert bool((tight[number].lower >= loose[number].lower - slack).all()), f"{name}: looser"
            assert bool((tight[number].upper <= loose[number].upper + slack).all()), f"{name}: looser"
    truth = (values[-1].unflatten(0, points.shape[:2]) @ rows.transpose(1, 2)).amin(1)
    by_better = row_bounds(graph, better, region, rows)
    found_bounds = {
        "ibp": by_interval,
        "crown-ibp": by_planes,
        "crown": by_crown,
        "alpha": by_alpha,
        "tightened": by_better,
    }
    for method, bound in found_bounds.items():
        # Nothing may be known, where intervals overflow, but that must be said.
        assert bool((bound < torch.inf).all()), f"{note}, {method}: {bound}"
        assert bool((bound <= truth + slack).all()), f"{note}, {method}: {float((bound - truth).max())} above a value"
    assert bool((by_alpha >= by_crown - slack).all()), (
        f"{note}: alpha is looser by {float((by_crown - by_alpha).max())}"
    )


def check_exact_at_a_point(net: Tiny, x: Tensor) -> None:
    """With nothing allowed, all bounds are the values."""
    graph, region = capture(net.model, x), Region.box(x, x)
    values = graph.values(x)
    slack = tolerance(graph, interval_bounds(graph, region)) * 1e2
    for intervals in (interval_bounds(graph, region), crown(graph, region).intervals):
        for (low, high), value in zip(intervals, values, strict=True):
            torch.testing.assert_close(low, value, rtol=0, atol=slack, msg=net.label)
            torch.testing.assert_close(high, value, rtol=0, atol=slack, msg=net.label)
    rows = torch.eye(CLASSES, dtype=x.dtype).repeat(len(x), 1, 1)
    bound = row_bounds(graph, crown(graph, region), region, rows)
    torch.testing.assert_close(bound, values[-1], rtol=0, atol=slack, msg=net.label)
