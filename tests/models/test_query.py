import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.attacks import snapshot
from helpers.zoo import (
    REFUSED,
    Answering,
    Counting,
    Moody,
    Wavy,
    cached_tensor,
    constant,
    convnet,
    in_place,
    mlp,
    moving_classes,
    nan_logits,
    no_gradient,
    noisy,
    seeded,
    uniform,
)
from holdfast.errors import DataError, ModelError, SettingError
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy, margin

# name -> (model, shape of an input): what may be rounded differently in a batch.
NETS = {
    "convolutions and pooling": (convnet, (3, 6, 6)),
    "one channel": (lambda: convnet(1), (1, 6, 6)),
    "layers": (lambda: mlp(108, 5, hidden=304), (3, 6, 6)),
    "double": (lambda: convnet().double(), (3, 6, 6)),
    "sines": (lambda: Wavy(108, 5), (3, 6, 6)),
    "bfloat16": (lambda: convnet().bfloat16(), (3, 6, 6)),
    # Attention layers take a fast path where no gradient is asked for, which rounds otherwise.
    "attention": (
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Unflatten(1, (9, 12)),
            seeded(lambda: nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True)),
            nn.Flatten(),
            seeded(lambda: nn.Linear(108, 5)),
        ).eval(),
        (3, 6, 6),
    ),
    "normalised": (
        lambda: seeded(
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
            )
        ),
        (3, 6, 6),
    ),
}


def total(logits):
    """An objective in which every logit has a part."""
    return (logits * torch.linspace(1, 2, logits.shape[1], dtype=logits.dtype)).sum(1)


def ask(model, x, batch_size=7, objective=total, **settings):
    with Query(model, batch_size=batch_size, **settings) as query:
        return query.bare_logits(x), query.logits(x[:batch_size]), query.gradient(x[:batch_size], objective)


class TestRows:
    @pytest.mark.parametrize("net", NETS)
    @pytest.mark.parametrize("batch_size", [1, 5, 16])
    def test_a_row_is_the_same_in_any_place_and_company(self, net, batch_size):
        make, shape = NETS[net]
        model, x = make(), uniform(20, *shape)
        with Query(model, batch_size=batch_size) as query:
            bare = query.bare_logits(x)
            alone = [query.gradient(row, total) for row in x.split(1)]
            generator = torch.Generator().manual_seed(1)
            for _ in range(4):
                order = torch.randperm(20, generator=generator)
                assert torch.equal(query.bare_logits(x[order]), bare[order])
                count = int(torch.randint(1, batch_size + 1, (), generator=generator))
                some = order[:count]
                together = query.gradient(x[some], total)
                logits = query.logits(x[some])
                for position, i in enumerate(some.tolist()):
                    assert torch.equal(together.logits[position], alone[i].logits[0])
                    assert torch.equal(together.values[position], alone[i].values[0])
                    assert torch.equal(together.grad[position], alone[i].grad[0])
                    # Whether a gradient is wanted changes no answer either.
                    assert torch.equal(logits[position], alone[i].logits[0])

    def test_an_empty_query_of_logits_costs_nothing(self):
        with Query(mlp(), batch_size=4) as query:
            assert query.logits(uniform(0, 6)).shape[0] == 0
            assert query.forwards == 0

    def test_too_many_rows(self):
        with Query(mlp(), batch_size=4) as query, pytest.raises(ValueError, match="5 rows in one call"):
            query.logits(uniform(5, 6))


