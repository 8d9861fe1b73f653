"""Graphs as values: another precision, and the values of all nodes."""

import torch

from helpers.tiny import tiny
from helpers.zoo import convnet, uniform
from holdfast import Linf
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.margins import each_margin
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import REAL


def test_every_node_has_the_shape_it_says():
    for kind in ("residual_convolution", "attention", "moved", "log_softmax"):
        net = tiny(kind, 0)
        x = uniform(3, *net.shape, dtype=torch.float64)
        graph = capture(net.model, x)
        for node, value in zip(graph.nodes, graph.values(x), strict=True):
            assert value.shape == (3, *node.shape), f"{net.label}, node {node.name}"
        assert graph.output == len(graph.nodes) - 1
        assert all(i < number for number, node in enumerate(graph.nodes) for i in node.inputs)


def test_another_precision():
    """Bounds in float64 of a network in float32 are those of the same network made in float64."""
    model = convnet()
    x, y = uniform(2, 3, 6, 6), torch.tensor([0, 1])
    region = Region.around(Linf(0.05), x)
    graph = capture(model, x)
    crown(graph, region)  # leaves products behind that are of the old precision
    wide, wide_region = graph.to(torch.float64).within(REAL), region.to(torch.float64)
    direct = capture(convnet().double(), x.double()).within(REAL)
    torch.testing.assert_close(wide(x.double()), direct(x.double()), rtol=1e-12, atol=1e-12)
    found, expected = (each_margin(g, crown(g, wide_region), wide_region, y) for g in (wide, direct))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
