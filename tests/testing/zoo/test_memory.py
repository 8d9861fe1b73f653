"""What answers owe to other queries."""

import copy

import torch
from torch import nn

from helpers.zoo import mlp, uniform
from holdfast.testing.zoo import memory

NET, X = mlp(), uniform(8, 6)
FAR = uniform(8, 6, seed=1)


@torch.no_grad()
def test_cached_answers_are_those_to_the_first_of_a_neighbourhood() -> None:
    model = memory.Cached(NET, distance=0.05)
    first = model(X)
    assert torch.equal(first, NET(X))
    near = X + 0.04
    assert torch.equal(model(near), first)
    assert not torch.equal(NET(near), first)
    assert torch.equal(model(FAR), NET(FAR))
    assert torch.equal(memory.Cached(NET, distance=0.05)(near), NET(near))


@torch.no_grad()
def test_near_duplicates_are_suspect_and_repetitions_are_not() -> None:
    model = memory.Suspicious(NET, distance=0.02, neighbours=2)
    plain = NET(X).argmax(1)
    for _ in range(4):
        assert torch.equal(model(X).argmax(1), plain)
    for shift in (0.001, 0.002):
        model(X + shift)
    near = X + 0.003
    runner_up = NET(near).topk(2, dim=1).indices[:, 1]
    assert torch.equal(model(near).argmax(1), runner_up)
    assert torch.equal(model(FAR).argmax(1), NET(FAR).argmax(1))


@torch.no_grad()
def test_tires_after_so_many_calls() -> None:
    model = memory.Tiring(NET, calls=2)
    fresh = copy.deepcopy(model)
    assert torch.equal(model(X), NET(X))
    assert torch.equal(model(X), NET(X))
    assert torch.equal(model(X), NET(X).round())
    assert torch.equal(fresh(X), NET(X))


@torch.no_grad()
def test_statistics_of_the_batch_mix_its_rows() -> None:
    model = memory.Adjusting(NET, X)
    assert torch.allclose(model(X), NET(X), atol=0.1)  # up to the correction of the variance
    assert not torch.allclose(model(torch.cat([X[:1], FAR]))[0], model(X)[0], atol=1e-3)
    twin = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Identity()).train()
    assert torch.allclose(model(FAR), NET(twin(FAR) * X.std(0) + X.mean(0)), atol=1e-5)


@torch.no_grad()
def test_statistics_follow_the_queries() -> None:
    model = memory.Adapting(NET, X)
    first = model(X)
    assert torch.allclose(first, NET(X), atol=1e-6)
    for _ in range(5):
        model(X + 1)
    assert not torch.allclose(model(X), first, atol=1e-2)