class TestAnswers:
    @pytest.mark.parametrize("objective", [cross_entropy, margin])
    @pytest.mark.parametrize("net", ["convolutions and pooling", "double", "layers", "attention"])
    def test_gradient_is_that_of_autograd(self, net, objective):
        make, shape = NETS[net]
        model, x, y = make(), uniform(7, *shape), torch.arange(7) % 5
        bare, logits, answer = ask(model, x, objective=lambda z: objective(z, y))
        dtype = next(model.parameters()).dtype
        plain = copy.deepcopy(model).eval()
        for i in range(7):
            row = x[i : i + 1].to(dtype).requires_grad_(True)
            z = plain(row)
            value = objective(z, y[i : i + 1]).sum()
            (grad,) = torch.autograd.grad(value, row)
            close = {"rtol": 1e-4, "atol": 1e-6}
            for got in (bare[i], logits[i], answer.logits[i]):
                torch.testing.assert_close(got, z[0].detach(), **close)
            torch.testing.assert_close(answer.values[i], value.detach(), **close)
            torch.testing.assert_close(answer.grad[i], grad[0], **close)

    def test_nothing_is_attached_to_a_graph_or_to_inference(self):
        for tensor in (lambda b, z, a: (b, z, a.logits, a.values, a.grad))(*ask(mlp(), uniform(4, 6))):
            assert not tensor.requires_grad
            assert not tensor.is_inference()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_types(self, dtype, given):
        model = convnet().to(dtype)
        outside = torch.float64 if dtype == torch.float64 else torch.float32
        bare, logits, answer = ask(model, uniform(5, 3, 6, 6).to(given))
        for tensor in (bare, logits, answer.logits, answer.values, answer.grad):
            assert tensor.dtype == outside
        with Query(model) as query:
            assert query.dtype == outside
            assert query.prepare(uniform(5, 3, 6, 6).to(given)).dtype == outside

    def test_types_without_parameters(self):
        with Query(nn.Flatten()) as query:
            assert (query.dtype, query.device.type) == (torch.float32, "cpu")

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_gradients_that_are_no_numbers_are_zero(self, bad):
        model = Answering(lambda m, x: m.logits(x) + bad * (x[:, :1] - x[:, :1].detach()).where(x[:, :1] > 0.5, 0.0))
        x = uniform(6, 6)
        x[:, 0] = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.4])
        with Query(model, batch_size=6) as query:
            grad = query.gradient(x, lambda z: z[:, 0]).grad
        assert grad.isfinite().all()
        expected = model.head.weight[0].detach().expand(6, 6).clone()
        expected[[1, 3], 0] = 0
        torch.testing.assert_close(grad, expected)

    def test_a_constant_model_has_a_gradient_of_zero(self):
        _, logits, answer = ask(constant(), uniform(4, 6))
        assert (answer.grad == 0).all()
        assert logits.tolist() == [[0.0, 2.0, 0.0]] * 4

    def test_a_tensor_that_the_model_keeps_is_copied(self):
        model, x = cached_tensor(), uniform(8, 6)
        with Query(model, batch_size=4) as query:
            bare = query.bare_logits(x)
            logits = query.logits(x[:4])
            query.logits(x[4:])
        assert torch.equal(bare, torch.cat([model.logits(x[:4]), model.logits(x[4:])]).detach())
        assert torch.equal(logits, bare[:4])

    def test_inputs_are_not_written_to(self):
        x = uniform(4, 6)
        before = x.clone()
        with Query(in_place(), batch_size=4) as query:
            first = query.bare_logits(x)
            assert torch.equal(x, before)
            assert torch.equal(query.bare_logits(x), first)

    def test_what_a_model_keeps_of_its_first_call_can_be_used_in_training(self):
        def scaled(model, x):
            if model.kept is None:
                model.kept = torch.linspace(1, 2, 6)
            return model.logits(x * model.kept)

        model = Answering(scaled)
        _, _, answer = ask(model, uniform(4, 6))
        assert answer.grad.abs().sum() > 0
        assert not model.kept.is_inference()

    def test_models_that_draw_noise_are_repeatable(self):
        model, x = noisy(), uniform(9, 6)
        first, second = ask(model, x)[0], ask(model, x)[0]
        assert torch.equal(first, second)
        assert not torch.equal(first, ask(model, x, seed=1)[0])


class TestCounts:
    def test_rows_are_counted_and_padding_is_not(self):
        model = Counting(mlp())
        with Query(model, batch_size=4) as query:
            query.bare_logits(uniform(9, 6))
            assert (query.forwards, query.backwards) == (9, 0)
            model.forwards = model.backwards = model.calls = 0
            query.bare_logits(uniform(9, 6))
            assert (query.forwards, model.forwards, model.calls) == (18, 12, 3)
            query.logits(uniform(3, 6))
            assert (query.forwards, model.forwards) == (21, 16)
            query.gradient(uniform(1, 6), total)
            assert (query.forwards, query.backwards) == (22, 1)
            assert (model.forwards, model.backwards) == (20, 4)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size(self, batch_size):
        with pytest.raises(SettingError, match=f"at least 1 row, got {batch_size}"):
            Query(mlp(), batch_size=batch_size)


