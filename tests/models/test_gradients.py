"""Input gradients by columns equal PyTorch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.zoo import uniform
from holdfast.models.gradients import FoldedConvolutions
from holdfast.models.query import Query
from holdfast.objectives import margin

KINDS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "bias": False},
    {"kernel_size": 3, "dilation": 2},  # left to PyTorch
    {"kernel_size": 3, "padding": "same"},  # left to PyTorch
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_convolution_has_the_gradient_it_has(kind, channels):
    layer = nn.Conv2d(channels, 5, dtype=torch.float64, **kind).requires_grad_(False)
    x = uniform(3, channels, 9, 8, dtype=torch.float64).requires_grad_(True)
    plain = layer(x)
    towards = uniform(*plain.shape, seed=1, dtype=torch.float64)
    (expected,) = torch.autograd.grad(plain, x, towards)
    with FoldedConvolutions():
        folded = layer(x)
    (grad,) = torch.autograd.grad(folded, x, towards)
    assert torch.equal(folded, plain)
    torch.testing.assert_close(grad, expected)


def test_the_query_folds_images_of_one_channel_and_says_the_same():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    x, y = uniform(7, 1, 6, 6), torch.arange(7) % 3
    inputs = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(margin(net(inputs), y).sum(), inputs)
    seen = []
    fold = functional.fold
    with pytest.MonkeyPatch.context() as patch, Query(net, batch_size=7) as query:
        query.bare_logits(x)
        patch.setattr(functional, "fold", lambda *args, **kwargs: seen.append(1) or fold(*args, **kwargs))
        torch.testing.assert_close(query.gradient(x, lambda logits: margin(logits, y)).grad, expected)
    assert seen
