"""Rows that depend on one another are found, whatever couples them; noise and rounding are not blamed."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import holdfast
from helpers.attacks import snapshot
from helpers.zoo import Answering, convnet, mlp, seeded, uniform
from holdfast import PGD, Linf, ModelError
from holdfast.certify import Ablated, BlockAblation, Smoothed, certify
from holdfast.models.independence import refuse_dependence
from holdfast.models.query import Query
from holdfast.train import train

MIXES = "depends on the other rows of its batch"
# name -> what is made of the model and its input; images in [0, 1] of which each has its darkest and brightest pixel.
MIXING = {
    "centred": lambda m, x: m.logits(x - x.mean(0)),
    "a little": lambda m, x: m.logits(x) + 1e-3 * x.mean(),
    "maximum": lambda m, x: m.logits(x / x.max()),
    "minimum": lambda m, x: m.logits(x - x.min()),
    "standardised": lambda m, x: m.logits((x - x.mean()) / x.std()),
    "sorted": lambda m, x: m.logits(x.sort(0).values),
    "median": lambda m, x: m.logits(x - x.median(0).values),
    "ranks": lambda m, x: m.logits(x.argsort(0).argsort(0).to(x) + x),
    "first": lambda m, x: m.logits(x - 0.1 * x[:1]),
    "last": lambda m, x: m.logits(x - 0.1 * x[-1:]),
    "neighbours": lambda m, x: m.logits(x + 0.1 * x.roll(1, 0)),
    "rows before": lambda m, x: m.logits(x.cumsum(0)),
    "largest before": lambda m, x: m.logits(x.cummax(0).values),
    "largest after": lambda m, x: m.logits(x.flip(0).cummax(0).values.flip(0)),
    "halves": lambda m, x: m.logits(x - 0.1 * x.roll(len(x) // 2, 0)),
    "contrast": lambda m, x: m.logits(x) - m.logits(x).mean(0),
    "similarities": lambda m, x: m.logits((x @ x.T).softmax(1) @ x),
    "softmax of the batch": lambda m, x: m.logits(x).softmax(0),
    "batch statistics": lambda m, x: m.logits(functional.batch_norm(x, None, None, training=True)),
    "duplicates": lambda m, x: m.logits(x) * torch.unique(x, dim=0).shape[0],
    "one bright row": lambda m, x: m.logits(x) + (x.mean(1) > 0.9).any(),
    "one dark row": lambda m, x: m.logits(x) + (x.mean(1) < 0.05).any(),
    "one scale": lambda m, x: m.logits((x * 127 / x.abs().max()).round() / 127),
    "and noise": lambda m, x: m.logits(x - x.mean(0)) + 0.1 * torch.randn(len(x), 3),
}


def images(count: int = 20) -> torch.Tensor:
    x = uniform(count, 6)
    x[:, 0], x[:, 1] = 0.0, 1.0
    return x


def ask(model, x=None, **settings):
    x = images() if x is None else x
    with Query(model, **settings) as query:
        return query.bare_logits(x)


class TestCoupled:
    @pytest.mark.parametrize("batch_size", [4, 16, 64])
    @pytest.mark.parametrize("name", MIXING)
    def test_is_refused_in_one_line(self, name, batch_size):
        with pytest.raises(ModelError, match=MIXES) as caught:
            ask(Answering(MIXING[name]), batch_size=batch_size)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("name", ["centred", "maximum", "neighbours"])
    def test_in_other_precisions(self, name, dtype):
        with pytest.raises(ModelError, match=MIXES):
            ask(Answering(MIXING[name]).to(dtype))

    @pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm2d])
    def test_batch_normalisation_is_named(self, layer):
        body = [nn.Flatten()] if layer is nn.BatchNorm1d else [nn.Unflatten(1, (3, 1, 2))]
        width = 6 if layer is nn.BatchNorm1d else 3
        model = seeded(
            lambda: nn.Sequential(*body, layer(width, track_running_stats=False), nn.Flatten(), nn.Linear(6, 3))
        )
        with pytest.raises(ModelError, match=rf"'1' \({layer.__name__}\) .*track_running_stats=True"):
            ask(model)

    def test_a_layer_that_stays_in_training_mode_is_named(self):
        class Stays(nn.BatchNorm1d):
            def train(self, mode=True):
                return super().train(True)

        model = seeded(lambda: nn.Sequential(nn.Linear(6, 6), Stays(6), nn.Linear(6, 3)))
        before = snapshot(model)
        with pytest.raises(ModelError, match=r"'1' \(Stays\)"):
            ask(model)
        assert snapshot(model) == before

    def test_a_transformer_that_takes_the_batch_for_a_sequence(self):
        layer = seeded(lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0))
        with pytest.raises(ModelError, match=MIXES):
            ask(nn.Sequential(nn.Unflatten(1, (1, 6)), layer, nn.Flatten()))

    def test_places(self):
        with pytest.raises(ModelError, match="depends on its place in the batch"):
            ask(Answering(lambda m, x: m.logits(x) + 0.01 * torch.arange(len(x))[:, None]))

    @pytest.mark.parametrize(
        "answer",
        [
            lambda m, x: m.logits(x) + m.calls % 2,
            lambda m, x: m.logits(x) * (1 + m.calls / 100),
            lambda m, x: m.logits(x) + (m.calls % 5 == 0),
        ],
        ids=["every other", "rising", "every fifth"],
    )
    def test_calls_that_are_counted(self, answer):
        with pytest.raises(ModelError, match="depends on the calls before it"):
            ask(Answering(answer))

    def test_statistics_that_go_on(self):
        class Adapting(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("mean", torch.zeros(6))
                self.head = seeded(lambda: nn.Linear(6, 3))

            def forward(self, x):
                self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
                return self.head(x - self.mean)

        with pytest.raises(ModelError, match="depends on the calls before it"):
            ask(Adapting())

    def test_alone_a_row_has_no_company(self):
        x = images()
        model = Answering(MIXING["maximum"])
        expected = torch.cat([model(row) for row in x.split(1)]).detach()
        torch.testing.assert_close(ask(model, batch_size=1), expected)


class TestEveryDoor:
    x, y = images(), torch.arange(20) % 3
    model = Answering(MIXING["centred"])

    @pytest.mark.parametrize(
        "door",
        [
            lambda m, x, y: holdfast.audit(m, (x, y), Linf(0.1), protocol="quick"),
            lambda m, x, y: holdfast.audit(m, (x, y), Linf(0.1), certify="crown"),
            lambda m, x, y: PGD()(m, x, y, threat=Linf(0.1)),
            lambda m, x, y: PGD()(m, x, y, threat=Linf(0.1), samples=4),
            lambda m, x, y: certify(m, x, y, Linf(0.1)),
            lambda m, x, y: Smoothed(m, 0.25).certify(x, y, samples=10),
            lambda m, x, y: train(m, (x, y), Linf(0.1), method="pgd"),
        ],
        ids=["audit", "audit with proofs", "attack", "averaging attack", "certify", "smoothing", "training"],
    )
    def test_refuses(self, door):
        with pytest.raises(ModelError, match=MIXES):
            door(self.model, self.x, self.y)

    def test_ablation_too(self):
        model = nn.Sequential(nn.Flatten(), seeded(lambda: nn.Linear(72, 3)), Answering(lambda m, x: x - x.mean(0)))
        with pytest.raises(ModelError, match=MIXES):
            Ablated(model, BlockAblation(6, 6, 3)).certify(uniform(4, 1, 6, 6))


class Owning(nn.Module):
    """Noise from a generator of its own."""

    def __init__(self, generator, draw):
        super().__init__()
        self.head = seeded(lambda: nn.Linear(6, 3))
        self.generator, self.draw = generator, draw

    def forward(self, x):
        return self.head(x) + self.draw(self.generator, len(x))


RANDOM = {
    "noise": Answering(lambda m, x: m.logits(x) + 0.1 * torch.randn(len(x), 3)),
    "one noise for all": Answering(lambda m, x: m.logits(x) + 0.1 * torch.randn(3)),
    "dropout": Answering(lambda m, x: m.logits(functional.dropout(x, 0.5, training=True))),
    "crops": Answering(lambda m, x: m.logits(x.roll(int(torch.randint(6, ())), 1))),
    # How many numbers a row takes depends on it, so that those after it get others.
    "poisson": Answering(lambda m, x: m.logits(torch.poisson(20 * x))),
    "numpy": Answering(lambda m, x: m.logits(x) + torch.from_numpy(np.random.randn(len(x), 3)).float()),  # noqa: NPY002
    "python": Answering(lambda m, x: m.logits(x) + random.random()),
    "a fresh generator": Answering(lambda m, x: m.logits(x) + float(np.random.default_rng().normal())),
    "the system": Answering(lambda m, x: m.logits(x) + random.SystemRandom().random()),
    "reseeded": Answering(lambda m, x: m.logits(x) + torch.randn(3, generator=torch.Generator().manual_seed(1))),
    "own torch": Owning(torch.Generator(), lambda g, n: torch.randn(n, 3, generator=g)),
    "own numpy": Owning(np.random.default_rng(0), lambda g, n: torch.from_numpy(g.normal(size=(n, 3))).float()),
    "own numpy of old": Owning(np.random.RandomState(0), lambda g, n: float(g.rand())),
    "own python": Owning(random.Random(0), lambda g, n: g.random()),
}


class Experts(nn.Module):
    """Each row goes to one of two experts, which work on all of theirs together: the shapes depend on the company."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(mlp(108, 5, hidden=512, seed=seed) for seed in (0, 1))

    def forward(self, x):
        x = x.flatten(1)
        which, found = (x.mean(1) > 0.5).long(), x.new_zeros(len(x), 5)
        for number, expert in enumerate(self.experts):
            rows = (which == number).nonzero()[:, 0]
            found = found.index_put((rows,), expert(x[rows]))
        return found


