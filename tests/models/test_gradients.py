"""The quicker input gradients equal PyTorch's own, and take over exactly where they are understood."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.zoo import convnet, seeded, uniform
from holdfast.models import gradients
from holdfast.models.gradients import InputGradients, phases
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin

KINDS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 4, "stride": 2, "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 2, "stride": 3},
    {"kernel_size": 2, "stride": 3, "padding": 1},
    {"kernel_size": 5, "stride": 3, "padding": 4},
    {"kernel_size": 7, "stride": 4, "padding": 3},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "bias": False},
    {"kernel_size": (2, 5), "stride": (3, 1), "padding": (1, 2)},
]
LEFT_TO_PYTORCH = [
    {"kernel_size": 3, "stride": 2, "dilation": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "stride": 2, "groups": 2},
]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def conv(channels, dtype=torch.float64, **kind):
    return seeded(lambda: nn.Conv2d(channels, 6, dtype=dtype, **kind)).requires_grad_(False)


def pull(output, x, seed=1):
    towards = uniform(*output.shape, seed=seed, dtype=output.dtype)
    return torch.autograd.grad(output, x, towards, retain_graph=True)[0]


def counted(patch):
    """Notes which way each backward pass goes."""
    went = []
    for name in ("by_columns", "by_phases"):
        way = getattr(gradients, name)
        patch.setattr(gradients, name, lambda *args, name=name, way=way: went.append(name) or way(*args))
    return went


class TestConvolutions:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("channels", [1, 2, 3, 5])
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_have_the_gradient_they_have(self, kind, channels, layout):
        # Sizes at which the last window ends at the far edge, or leaves one pixel or more unread.
        for size in ((9, 8), (8, 11), (10, 7), (5, 6)):
            layer = conv(channels, **kind)
            x = uniform(3, channels, *size, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
            x.requires_grad_(True)
            plain = layer(x)
            with InputGradients():
                quick = layer(x)
            assert torch.equal(quick, plain)
            torch.testing.assert_close(pull(quick, x), pull(plain, x), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_to_the_rounding_of_single_precision(self, kind):
        layer = conv(3, torch.float32, **kind)
        x = uniform(3, 3, 9, 8).requires_grad_(True)
        with InputGradients():
            grad = pull(layer(x), x)
        exact = layer.double()
        x = x.detach().double().requires_grad_(True)
        torch.testing.assert_close(grad.double(), pull(exact(x), x), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("channels", "kind", "expected"),
        [
            (1, {"kernel_size": 3}, ["by_columns"]),
            (1, {"kernel_size": 4, "stride": 2}, ["by_columns"]),
            (3, {"kernel_size": 3}, ["by_columns"]),
            (4, {"kernel_size": 3}, []),
            (3, {"kernel_size": 3, "stride": 2}, ["by_phases"]),
            (8, {"kernel_size": 3, "stride": 2}, ["by_phases"]),
            (9, {"kernel_size": 3, "stride": 2}, []),
            (16, {"kernel_size": 4, "stride": 2}, ["by_phases"]),
            (16, {"kernel_size": 1, "stride": 2}, ["by_phases"]),
            (17, {"kernel_size": 4, "stride": 2}, []),
            *((2, kind, []) for kind in LEFT_TO_PYTORCH),
        ],
        ids=str,
    )
    def test_go_the_quicker_way_where_there_is_one(self, channels, kind, expected):
        layer = conv(channels, **kind)
        x = uniform(2, channels, 9, 9, dtype=torch.float64).requires_grad_(True)
        with pytest.MonkeyPatch.context() as patch:
            went = counted(patch)
            with InputGradients():
                output = layer(x)
            grad = pull(output, x)
        assert went == expected
        torch.testing.assert_close(grad, pull(layer(x), x))

    def test_weights_that_want_gradients_get_them(self):
        x = uniform(2, 1, 6, 6, dtype=torch.float64).requires_grad_(True)
        for frozen in ([], ["weight"], ["bias"]):
            layer = seeded(lambda: nn.Conv2d(1, 4, 3, dtype=torch.float64))
            for name in frozen:
                getattr(layer, name).requires_grad_(False)
            wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
            expected = torch.autograd.grad(layer(x).sin().sum(), wanted)
            with InputGradients():
                output = layer(x).sin().sum()
            for got, value in zip(torch.autograd.grad(output, wanted), expected, strict=True):
                torch.testing.assert_close(got, value)

    def test_a_weight_that_has_changed_is_read_again(self):
        layer, x = conv(2, kernel_size=4, stride=2), uniform(2, 2, 8, 8, dtype=torch.float64).requires_grad_(True)
        mode = InputGradients()
        for _ in range(3):
            with mode:
                output = layer(x)
            torch.testing.assert_close(pull(output, x), pull(layer(x), x))
            layer.weight.mul_(-1.5)

    def test_one_weight_with_several_strides(self):
        layer, x = conv(2, kernel_size=4, stride=2), uniform(2, 2, 9, 9, dtype=torch.float64).requires_grad_(True)
        strides = (2, 3, (2, 1), 2)
        mode = InputGradients()
        with mode:
            quick = [functional.conv2d(x, layer.weight, None, stride) for stride in strides]
        for output, stride in zip(quick, strides, strict=True):
            plain = functional.conv2d(x, layer.weight, None, stride)
            torch.testing.assert_close(pull(output, x), pull(plain, x))

    def test_weights_made_for_one_pass_are_not_kept(self):
        mode, x = InputGradients(), uniform(2, 1, 6, 6).requires_grad_(True)
        for kernel in (1, 3):
            weight = uniform(4, 1, kernel, kernel)
            gone = weakref.ref(weight)
            with mode:
                torch.autograd.grad(functional.conv2d(x, weight).sum(), x)
            del weight
            gc.collect()
            assert gone() is None

    def test_may_be_differentiated_again(self):
        for channels, kind in ((1, {"kernel_size": 3}), (2, {"kernel_size": 3, "stride": 2})):
            layer = conv(channels, **kind)
            x = uniform(2, channels, 7, 7, dtype=torch.float64).requires_grad_(True)
            seconds = []
            for mode in (InputGradients(), torch.enable_grad()):
                with mode:
                    output = layer(x).pow(3).sum()
                (grad,) = torch.autograd.grad(output, x, create_graph=True)
                seconds.append(torch.autograd.grad(grad.pow(2).sum(), x)[0])
            torch.testing.assert_close(*seconds)

    @pytest.mark.parametrize("channels", [1, 2])
    def test_within_function_transforms(self, channels):
        layer, x = conv(channels, kernel_size=3, stride=2), uniform(2, channels, 7, 7, dtype=torch.float64)

        def value(x):
            return layer(x).pow(2).sum()

        x.requires_grad_(True)
        expected = torch.func.grad(value)(x)
        with InputGradients():
            got = torch.func.grad(value)(x)
        torch.testing.assert_close(got, expected)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_under_autocast(self, channels):
        layer, x = conv(channels, torch.float32, kernel_size=3, stride=2), uniform(2, channels, 7, 7)
        x.requires_grad_(True)
        with InputGradients(), torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
        assert output.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(pull(output, x), pull(layer(x), x))


def test_phases_of_a_kernel_by_hand():
    weight = torch.arange(9.0).reshape(1, 1, 3, 3)
    # Every second element from (0, 0), (0, 1), (1, 0) and (1, 1), backwards.
    by_hand = [[[8, 6], [2, 0]], [[0, 7], [0, 1]], [[0, 0], [5, 3]], [[0, 0], [0, 4]]]
    assert phases(weight, (2, 2)).squeeze(1).tolist() == by_hand


class TestPooling:
    @pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(3)])
    def test_has_the_same_gradient_at_ties_too(self, pool):
        x = uniform(3, 5, 7, 6).mul(3).round().div(3).contiguous(memory_format=torch.channels_last)
        x.requires_grad_(True)
        plain = pool(x)
        with InputGradients():
            quick = pool(x)
        towards = uniform(*plain.flatten(1).shape, seed=1)
        expected, got = (torch.autograd.grad(out.flatten(1), x, towards)[0] for out in (plain, quick))
        assert torch.equal(quick, plain)
        assert torch.equal(got, expected)
        contiguous = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)
        (default,) = torch.autograd.grad(pool(contiguous).flatten(1), contiguous, towards)
        torch.testing.assert_close(got, default)

    def test_gets_gradients_in_its_own_layout(self):
        x = uniform(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_(True)
        strides = []
        with InputGradients():
            pooled = functional.max_pool2d(x, 2)
        pooled.register_hook(lambda grad: strides.append(grad.stride()))
        pooled.flatten(1).sum().backward()
        assert strides == [(12, 1, 6, 3)]


class TestQuery:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        ("channels", "net"),
        [
            (1, lambda: [nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)]),
            (3, lambda: [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 2, 2), nn.Flatten(), nn.Linear(10, 3)]),
            (3, lambda: [nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.ELU(), nn.Flatten(), nn.Linear(8, 3)]),
        ],
    )
    def test_goes_the_quicker_way_and_says_the_same(self, channels, net, dtype):
        model = seeded(lambda: nn.Sequential(*net())).to(dtype)
        x, y = uniform(7, channels, 6, 8, dtype=dtype), torch.arange(7) % 3
        plain, inputs = copy.deepcopy(model), x.clone().requires_grad_(True)
        (expected,) = torch.autograd.grad(margin(plain(inputs), y).sum(), inputs)
        every = torch.stack([torch.autograd.grad(plain(inputs)[:, k].sum(), inputs)[0] for k in range(3)], 1)
        with pytest.MonkeyPatch.context() as patch, Query(model, batch_size=7) as query:
            bare = query.bare_logits(x)
            went = counted(patch)
            answer = query.gradient(x, lambda logits: margin(logits, y))
            assert went
            count = len(went)
            _, jacobian = query.jacobian(x)
            assert len(went) == 4 * count
            assert torch.equal(query.bare_logits(x), bare)
        torch.testing.assert_close(answer.grad, expected)
        torch.testing.assert_close(jacobian, every)
        assert torch.equal(bare, plain(x).detach())

    @pytest.mark.parametrize("batch_size", [1, 5, 32])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_row_has_its_gradient_in_any_company(self, channels, batch_size):
        layers = [nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten()]
        model = seeded(lambda: nn.Sequential(*layers, nn.Linear(144, 4)))
        x = uniform(32, channels, 12, 12)
        with Query(model, batch_size=batch_size) as query:
            query.bare_logits(x)
            alone = torch.cat([query.gradient(row, lambda logits: logits[:, 0]).grad for row in x.split(1)])
            generator = torch.Generator().manual_seed(0)
            for count in range(1, batch_size + 1, 3):
                some = torch.randperm(32, generator=generator)[:count]
                assert torch.equal(query.gradient(x[some], lambda logits: logits[:, 0]).grad, alone[some])

    def test_hooks_of_the_model_see_every_pass(self):
        model, x = convnet(1), uniform(4, 1, 6, 6)
        seen = []
        model[0].register_forward_hook(lambda *_: seen.append("forward"))
        model[0].register_full_backward_hook(lambda *_: seen.append("backward"))
        with Query(model, batch_size=4) as query:
            query.bare_logits(x)
            seen.clear()
            query.gradient(x, lambda logits: logits.sum(1))
        assert seen == ["forward", "backward"]

    def test_outside_the_query_nothing_is_changed(self):
        model, x = convnet(1), uniform(4, 1, 6, 6).requires_grad_(True)
        with Query(model, batch_size=4) as query:
            query.bare_logits(x)
            query.gradient(x, lambda logits: logits.sum(1))
        with pytest.MonkeyPatch.context() as patch:
            went = counted(patch)
            model(x).sum().backward()
        assert not went
        assert all(parameter.grad is not None for parameter in model.parameters())
