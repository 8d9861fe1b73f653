"""What defences draw: from where, and how it is spread."""

import pytest
import torch
from torch import nn

from helpers.zoo import mlp, uniform
from holdfast.testing.zoo import randomness

X = uniform(4, 1, 8, 8)
PARTS = [
    *(randomness.NoisyInputs(), randomness.NoisyOutputs(), randomness.Dithered(), randomness.ResizedAndPadded()),
    *(randomness.MatrixEstimated(), randomness.Pruned(), randomness.Mixed(mlp(64), uniform(30, 1, 8, 8, seed=2))),
    randomness.Chosen([mlp(64), mlp(64, seed=1)]),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_draws_from_a_generator_of_its_own(part: nn.Module) -> None:
    state, start = torch.random.get_rng_state(), part.generator.get_state()
    first = [part(X) for _ in range(20)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert any(not torch.equal(first[0], other) for other in first)
    part.generator.set_state(start)
    assert all(map(torch.equal, first, (part(X) for _ in range(20))))


def test_dropout_draws_from_the_global_one() -> None:
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        one = randomness.Dropped()(X)
        assert not torch.equal(one, randomness.Dropped()(X))
        torch.manual_seed(0)
        assert torch.equal(one, randomness.Dropped()(X))
    finally:
        torch.random.set_rng_state(state)


@pytest.mark.parametrize("part", [randomness.NoisyInputs(), randomness.Dithered(), randomness.Pruned(0.5)])
def test_is_right_on_average(part: nn.Module) -> None:
    x = 0.75 * uniform(1, 1, 4, 4) + 0.1
    passes = torch.stack([part(x) for _ in range(3000)])
    error = passes.std(0) / 3000**0.5
    assert (passes.mean(0) - x).abs().max() < 5 * error.max()


def test_dithered_levels() -> None:
    assert set((4 * randomness.Dithered(5)(X)).unique().tolist()) <= {0, 1, 2, 3, 4}


def test_hashed_noise_is_the_input_s_own() -> None:
    noise = randomness.HashedNoise(0.1)
    x = uniform(500, 64)
    assert torch.equal(noise(x)[7], noise(x[7:8])[0])
    moved = noise(x) - x
    assert abs(float(moved.std()) - 0.1) < 0.005
    other = noise(x + 1e-3) - x - 1e-3
    assert abs(float(torch.corrcoef(torch.stack([moved.flatten(), other.flatten()]))[0, 1])) < 0.1


def test_resized_images_lie_inside_the_frame() -> None:
    part = randomness.ResizedAndPadded()
    ones = torch.ones(1, 1, 16, 16)
    sides = {int(part(ones)[0, 0].amax(0).sum()) for _ in range(50)}
    assert sides == {14, 15, 16}


def test_estimated_matrices_keep_what_has_a_low_rank() -> None:
    low = torch.outer(torch.linspace(0.2, 1, 20), torch.linspace(1, 0.3, 20)).view(1, 1, 20, 20)
    assert (randomness.MatrixEstimated(0.9, rank=1)(low) - low).abs().mean() < 0.05


def test_perturbed_weights_move_by_a_share() -> None:
    plain, moved = mlp(64, hidden=200), randomness.perturbed(mlp(64, hidden=200), 0.1, 0)
    for one, other in zip(plain.parameters(), moved.parameters(), strict=True):
        share = (other - one).square().mean() / one.square().mean()
        assert 0.05 < share.sqrt() < 0.2