class Cancelling(nn.Module):
    """Large terms that cancel: what is left of them is rounding, and other from place to place."""

    def __init__(self):
        super().__init__()
        self.inner = seeded(lambda: nn.Linear(108, 64))
        self.outer = seeded(lambda: nn.Linear(64, 5))
        self.large = seeded(lambda: nn.Linear(64, 5, bias=False), 1)

    def forward(self, x):
        hidden = self.inner(x.flatten(1)).relu()
        large = 1e6 * self.large(hidden)
        again = 1e6 * self.large.weight @ hidden.T
        return self.outer(hidden) + large - again.T


HONEST = {
    "convolutions": convnet,
    "instance normalisation": lambda: nn.Sequential(nn.InstanceNorm2d(3), convnet()),
    "batch normalisation": lambda: nn.Sequential(seeded(lambda: nn.BatchNorm2d(3)), convnet()),
    "experts": Experts,
    "cancelling": Cancelling,
    "constant": lambda: Answering(lambda m, x: torch.zeros(len(x), 3)),
    "infinite": lambda: Answering(lambda m, x: m.logits(x.flatten(1)[:, :6]) / torch.tensor([0.0, 1.0, 1.0])),
    "not a number": lambda: Answering(lambda m, x: m.logits(x.flatten(1)[:, :6]).log()),
    "particular": lambda: _Particular(),
}


