"""A graph that differs from its model anywhere is refused, and one that rounds differently is not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.tiny import Fn
from helpers.zoo import nan_logits, seeded, uniform
from holdfast import ModelError
from holdfast.certify.bounds.agreement import _wobble, check, probes
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.graph import Graph, Interval
from holdfast.certify.bounds.operations.kink import Kink
from holdfast.certify.bounds.operations.linear import Monotone


def without_one_relu(graph: Graph, node: int, unit: int) -> Graph:
    """A graph that has lost one unit's ReLU."""

    def lost(x):
        return torch.cat([x[:, :unit].relu(), x[:, unit : unit + 1], x[:, unit + 1 :].relu()], 1)

    nodes = list(graph.nodes)
    nodes[node] = replace(nodes[node], operation=Monotone(lost))
    return Graph(tuple(nodes))


def wide(dtype: torch.dtype) -> nn.Module:
    """Biases of several sizes, all units active at inputs in [0, 1]."""
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 500), nn.ReLU(), nn.Linear(500, 40), nn.ReLU(), nn.Linear(40, 3)))
    with torch.no_grad():
        net[0].bias.copy_(net[0].weight.abs().sum(1) * (1 + 100 * uniform(500)))
        net[2].bias.copy_(40 * uniform(40, seed=1))
    return net.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_lost_relu_of_many_is_found(dtype):
    net, x = wide(dtype), uniform(2, 6, dtype=dtype)
    graph = capture(net, x)
    (first, _) = [place for place, node in enumerate(graph.nodes) if isinstance(node.operation, Kink)]
    assert bool((graph.values(x)[first - 1] > 0).all())
    for unit in range(0, 500, 20):
        broken = without_one_relu(graph, first, unit)
        torch.testing.assert_close(broken(x), net(x))
        with pytest.raises(ModelError, match="does not compute what the model does"):
            check(broken, net, x)


def test_what_differs_only_in_the_set_is_found_in_the_set():
    """The units switch at 3e6, where nothing but the set that is to be certified leads."""
    net = Fn(lambda x, fc: fc((x - 3e6).relu() - x), nn.Linear(2, 2))
    other = Fn(lambda x, fc: fc(-x), nn.Linear(2, 2))
    other.load_state_dict(net.state_dict())
    x = torch.zeros(1, 2)
    graph = capture(other, x)
    check(graph, net, x)
    with pytest.raises(ModelError, match="does not compute what the model does"):
        check(graph, net, x, Interval(torch.full((1, 2), 3e6), torch.full((1, 2), 9e6)))


def normalising(seed: int, dtype: torch.dtype) -> nn.Module:
    """Norms of every kind in a row, with weights of a size that passes rounding on many times enlarged."""

    def make() -> nn.Module:
        norms = (nn.LayerNorm(32), nn.GroupNorm(4, 32), nn.BatchNorm1d(32), nn.Softmax(1))
        layers = [part for i in range(5) for part in (norms[(seed + i) % 4], nn.GELU(), nn.Linear(32, 32))]
        net = nn.Sequential(nn.Linear(6, 32), *layers, nn.Linear(32, 3))
        for parameter in net.parameters():
            nn.init.normal_(parameter, 0, (0.1, 1.0, 5.0)[seed % 3])
        return net

    return seeded(make, seed).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_in_any_precision_are_no_fault(dtype):
    for seed in range(6):
        capture(normalising(seed, dtype), uniform(2, 6, dtype=dtype))


def test_probes_are_always_the_same_and_leave_the_generator_alone():
    x, state = uniform(4, 3, 5), torch.get_rng_state()
    box = Interval(x - 0.1, x + 0.1)
    near, far = probes(x, box, 40)
    again = probes(x, box, 40)
    assert near.equal(again[0])
    assert far.equal(again[1])
    assert torch.get_rng_state().equal(state)
    assert near[:3].equal(x[:3])
    # Corners and their opposites, and points between.
    corners = near[3:9].view(2, 3, 3, 5)
    assert bool(((corners == box.lower[:3]) | (corners == box.upper[:3])).all())
    torch.testing.assert_close(corners.sum(0), (box.lower + box.upper)[:3])
    assert bool(((box.lower[:3] <= near[9:]) & (near[9:] <= box.upper[:3])).all())
    # To both sides of an input, up to thousands of times as far as inputs are large.
    torch.testing.assert_close(far[0] + far[1], 2 * x[0])
    assert len(near) + len(far) == 40
    assert float(far.abs().max()) > 1e3


@pytest.mark.parametrize("x", [torch.full((1, 6), torch.nan), torch.full((2, 6), torch.inf), torch.zeros(1, 6)])
def test_inputs_that_say_nothing_are_no_fault(x):
    net = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))
    graph = capture(net, x)
    torch.testing.assert_close(graph(uniform(5, 6) - 0.5), net(uniform(5, 6) - 0.5))


def test_no_input_is_a_fault():
    with pytest.raises(ModelError, match="none was given"):
        capture(nn.Linear(6, 3), torch.zeros(0, 6))


def test_nan_that_the_graph_does_not_know_is_found():
    other = nan_logits()
    graph = capture(other.head, uniform(2, 6))
    inside, outside = uniform(1, 6) * 0.5, torch.full((1, 6), 0.95)
    check(graph, other, inside)
    with pytest.raises(ModelError, match="returns NaN or infinity"):
        check(graph, other, outside)


class Calls(nn.Module):
    """Answers by what ``rule`` makes of the number of the call, the batch and the linear answer."""

    def __init__(self, rule):
        super().__init__()
        self.fc, self.rule, self.calls = seeded(lambda: nn.Linear(6, 3)), rule, 0

    def forward(self, x):
        self.calls += 1
        return self.rule(self.calls, x, self.fc(x))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda calls, x, y: y + calls, "differently from call to call: it draws random numbers, or keeps state"),
        (lambda calls, x, y: y - x[:1, :3], "rows of a batch depend on one another"),
        (lambda calls, x, y: y if len(x) < 9 else y.flip(0), "rows of a batch depend on one another"),
        (lambda calls, x, y: y.relu(), "the captured graph does not compute what the model does"),
        (lambda calls, x, y: y[:, :2], "it returns 3 values, and the model 2"),
        (lambda calls, x, y: y if len(x) < 9 else y.view(4, 3), "fails on a batch of"),
        (lambda calls, x, y: y.unsqueeze(0), "returns a tensor of shape"),
        (lambda calls, x, y: (y,), "returns a tuple"),
    ],
)
def test_faults_have_their_own_words(rule, message):
    model = Calls(rule)
    graph = capture(model.fc, uniform(2, 6))
    with pytest.raises(ModelError, match=message):
        check(graph, model, uniform(2, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_tried_out_in_the_precision_of_the_network(dtype):
    x = uniform(3, 2, dtype=dtype)
    graph = capture(seeded(lambda: nn.Linear(2, 3)).to(dtype), x)
    wobble = _wobble(graph, x, graph(x)) / torch.finfo(dtype).eps
    assert bool((wobble < 10).all())
    assert bool((wobble > 0).all())
