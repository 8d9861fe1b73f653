"""Networks of the lab: the same weights every time, of the scale that was asked for."""

import torch
from torch import nn

from holdfast.lab.networks import dense


def test_weights_depend_on_the_seed_alone_and_have_the_variance_asked_for():
    state = torch.get_rng_state()
    network = dense(400, 300, 10, unit=nn.Tanh, gain=3.0, spread=0.5, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(layer) for layer in network] == [nn.Linear, nn.Tanh, nn.Linear]
    torch.manual_seed(1)
    again = dense(400, 300, 10, unit=nn.Tanh, gain=3.0, spread=0.5, seed=7)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))
    first, bias, second, _ = (parameter.detach() for parameter in network.parameters())
    assert abs(float(first.var()) * 400 / 3 - 1) < 0.02
    assert abs(float(second.var()) * 300 / 3 - 1) < 0.1
    assert abs(float(bias.std()) / 0.5 - 1) < 0.2
    assert not torch.equal(first, next(dense(400, 300, 10, seed=8).parameters()))
    assert all(not bias.any() for bias in list(dense(4, 3, 2).parameters())[1::2])