class TestNormalisation:
    @pytest.mark.parametrize("std", [None, (0.2, 0.3, 0.4), (0.5,)])
    @pytest.mark.parametrize("mean", [None, (0.4, 0.5, 0.6), (0.5,)])
    def test_goes_before_the_model(self, mean, std):
        x = uniform(5, 3, 6, 6)
        model = convnet().double()
        shift, scale = (
            torch.tensor(v or (d,), dtype=torch.float64).reshape(-1, 1, 1) for v, d in ((mean, 0.0), (std, 1.0))
        )
        by_hand = nn.Sequential(_Affine(shift, scale), model)
        for got, expected in zip(ask(model, x, mean=mean, std=std), ask(by_hand, x), strict=True):
            if isinstance(got, torch.Tensor):
                torch.testing.assert_close(got, expected)
            else:
                torch.testing.assert_close(got.grad, expected.grad)

    def test_of_flat_inputs(self):
        model, x = mlp(), uniform(4, 6)
        mean = tuple(0.1 * i for i in range(6))
        bare, _, _ = ask(model, x, mean=mean)
        torch.testing.assert_close(bare, model(x - torch.tensor(mean)).detach())

    def test_that_does_not_fit(self):
        with pytest.raises(DataError, match="mean/std: 2 numbers for inputs with 3 channels"):
            ask(convnet(), uniform(4, 3, 6, 6), mean=(0.1, 0.2))


class _Affine(nn.Module):
    def __init__(self, shift, scale):
        super().__init__()
        self.shift, self.scale = shift, scale

    def forward(self, x):
        return (x - self.shift) / self.scale


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSED)
    def test_misbehaviour(self, name):
        make, message = REFUSED[name]
        with pytest.raises(ModelError, match=message), Query(make(), batch_size=4) as query:
            query.bare_logits(uniform(3, 6))

    def test_log_probabilities_are_logits(self):
        model = Answering(lambda m, x: m.logits(x).log_softmax(1))
        bare, _, answer = ask(model, uniform(4, 6))
        torch.testing.assert_close(bare.exp().sum(1), torch.ones(4))
        assert answer.grad.abs().sum() > 0

    def test_logits_that_happen_to_sum_to_one_in_some_rows(self):
        def answer(model, x):
            logits = model.logits(x)
            return torch.where(x[:, :1] > 0.5, logits.softmax(1), logits)

        assert ask(Answering(answer), uniform(4, 6))[0].shape == (4, 3)

    def test_classes_that_change(self):
        with Query(moving_classes(), batch_size=1) as query:
            query.bare_logits(uniform(1, 6))
            with pytest.raises(ModelError, match="returned 2 logits after 3 before"):
                query.logits(uniform(1, 6))

    def test_no_gradient(self):
        with Query(no_gradient(), batch_size=4) as query:
            query.bare_logits(uniform(4, 6))
            with pytest.raises(ModelError, match="no gradient reaches the model's input"):
                query.gradient(uniform(4, 6), total)

    def test_nan_logits_are_handed_on(self):
        x = torch.full((2, 6), 0.95)
        assert ask(nan_logits(), x)[0].isnan().all()

    def test_memory_errors_are_not_disguised(self):
        def fail(model, x):
            raise torch.OutOfMemoryError("full")

        with pytest.raises(torch.OutOfMemoryError), Query(Answering(fail), batch_size=4) as query:
            query.bare_logits(uniform(4, 6))


class TestJacobian:
    @pytest.mark.parametrize("net", NETS)
    def test_is_that_of_autograd(self, net):
        make, shape = NETS[net]
        model, x = make(), uniform(6, *shape)
        with Query(model, batch_size=8) as query:
            logits, grad = query.jacobian(x)
            torch.testing.assert_close(logits, query.logits(x), rtol=1e-4, atol=1e-6)
        assert grad.shape == (6, 5, *shape)
        assert not logits.requires_grad
        assert not grad.requires_grad
        plain, dtype = copy.deepcopy(model).eval(), next(model.parameters()).dtype
        for i in range(6):
            expected = torch.autograd.functional.jacobian(plain, x[i : i + 1].to(dtype))[0, :, 0]
            close = {"rtol": 1e-4, "atol": 1e-6} if dtype != torch.bfloat16 else {"rtol": 2e-2, "atol": 1e-3}
            torch.testing.assert_close(grad[i], expected.to(grad.dtype), **close)

    @pytest.mark.parametrize("net", NETS)
    @pytest.mark.parametrize("batch_size", [1, 5, 64])
    def test_a_row_is_the_same_in_any_place_and_company(self, net, batch_size):
        make, shape = NETS[net]
        x = uniform(batch_size, *shape)
        with Query(make(), batch_size=batch_size) as query:
            query.bare_logits(x)
            logits, grad = query.jacobian(x)
            generator = torch.Generator().manual_seed(1)
            for count in {1, 2, 5, 9, 20, 64} - set(range(batch_size + 1, 65)):
                some = torch.randperm(batch_size, generator=generator)[:count]
                got = query.jacobian(x[some])
                assert torch.equal(got[0], logits[some])
                assert torch.equal(got[1], grad[some])

    def test_counts_a_backward_for_every_logit(self):
        model = Counting(mlp())
        with Query(model, batch_size=4) as query:
            query.jacobian(uniform(3, 6))
            assert (query.forwards, query.backwards) == (3, 12)
        assert (model.forwards, model.backwards) == (4, 16)

    def test_where_it_is_no_number_it_is_zero(self):
        bad = Answering(
            lambda m, x: m.logits(x) + torch.nan * (x[:, :1] - x[:, :1].detach()).where(x[:, :1] > 0.5, 0.0)
        )
        x = uniform(6, 6)
        x[:, 0] = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.4])
        with Query(bad, batch_size=6) as query:
            _, grad = query.jacobian(x)
        expected = bad.head.weight.detach().expand(6, 3, 6).clone()
        expected[[1, 3], :, 0] = 0
        torch.testing.assert_close(grad, expected)

    def test_of_a_model_without_gradients(self):
        with Query(no_gradient(), batch_size=4) as query, pytest.raises(ModelError, match="no gradient reaches"):
            query.jacobian(uniform(4, 6))

    def test_of_a_logit_that_ignores_the_input(self):
        model = Answering(lambda m, x: torch.cat([m.logits(x)[:, :2], 0 * x[:, :1].detach()], 1))
        with Query(model, batch_size=4) as query:
            _, grad = query.jacobian(uniform(4, 6))
        assert grad[:, :2].all()
        assert not grad[:, 2].any()


