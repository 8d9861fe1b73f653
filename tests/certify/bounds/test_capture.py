"""Graphs compute what models do, and what cannot be captured is refused in one line that names the node."""

import contextlib
import math
import runpy

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.onnx_graphs import node, save, truth
from helpers.shared import SHARED, needs_shared
from helpers.tiny import Fn, norm
from helpers.zoo import Moody, convnet, seeded, uniform
from holdfast import Linf, ModelError
from holdfast.certify import output_bounds
from holdfast.certify.bounds.capture import capture, tensors, trace
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.region import Region
from holdfast.models import load_model, load_onnx


def fault(model, x):
    with pytest.raises(ModelError) as raised:
        capture(model, x)
    message = str(raised.value)
    assert "\n" not in message
    return message


X = uniform(4, 6)

FAULTS = {
    "tan": (lambda x, head: head(x.tan()), "no bound is known for node 'tan' (tan.default)"),
    "cumprod": (lambda x, head: head(x.cumprod(1)), "no bound is known for node 'cumprod' (cumprod.default)"),
    "all masked": (lambda x, head: head(x).masked_fill(torch.ones(3).bool(), -torch.inf).softmax(1), "is masked"),
    "other pixels": (
        lambda x, head: functional.interpolate(x.unsqueeze(1), size=74).flatten(1)[:, :2],
        "'upsample_nearest1d'",
    ),
    "control flow": (lambda x, head: head(x) if x.sum() > 0 else -head(x), "must not depend on values"),
    "nonzero": (
        lambda x, head: head(x[x > 0.5].reshape(-1, 6)),
        "it picks values by others that depend on the network's",
    ),
    "centred": (lambda x, head: head(x - x.mean(0)), "node 'mean' (mean.dim): it works along the batch"),
    "centred, keeping": (lambda x, head: head(x - x.mean(0, keepdim=True)), "it works along the batch"),
    "all sums": (lambda x, head: head(x) + x.mean(), "mean"),
    "sorted batch": (lambda x, head: head(x.flip(0)), "node 'flip' (flip.default): it works along the batch"),
    "first row": (lambda x, head: head(x - x[0]), "node 'select' (select.int): it works along the batch"),
    "first rows": (lambda x, head: head(x - x[:1]), "rows of a batch depend on one another"),
    "softmax of the batch": (lambda x, head: head(x.softmax(0)), "it works along the batch"),
    "batch statistics": (
        lambda x, head: head(functional.batch_norm(x, None, None, training=True)),
        "the network normalises by the statistics of the batch, which ties the rows together",
    ),
    "fixed rows": (lambda x, head: head(x + torch.arange(24.0).view(4, 6)[: len(x)]), "depend on one another"),
    "dropout": (lambda x, head: head(functional.dropout(x, 0.5, True)), "it drops values at random"),
    "noise": (lambda x, head: head(x) + torch.rand(3), "draws random numbers"),
    "noise like": (lambda x, head: head(x + torch.rand_like(x)), "rand"),
    "two outputs": (lambda x, head: (head(x), x), "the network returns 2 values"),
    "a vector": (lambda x, head: head(x).sum(1), "the network returns a tensor of shape (3,) for 3 inputs"),
    "an image": (lambda x, head: head(x).unsqueeze(2), "the network returns a tensor of shape (3, 3, 1) for 3 inputs"),
    "a constant": (lambda x, head: head.bias.unsqueeze(0), "does not depend on its input"),
    "a power": (lambda x, head: head(x**math.inf), "node 'pow_1' (pow.Tensor_Scalar): the power inf is not bounded"),
    "weights from the input": (
        lambda x, head: functional.linear(head(x), x[:, :3].T @ x[:, :3]),
        "only products of matrices",
    ),
    "whole numbers": (
        lambda x, head: head(x + (9 * x).long()),
        "it makes torch.int64 of what depends on the network's input",
    ),
    "half precision": (lambda x, head: head((x.half() * 2).float()), "it computes in torch.float16, and the network"),
    "rounded on the way": (
        lambda x, head: head(x).double().softmax(1, dtype=torch.float32),
        "'softmax' (softmax.int): it rounds to torch.float32 on the way",
    ),
    "true plus true": (lambda x, head: head(x * ((x > 0.3) + (x > 0.6))), "it computes in torch.bool"),
    "small whole numbers": (lambda x, head: head(x * ((x > 0.3).byte() - 1)), "it computes in torch.uint8"),
    "numbers for truth": (lambda x, head: head(x * torch.logical_and(x, x > 0.3)), "compare them with 0"),
    "a mask among the scores": (
        lambda x, head: head((-1e6 * x).masked_fill(torch.arange(6) == 2, -1e4).softmax(1)),
        "a softmax masks scores by a number that is not far below the others",
    ),
    "decimals": (lambda x, head: head(x.round(decimals=1)), "it rounds to decimals"),
    "an error of its own": (lambda x, head: head(x[:, :2]), "cannot be captured: RuntimeError"),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_faults_name_the_node(name):
    forward, message = FAULTS[name]
    assert message in fault(Fn(forward, nn.Linear(6, 3)), X)


def test_a_fault_names_the_module():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), Fn(torch.tan), nn.Linear(4, 2))
    assert "in module '2'; " in fault(model, X)


