"""Region search on a network of real size agrees with mixed-integer programming and branch and bound."""

import pytest
import torch
from torch import nn

from helpers.shared import SHARED
from holdfast.certify import exact_distance
from holdfast.data import load_data
from holdfast.geometry import nearest_adversarial
from holdfast.threats import Linf


def test_the_distance_is_that_of_certification_to_a_millionth():
    mnist = SHARED / "data" / "mnist"
    name = f"mnist:{mnist}" if mnist.is_dir() else "digits"
    images = next(load_data(name, split="train", examples="0:1000").batches(1000))
    x, y = images.x.double(), images.y
    torch.manual_seed(0)
    width = x[0].numel()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(width, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10)
    ).double()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(6):
        for rows in torch.arange(len(x)).split(50):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            for parameter, grad in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                parameter.grad = grad
            optimizer.step()
    right = (model(x).argmax(1) == y).nonzero().flatten()
    assert len(right) > 800
    # The least sure of the first, whose boundary is near: a second each.
    lead = model(x[right[:40]]).topk(2).values
    chosen = right[(lead[:, 0] - lead[:, 1]).argsort()[10:13]]
    expected = exact_distance(model, x[chosen], y[chosen], Linf("inf"))
    for i, one in zip(chosen, expected, strict=True):
        found = nearest_adversarial(model, x[i], int(y[i]), Linf("inf"))
        assert one.status == "exact"
        assert found.lower == found.upper == pytest.approx(one.upper, abs=1e-6)
        assert found.regions >= 1
