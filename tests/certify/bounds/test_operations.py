"""Backward passes of operations against autograd, and planes against samples, on windows of feature maps."""

import pytest
import torch
from torch import nn

from helpers.tiny import KINDS, random_region, tiny
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.graph import Interval
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.operations.convolution import Convolution
from holdfast.certify.bounds.operations.logsumexp import LogSumExp
from holdfast.certify.bounds.operations.pooling import MaxPool
from holdfast.certify.bounds.operations.product import MatrixProduct
from holdfast.certify.bounds.rows import Rows


def random_rows(shape, count, generator):
    """Rows of a value, of a feature map those of a random window."""
    values = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    if len(shape) != 3:
        return Rows.whole(values)
    ends = []
    for size in shape[1:]:
        start = int(torch.randint(size, (), generator=generator))
        ends.append((start, int(torch.randint(start, size, (), generator=generator)) + 1))
    (top, bottom), (left, right) = ends
    return Rows(values[:, :, top:bottom, left:right], ((top, bottom), (left, right)))


def check_linear(node, shapes, generator, note):
    rows = random_rows(node.shape, 5, generator)
    before, constant = node.operation.backward(rows, None, shapes)
    inputs = [torch.randn(5, *shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    value = (node.operation.apply(*inputs) * rows.full(node.shape)).flatten(1).sum(1)
    expected = torch.autograd.grad(value.sum(), inputs)
    for part, truth, shape in zip(before, expected, shapes, strict=True):
        torch.testing.assert_close(part.full(shape), truth, rtol=1e-9, atol=1e-9, msg=note)
    linear = sum((x * truth).flatten(1).sum(1) for x, truth in zip(inputs, expected, strict=True))
    shift = torch.zeros(5).double() if constant is None else constant
    torch.testing.assert_close(value - linear, shift.expand(5), rtol=1e-9, atol=1e-8, msg=note)


def check_planes(node, shapes, intervals, generator, note):
    """Bounds of 3 rows for each example hold at corners and samples of the inputs' intervals."""
    examples = len(intervals[0].lower)
    rows = random_rows(node.shape, 3 * examples, generator)
    before, constant = node.operation.backward(rows, node.operation.relax(*intervals), shapes)
    coefficients = rows.full(node.shape).unflatten(0, (examples, 3)).flatten(2)
    for sample in range(20):
        inputs = []
        for low, high in intervals:
            share = torch.rand(low.shape, generator=generator, dtype=torch.float64)
            share = share.round() if sample % 3 == 0 else share
            inputs.append(low + share * (high - low))
        value = (node.operation.apply(*inputs).flatten(1).unsqueeze(1) * coefficients).sum(2)
        bound = constant.view(examples, 3)
        for part, shape, x in zip(before, shapes, inputs, strict=True):
            bound = bound + (part.full(shape).unflatten(0, (examples, 3)) * x.unsqueeze(1)).flatten(2).sum(2)
        slack = 1e-9 * (1 + float(value.abs().max()) + float(bound.abs().max()))
        assert bool((bound <= value + slack).all()), f"{note}: {float((bound - value).max())} above"


@pytest.mark.parametrize("kind", list(KINDS))
def test_backward_passes(kind):
    for seed in range(3):
        net = tiny(kind, seed)
        region = random_region(net.shape, seed)
        graph = capture(net.model, region.center)
        found = interval_bounds(graph, region)
        generator = torch.Generator().manual_seed(seed)
        for node in graph.nodes[1:]:
            shapes, note = graph.inputs_of(node), f"{net.label}, node {node.name}"
            if node.operation.linear:
                check_linear(node, shapes, generator, note)
            else:
                check_planes(node, shapes, [found[i] for i in node.inputs], generator, note)


def test_intervals_of_linear_operations_are_attained():
    """Each end is the value at a corner of the inputs' box."""
    for kind in KINDS:
        net = tiny(kind, 1)
        region = random_region(net.shape, 1)
        graph = capture(net.model, region.center)
        found = interval_bounds(graph, region)
        for node in graph.nodes[1:]:
            if not node.operation.linear or len(node.inputs) > 1:
                continue
            ((low, high),) = (found[i] for i in node.inputs)
            for entry in {0, torch.Size(node.shape).numel() - 1}:
                x = low.clone().requires_grad_(True)
                (grad,) = torch.autograd.grad(node.operation.apply(x).flatten(1)[:, entry].sum(), x)
                corner = node.operation.apply(torch.where(grad > 0, low, high)).flatten(1)[:, entry]
                reach = float(torch.maximum(low.abs(), high.abs()).max()) + 1
                torch.testing.assert_close(
                    node.operation.interval(Interval(low, high)).lower.flatten(1)[:, entry],
                    corner, rtol=1e-9, atol=1e-9 * reach, msg=f"{net.label}, node {node.name}",
                )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_rows_add_up_whatever_their_windows(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 4, 5)
    first, second = (random_rows(shape, 3, generator) for _ in range(2))
    torch.testing.assert_close((first + second).full(shape), first.full(shape) + second.full(shape))
    values = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        first.full(shape) * values, first.full(shape) * Rows(first.cut(values), first.window).full(shape)
    )


def test_windows_of_a_convolution_stay_inside_its_receptive_field():
    operation = Convolution(torch.randn(2, 1, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)
    rows = Rows(torch.randn(4, 2, 1, 1), ((3, 4), (0, 1)))
    ((before,), _) = operation.backward(rows, None, ((1, 8, 8),))
    assert before.window == ((2, 5), (0, 2))


def test_the_dense_form_of_a_convolution_follows_its_weights():
    layer = nn.Conv2d(1, 2, 3, bias=False).requires_grad_(False)
    operation = Convolution(layer.weight, None, (1, 1), (0, 0), (1, 1), 1)
    rows = Rows.whole(torch.randn(3, 2, 2, 2))
    first = operation.backward(rows, None, ((1, 4, 4),))[0][0].values
    assert operation._matrices
    layer.weight.mul_(2)
    torch.testing.assert_close(operation.backward(rows, None, ((1, 4, 4),))[0][0].values, 2 * first)


def test_max_pooling_of_padding_ignores_it():
    operation = MaxPool((2, 2), (2, 2), (1, 1), (1, 1), False)
    low = torch.full((1, 1, 2, 2), -3.0)
    interval = Interval(low, low + 1)
    assert operation.interval(interval).lower.flatten().tolist() == [-3.0] * 4
    rows = Rows.whole(torch.ones(1, 1, 2, 2))
    ((before,), constant) = operation.backward(rows, operation.relax(interval), ((1, 2, 2),))
    torch.testing.assert_close((before.values * low).sum().double() + constant.sum(), torch.tensor(-12.0).double())


def test_max_pooling_asks_for_the_inputs_that_may_win():
    low = torch.tensor([[0.0, 3.0, 0.0, 0.0], [1.0, 1.0, 2.0, 2.0]]).view(1, 1, 2, 4)
    high = torch.tensor([[2.0, 5.0, 3.0, 1.0], [2.0, 4.0, 2.0, 2.0]]).view(1, 1, 2, 4)
    asked = MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False).undecided(Interval(low, high))
    # Left, two may be above 3; right, one alone may be above the 2 that another one is.
    assert asked.view(2, 4).tolist() == [[False, True, True, False], [False, True, False, False]]
    settled = Interval(low, high.clamp_max(torch.tensor([9.0, 9.0, 2.0, 9.0])).minimum(torch.tensor(3.0)))
    assert not MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False).undecided(settled).any()


def test_the_product_of_matrices_is_exact_where_one_is_fixed():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 3, 4, generator=generator)
    low = torch.randn(2, 4, 5, generator=generator)
    found = MatrixProduct().interval(Interval(a, a), Interval(low, low + 1))
    middle, radius = a @ (low + 0.5), a.abs() @ torch.full_like(low, 0.5)
    torch.testing.assert_close(found.lower, middle - radius)
    torch.testing.assert_close(found.upper, middle + radius)


def test_log_sum_exp_does_not_overflow():
    x = Interval(torch.tensor([[500.0, -500.0, 0.0]]), torch.tensor([[501.0, 400.0, 0.0]]))
    operation = LogSumExp()
    assert operation.interval(x).upper.isfinite().all()
    assert all(plane.isfinite().all() for plane in operation.relax(x))