def test_an_input_that_may_be_left_out_is_left_out():
    class Two(nn.Module):
        def forward(self, x, y=None):
            return x if y is None else x + y

    assert capture(Two(), X)(X).equal(X)


def test_a_model_is_given_back_as_it_was():
    model = Moody()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    required = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    with contextlib.suppress(ModelError):
        capture(model, uniform(2, 6))
    assert all(value.equal(before[name]) or value.isnan().any() for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert torch.get_rng_state().equal(state)


def test_a_model_is_captured_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 3)).train()
    graph = capture(model, X)
    assert model.training
    torch.testing.assert_close(graph(X), model.eval()(X))


def test_a_graph_keeps_its_weights_and_a_program_has_none():
    """One tracing serves all values of the weights, those that a graph folds together included."""
    model = nn.Sequential(convnet(), nn.BatchNorm1d(5, affine=True))
    x = uniform(4, 3, 6, 6)
    model.train()(x)
    kept, program = capture(model, x), trace(model, x)
    before = kept(x)
    for scale in (1.1, 0.9):
        with torch.no_grad():
            for value in (value for value in tensors(model).values() if value.is_floating_point()):
                value *= scale
        graph = program.graph(tensors(model))
        torch.testing.assert_close(graph(x), model.eval()(x))
        parameters = list(model.parameters())
        mine, theirs = (torch.autograd.grad(f(x).square().sum(), parameters) for f in (graph, model))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept(x), before, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_any_number_of_rows(rows):
    model = convnet()
    graph = capture(model, uniform(rows, 3, 6, 6))
    torch.testing.assert_close(graph(uniform(9, 3, 6, 6)), model(uniform(9, 3, 6, 6)))


def test_constants_keep_their_precision():
    model = Fn(lambda x, head: head(x * 0.1 + torch.tensor(0.3, dtype=x.dtype)), nn.Linear(6, 3)).double()
    x = X.double()
    torch.testing.assert_close(capture(model, x)(x), model(x), rtol=1e-15, atol=1e-15)


def test_an_onnx_file(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 1, 3, 3, generator=generator).numpy()
    matrix = torch.randn(18, 3, generator=generator).numpy()
    nodes = [
        node("Conv", "x w", "a", kernel_shape=[3, 3], pads=[0, 1, 1, 0]),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[1, 1]),
        node("Flatten", "c", "d"),
        node("MatMul", "d m", "y"),
    ]
    path = save(tmp_path / "net.onnx", nodes, (1, 1, 4, 4), w=weight, m=matrix)
    x = uniform(3, 1, 4, 4)
    graph = capture(load_onnx(path), x)
    torch.testing.assert_close(graph(x), truth(path, x, rows=1), rtol=1e-5, atol=1e-5)