class _Particular(nn.Module):
    """Fails on what is no image of the data."""

    def __init__(self):
        super().__init__()
        self.net = convnet()

    def forward(self, x):
        if bool(x.flatten(1).std(1).min() < 0.1):
            raise ValueError("too dull")
        return self.net(x)


class TestIndependent:
    @pytest.mark.parametrize("batch_size", [4, 64])
    @pytest.mark.parametrize("name", RANDOM)
    def test_noise_is_not_blamed(self, name, batch_size):
        ask(RANDOM[name], batch_size=batch_size)

    @pytest.mark.parametrize("batch_size", [2, 12, 30, 64])
    @pytest.mark.parametrize("name", HONEST)
    def test_rounding_is_not_blamed(self, name, batch_size):
        for seed in range(3):
            ask(HONEST[name](), uniform(30, 3, 6, 6, seed=seed), batch_size=batch_size)

    def test_noise_whose_amount_depends_on_the_input_is_not_blamed(self):
        for seed in range(100):
            torch.manual_seed(seed)
            refuse_dependence(RANDOM["poisson"], lambda asked, x: asked(x).detach(), images(), torch.float32)

    @pytest.mark.parametrize("name", ["noise", "poisson", "numpy", "python", "own torch", "own numpy", "own python"])
    def test_no_generator_is_moved(self, name):
        model = RANDOM[name]

        def states():
            own = getattr(model, "generator", None)
            reads = ("get_state", "getstate", "bit_generator")
            known = [getattr(own, read) for read in reads if hasattr(own, read)]
            return str([torch.get_rng_state().tolist(), np.random.get_state(), random.getstate()]) + str(  # noqa: NPY002
                [read().tolist() if own.__class__ is torch.Generator else read() for read in known if callable(read)]
                + [read.state for read in known if not callable(read)]
            )

        before = states()
        refuse_dependence(model, lambda asked, x: asked(x).detach(), images(), torch.float32)
        assert states() == before
        model(images())
        assert states() != before
