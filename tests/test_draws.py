"""Philox against the published known answers, and draws that depend on nothing but their key."""

import pytest
import torch
from scipy import stats

from holdfast.draws import Draws, philox

# Known answers of philox4x32-10 published with the paper's library (Random123, kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, words):
    got = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(word) for word in got) == words


def test_a_draw_depends_on_its_own_example_only():
    index = torch.tensor([5, 900, 3, 70000])
    whole = Draws(7, index, stage=2, draw=torch.tensor([0, 1, 2, 3]))
    for row in range(4):
        alone = Draws(7, index[row : row + 1], stage=2, draw=row)
        assert torch.equal(alone.uniform(13), whole.uniform(13)[row : row + 1])
        assert torch.equal(alone.normal(13), whole.normal(13)[row : row + 1])


def test_every_part_of_the_key_changes_the_draw():
    base = Draws(1, torch.tensor([4]), 1, 1).bits(8)
    for other in (
        Draws(2, torch.tensor([4]), 1, 1),
        Draws(1 + 2**32, torch.tensor([4]), 1, 1),
        Draws(1, torch.tensor([5]), 1, 1),
        Draws(1, torch.tensor([4]), 2, 1),
        Draws(1, torch.tensor([4]), 1, 2),
    ):
        assert not torch.equal(base, other.bits(8))


def test_distributions():
    draws = Draws(0, torch.arange(50))
    uniform, normal = draws.uniform(401).flatten(), draws.normal(401).flatten()
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal.numpy(), "norm").pvalue > 1e-3
    rows = Draws(0, torch.arange(2000)).normal(2)
    assert abs(torch.corrcoef(rows.T)[0, 1]) < 0.1
    assert abs(torch.corrcoef(torch.stack([rows[:-1, 0], rows[1:, 0]]))[0, 1]) < 0.1


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    Draws(0, torch.arange(3)).normal(5)
    assert torch.equal(before, torch.get_rng_state())


def test_no_rows():
    assert Draws(0, torch.empty(0, dtype=torch.int64)).uniform(3).shape == (0, 3)