def test_an_exported_program(tmp_path):
    model = convnet()
    x = uniform(2, 3, 6, 6)
    rows = torch.export.Dim("rows", min=1, max=64)
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: rows},)), tmp_path / "net.pt2")
    torch.testing.assert_close(capture(load_model(str(tmp_path / "net.pt2"), trust=True), x)(x), model(x))


PUBLISHED = {
    "convexadv_linf0.1.pth": ("mnist_conv_small", (1, 28, 28)),
    "advertorch_lenet5_clean.pt": ("mnist_lenet5", (1, 28, 28)),
    "abcrown_cifar_conv_small_pgd.pth": ("cifar_conv_small", (3, 32, 32)),
    "abcrown_resnet2b.pth": ("cifar_resnet2b", (3, 32, 32)),
    "oval21_cifar_base_kw.pth": ("cifar_base_kw", (3, 32, 32)),
}


@needs_shared
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_networks(name):
    factory, shape = PUBLISHED[name]
    model = runpy.run_path(str(SHARED / "models" / "nets.py"))[factory]()
    state = torch.load(SHARED / "models" / name, weights_only=True, map_location="cpu")
    state = state["state_dict"] if isinstance(state, dict) and "state_dict" in state else state
    model.load_state_dict(state[0] if isinstance(state, list) else state)
    x = uniform(3, *shape)
    torch.testing.assert_close(capture(model, x)(x), model.eval()(x), rtol=1e-4, atol=1e-4)


@needs_shared
@pytest.mark.parametrize("name", ["mnist-net_256x2.onnx", "resnet_2b.onnx", "cifar_base_kw.onnx"])
def test_published_onnx_files(name):
    path = SHARED / "models" / name
    model = load_onnx(path)
    x = uniform(2, *model.input_shape)
    torch.testing.assert_close(capture(model, x)(x), truth(path, x, rows=1), rtol=1e-4, atol=1e-4)


class Residual(nn.Module):
    """``activation(norm(conv(x)) + x)``, in place wherever it can be."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False), norm(nn.BatchNorm2d(2)))
        self.activation = activation

    def forward(self, x):
        y = self.body(self.activation(self.body(x)))
        y += x
        return self.activation(y)


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.Hardsigmoid(inplace=True))

    def forward(self, x):
        return x * self.gate(x)


class Recurrent(nn.Module):
    """The last step of a recurrent layer over the rows of an image."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = layer(10, 4, batch_first=True)

    def forward(self, x):
        return self.layer(x.flatten(2).view(len(x), 5, 10))[0][:, -1]


STYLES = {
    "relu": lambda: Residual(nn.ReLU(inplace=True)),
    "relu6": lambda: Residual(nn.ReLU6(inplace=True)),
    "leaky relu": lambda: Residual(nn.LeakyReLU(0.1, inplace=True)),
    "silu": lambda: Residual(nn.SiLU(inplace=True)),
    "gated hardswish": lambda: nn.Sequential(Residual(nn.Hardswish(inplace=True)), Gated()),
    "softsign and dropout": lambda: nn.Sequential(Residual(nn.Softsign()), nn.Dropout2d(0.5)),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
}


@pytest.mark.parametrize("name", list(STYLES))
def test_networks_as_people_write_them(name):
    net = seeded(lambda: nn.Sequential(STYLES[name](), nn.Flatten(), nn.LazyLinear(3)))
    x = uniform(2, 2, 5, 5)
    net(x)
    points = 20 * uniform(50, 2, 5, 5, seed=1) - 10
    torch.testing.assert_close(capture(net, x)(points), net(points), rtol=1e-4, atol=1e-4)


def test_parts_in_double_precision():
    """They are exact beside the rest, and their weights are those of the graph as precisely as it holds them."""
    net = seeded(lambda: nn.Sequential(Fn(torch.Tensor.double), nn.Linear(6, 4).double(), Fn(torch.Tensor.float)))
    graph = capture(net, X)
    torch.testing.assert_close(graph(X), net(X), rtol=0, atol=1e-6)
    low, high = crown(graph, Region.box(X, X)).intervals[-1]
    assert bool(((low <= net(X)) & (net(X) <= high)).all())