class Sized(nn.Module):
    """A convolutional network whose sums are all exact, so that no shape rounds otherwise; notes how many rows it sees.

    ``twist`` makes something of the logits, the input and the number of rows.
    """

    def __init__(self, twist=lambda logits, x, rows: logits) -> None:
        super().__init__()
        self.net = convnet().double()
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_((64 * parameter).round() / 64)
        self.twist = twist
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.twist(self.net(x), x, len(x))


def sixteenths(count):
    return (16 * uniform(count, 3, 6, 6)).round() / 16


def sizes_of(model, batch_size, counts, ways=("bare_logits", "logits", "gradient", "jacobian")):
    """How many rows the model sees when it is asked of so many, once it has been tried."""
    x = sixteenths(64)
    found = []
    with Query(model, batch_size=batch_size) as query:
        query.bare_logits(x[:3])
        for count in counts:
            model.sizes.clear()
            for way in ways:
                getattr(query, way)(x[:count], *[total] * (way == "gradient"))
            assert len(set(model.sizes)) == 1
            found.append(model.sizes[0])
    return found


def _fail(logits, x, rows):
    if rows != 32:
        raise ValueError("32 rows, please")
    return logits


def _fail_below_16(logits, x, rows):
    if rows < 16:
        raise ValueError("16 rows, please")
    return logits


def _no_gradient_below_16(logits, x, rows):
    return logits.detach() if rows < 16 else logits


def _other_gradient_below_16(logits, x, rows):
    return logits + (0 if rows >= 16 else 1e-9 * (x.sum() - x.sum().detach()))


