"""Networks trained on the spot, for tests that need one that works."""

from functools import cache

import torch
from torch import nn

from holdfast import Linf
from holdfast.data import load_data
from holdfast.models.networks import digits_conv
from holdfast.train import Recipe, Standard, fit


@cache
def _weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = digits_conv()
        fit(
            network,
            load_data("digits", split="train"),
            Standard(),
            Linf(0.1),
            Recipe(8, batch_size=64, schedule="cosine", validation=1),
        )
        return network.state_dict()


def ordinary_digits() -> nn.Sequential:
    """A fresh copy of a network that reads digits and has never met an adversary."""
    network = digits_conv()
    network.load_state_dict(_weights())
    assert isinstance(network, nn.Sequential)
    return network.eval()