def test_constants_take_the_type_of_the_input():
    net = seeded(lambda: Fn(lambda x, head: head(x * torch.arange(6).type_as(x).to(x)), nn.Linear(6, 3)))
    torch.testing.assert_close(capture(net, X)(X), net(X))


def test_batch_statistics_at_test_time_are_refused():
    for net in (
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten()),
    ):
        assert "normalises by the statistics of the batch" in fault(net, X)


def _fill(x):
    h = x.clone()
    h[:, 0] = 0.1
    return h


def _copy(x):
    h = x.clone()
    h[:, :] = torch.tensor([0.1, 0.7], dtype=torch.float64)
    return h


# What float32 holds of a number is what a network computes with: nothing, infinity, or the nearest one.
NUMBERS = {
    "divided by infinity": (lambda x: x / 1e39 * 1e38, 1.0),
    "times nothing": (lambda x: x * 1e-46 * 1e38, 1e30),
    "times few bits": (lambda x: (x * 1e-44).relu() * 1e38, 1e6),
    "a number of its own": (lambda x: x * torch.tensor(1e-44, dtype=torch.float64) * 1e38, 1e6),
    "a sum of constants": (lambda x: 0 * x + torch.full_like(x, 0.1).repeat(1, 500).sum(1, keepdim=True), 1.0),
    "filled": (_fill, 1.0),
    "copied": (_copy, 1.0),
    "beside it": (lambda x: torch.cat([x, torch.full_like(x, 0.1)], 1), 1.0),
    "instead": (lambda x: torch.where(x > 2, x, 0.1), 1.0),
}


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_those_that_the_network_computes_with(name, precision):
    function, size = NUMBERS[name]
    x = torch.tensor([[1.0, 1.5]]) * size
    net = Fn(function)
    graph = capture(net, x).to(precision)
    region = Region.box(x.to(precision), x.to(precision))
    for low, high in (interval_bounds(graph, region)[-1], crown(graph, region).intervals[-1]):
        assert bool((low <= net(x)).all())
        assert bool((high >= net(x)).all())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["filled", "copied", "beside it", "instead"])
def test_so_it_is_in_half_precisions(name, precision):
    function, _ = NUMBERS[name]
    x, net = torch.tensor([[1.0, 1.5]], dtype=precision), Fn(function)
    (low, high) = interval_bounds(capture(net, x).to(torch.float64), Region.box(x.double(), x.double()))[-1]
    assert bool((low <= net(x)).all())
    assert bool((high >= net(x)).all())


def test_a_factor_may_lose_bits_where_it_is_made_in_steps():
    x, norm = torch.full((1, 3), 1e30), nn.BatchNorm1d(3).eval()
    norm.weight.data[:] = torch.tensor([1e-40, 1e-42, 1e-44])
    norm.running_var[:] = 7
    (low, high) = interval_bounds(capture(norm, x).to(torch.float64), Region.box(x.double(), x.double()))[-1]
    assert bool((low <= norm(x)).all())
    assert bool((high >= norm(x)).all())


@pytest.mark.parametrize("function", [lambda x: 1 / x.abs(), lambda x: x.square().rsqrt()], ids=["size", "root"])
def test_the_sign_of_a_zero_is_that_of_the_model(function):
    net = Fn(lambda x: function(x).clamp(0, 10))
    x = torch.tensor([[0.9]])  # 0 is among the inputs that the graph is compared at
    graph = capture(net, x)
    zeros = torch.tensor([[0.0], [-0.0]])
    assert torch.equal(graph(zeros), net(zeros))


def test_a_softmax_of_one_number_is_1():
    graph = capture(Fn(lambda x: x.softmax(1)), torch.zeros(1, 1))
    region = Region.box(torch.zeros(1, 1), torch.ones(1, 1))
    for low, high in (interval_bounds(graph, region)[-1], crown(graph, region).intervals[-1]):
        assert 1 - 1e-6 < float(low) <= 1 <= float(high) < 1 + 1e-6