class TestShapes:
    def test_the_smallest_that_holds_the_rows(self):
        counts = [1, 7, 8, 9, 16, 17, 32, 33, 64]
        assert sizes_of(Sized(), 64, counts) == [8, 8, 8, 16, 16, 32, 32, 64, 64]

    @pytest.mark.parametrize(
        ("batch_size", "shape"), [(1, 1), (3, 4), (8, 8), (12, 12), (20, 20), (16, 8), (15, 8), (24, 12), (40, 40)]
    )
    def test_are_halves_of_whole_blocks_and_no_less_than_eight(self, batch_size, shape):
        assert sizes_of(Sized(), batch_size, [1]) == [shape]

    @pytest.mark.parametrize(
        ("twist", "shapes"),
        [
            (lambda logits, x, rows: logits + 1e-9 * rows, [32, 32, 32]),
            (lambda logits, x, rows: logits + 1e-9 * rows * (x - x.detach()).sum(), [32, 32, 32]),
            (lambda logits, x, rows: logits + 1e-9 * torch.randn_like(logits), [32, 32, 32]),
            (_fail, [32, 32, 32]),
            (_fail_below_16, [16, 16, 32]),
            (_no_gradient_below_16, [16, 16, 32]),
            (_other_gradient_below_16, [16, 16, 32]),
        ],
        ids=["logits", "gradients", "noise", "fails", "fails below 16", "cut below 16", "other gradients below 16"],
    )
    def test_that_change_the_numbers_are_not_used(self, twist, shapes):
        assert sizes_of(Sized(twist), 32, [3, 16, 20]) == shapes

    def test_of_a_model_that_cannot_be_asked_back(self):
        """Shapes are tried without gradients then, which it cannot give in any."""
        model = Sized(lambda logits, x, rows: logits.detach())
        assert sizes_of(model, 32, [3], ["bare_logits", "logits"]) == [8]

    def test_of_a_model_whose_way_back_fails(self):
        """It can be asked for logits all the same."""

        class Dead(torch.autograd.Function):
            @staticmethod
            def forward(ctx, logits):
                return logits.clone()

            @staticmethod
            def backward(ctx, grad):
                raise NotImplementedError("no way back")

        model = Sized(lambda logits, x, rows: Dead.apply(logits))
        assert sizes_of(model, 32, [3], ["bare_logits", "logits"]) == [32]

    @pytest.mark.parametrize("net", NETS)
    def test_a_row_is_the_same_in_all(self, net):
        make, shape = NETS[net]
        x = uniform(64, *shape)
        with Query(make(), batch_size=64) as query:
            bare, logits, answer = query.bare_logits(x), query.logits(x), query.gradient(x, total)
            for count in (1, 5, 8, 9, 16, 31, 40):
                some = torch.randperm(64, generator=torch.Generator().manual_seed(count))[:count]
                few = query.gradient(x[some], total)
                assert torch.equal(query.bare_logits(x[some]), bare[some])
                assert torch.equal(query.logits(x[some]), logits[some])
                assert torch.equal(few.logits, answer.logits[some])
                assert torch.equal(few.grad, answer.grad[some])

    def test_the_trial_counts_nothing_and_leaves_no_trace(self):
        model, x = Moody(), uniform(32, 6)
        before = snapshot(model)
        with Query(model, batch_size=32) as query:
            query.bare_logits(x)
            assert model.calls > 1
            assert (query.forwards, query.backwards) == (32, 0)
        assert snapshot(model) == before

    def test_one_trial_is_enough(self):
        model, x = Sized(), sixteenths(32)
        with Query(model, batch_size=32) as query:
            query.bare_logits(x)
            model.sizes.clear()
            query.bare_logits(x)
        assert model.sizes == [32]

    def test_nothing_to_try_with(self):
        with Query(Sized(), batch_size=32) as query:
            assert query.logits(sixteenths(2)).shape == (2, 5)


POOLS = {
    "module": nn.MaxPool2d(2),
    "functional": lambda x: functional.max_pool2d(x, 2),
    "torch": lambda x: torch.max_pool2d(x, 2),
    "average": nn.AvgPool2d(2),
    "adaptive": nn.AdaptiveMaxPool2d(3),
}
OTHERS = {"none": nn.Identity(), "stride": lambda x: x[..., ::2, ::2], "flat": lambda x: functional.max_pool1d(x, 2)}


class TestLayout:
    @pytest.mark.parametrize("pool", [*POOLS, *OTHERS])
    def test_channels_last_exactly_where_the_network_pools(self, pool):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = seeded(lambda: nn.Conv2d(3, 4, 3, padding=1))
                self.strides = []

            def forward(self, x):
                self.strides.append(x.stride(1))
                features = self.conv(x)
                features = {**POOLS, **OTHERS}[pool](features.flatten(2) if pool == "flat" else features)
                return features.flatten(1)[:, :9]

        model, x = Net(), uniform(4, 3, 6, 6)
        with Query(model, batch_size=4) as query:
            query.bare_logits(x)
            model.strides.clear()
            bare = query.bare_logits(x)
            assert query.channels_last == (pool in POOLS)
            logits, answer = query.logits(x), query.gradient(x, total)
            # Verdicts are taken in the plain layout, the search's queries in the chosen one.
            query.bare_logits(query.prepare(x))
        last = 1 if pool in POOLS else 36
        assert model.strides == [36, last, last, 36]
        torch.testing.assert_close(logits, bare)
        plain = x.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(total(Net()(plain)).sum(), plain)
        torch.testing.assert_close(answer.grad, grad)

    def test_inputs_in_any_layout_are_the_same_inputs(self):
        model, x = convnet(), uniform(5, 3, 6, 6)
        forms = [x.contiguous(memory_format=torch.channels_last), x.repeat(1, 1, 1, 2)[..., :6], x.flip(3).flip(3)]
        expected = ask(model, x)
        for form in forms:
            bare, logits, answer = ask(model, form)
            assert torch.equal(bare, expected[0])
            assert torch.equal(logits, expected[1])
            assert torch.equal(answer.grad, expected[2].grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"std": (1.0, 0.0)}, "scale"), ({"std": (-1.0,)}, "scale"), ({"seed": -1}, "seed"), ({"seed": 2**64}, "seed")],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(SettingError, match=message):
        Query(mlp(), **options)
