"""Networks trained on the spot, for tests that need one that works."""

from functools import cache

import torch
from torch import nn

from holdfast.data import load_data
from holdfast.models.networks import digits_conv
from holdfast.train import Standard, fit


@cache
def _weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fit(digits_conv(), load_data("digits", split="train"), Standard(), epochs=8).state_dict()


def ordinary_digits() -> nn.Sequential:
    """A fresh copy of a network that reads digits and has never met an adversary."""
    network = digits_conv()
    network.load_state_dict(_weights())
    assert isinstance(network, nn.Sequential)
    return network.eval()