@pytest.mark.parametrize("large", [1e6, 1e20])
def test_shifts_that_cancel_are_captured_one_by_one(large):
    net, x = Fn(lambda x: x + large - large), torch.rand(3, 4)
    graph = capture(net, x)
    assert torch.equal(graph(x), net(x))
    for end, sign in zip(interval_bounds(graph, Region.box(x, x))[-1], (1, -1), strict=True):
        assert bool((sign * end <= sign * net(x)).all())


PADDED = {
    "uneven": ((2, 7, 7), lambda x: functional.max_pool2d(functional.pad(x, (0, 1, 1, 0), value=-torch.inf), 3, 2)),
    "twice": ((2, 7, 7), lambda x: functional.max_pool2d(functional.pad(x, (1, 0, 1, 0), value=-torch.inf), 3, 2, 1)),
    "ceil": (
        (2, 6, 7),
        lambda x: functional.max_pool2d(
            functional.pad(x, (1, 0, 0, 1), value=-torch.inf), (3, 2), 2, dilation=(2, 1), ceil_mode=True
        ),
    ),
    "1d": ((2, 7), lambda x: functional.max_pool1d(functional.pad(x, (2, 1), value=-torch.inf), 3, 2)),
    "viewed": (
        (3, 7),
        lambda x: functional.max_pool2d(functional.pad(x, (1, 0), value=-torch.inf).unsqueeze(1), (3, 2), 1, (1, 0)),
    ),
    "3d": ((1, 3, 4, 3), lambda x: functional.max_pool3d(functional.pad(x, (1, 0) * 3, value=-torch.inf), 2, 2)),
}


@pytest.mark.parametrize("name", PADDED)
def test_maxima_beside_minus_infinity_are_bounded_by_what_is_inside(name):
    shape, function = PADDED[name]
    model = nn.Sequential(Fn(function), nn.Flatten())
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    # A maximum moves by what moves its terms.
    for method in ("ibp", "crown"):
        found = output_bounds(model, x, Linf(0.01, box=None), method=method)
        torch.testing.assert_close(found.lower, model(x) - 0.01, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.upper, model(x) + 0.01, atol=1e-5, rtol=0)


def test_a_window_of_padding_alone_is_refused():
    model = nn.Sequential(
        Fn(lambda x: functional.max_pool1d(functional.pad(x, (2, 0), value=-torch.inf), 2)), nn.Flatten()
    )
    with pytest.raises(ModelError, match="outside of the map"):
        capture(model, torch.rand(1, 1, 4))


def test_padding_may_name_the_batch_and_leave_it_alone():
    model = nn.Sequential(Fn(lambda x: functional.pad(x, (1, 0, 0, 2, 0, 0))), nn.Flatten())
    x = torch.rand(2, 3, 4)
    torch.testing.assert_close(capture(model, x)(x), model(x))
    with pytest.raises(ModelError, match="pads the batch"):
        capture(nn.Sequential(Fn(lambda x: functional.pad(x, (1, 0, 0, 2, 0, 1))[:-1]), nn.Flatten()), x)


@pytest.mark.parametrize("mixed", ["product", "log-sum-exp"])
def test_sums_of_many_terms_are_bounded(mixed):
    """So many that they are summed by blocks."""
    function = {
        "product": lambda x: (x @ x.transpose(1, 2) @ x).flatten(1),
        "log-sum-exp": lambda x: x.logsumexp(2),
    }[mixed]
    x = torch.rand(2, 12, 15, generator=torch.Generator().manual_seed(0))
    shape = function(x).shape[1]
    model = nn.Sequential(Fn(function), nn.Linear(shape, 3))
    found = output_bounds(model, x, Linf(1e-3, box=None))
    noise = torch.rand(200, *x.shape, generator=torch.Generator().manual_seed(1)) * 2e-3 - 1e-3
    for offset in noise:
        value = model(x + offset)
        assert (found.lower <= value).all()
        assert (value <= found.upper).all()
