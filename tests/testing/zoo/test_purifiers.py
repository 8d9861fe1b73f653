"""Purifiers, beside scikit-learn and brute force."""

import torch
from sklearn.decomposition import PCA
from torch.nn import functional

from helpers.networks import ordinary_digits
from holdfast import load_data
from holdfast.testing.zoo import purifiers

EXAMPLES = next(load_data("digits", split="train", examples="0:300").batches(300)).x
X = next(load_data("digits", split="test", examples="0:20").batches(20)).x


def test_projection_is_that_on_principal_components() -> None:
    analysis = PCA(20).fit(EXAMPLES.flatten(1).double().numpy())
    expected = analysis.inverse_transform(analysis.transform(X.flatten(1).double().numpy()))
    assert torch.allclose(purifiers.Projected(EXAMPLES, 20)(X).flatten(1).double(), torch.tensor(expected), atol=1e-5)
    assert torch.allclose(purifiers.Projected(EXAMPLES[:5], 50)(EXAMPLES[:5]), EXAMPLES[:5], atol=1e-5)


def test_autoencoder_gives_examples_back() -> None:
    made = purifiers.Autoencoder(EXAMPLES, 60)(EXAMPLES)
    assert (made - EXAMPLES).abs().mean() < 0.03
    assert 0 <= made.min() <= made.max() <= 1


def test_inversion_comes_near_and_has_no_gradient() -> None:
    inverted = purifiers.Inverted(EXAMPLES)
    start = inverted.generate(torch.zeros(20, 40)).view_as(X)
    leaf = X.clone().requires_grad_()
    made = inverted(leaf)
    assert (made - X).square().mean() < 0.2 * (start - X).square().mean()
    assert not torch.autograd.grad(made.sum(), leaf)[0].any()


def test_numbers_move_to_the_likeliest_level_near() -> None:
    likelier = purifiers.Likelier(EXAMPLES, levels=11, reach=2)
    moved, flat = likelier(X).flatten(1), EXAMPLES.flatten(1)
    assert (moved - X.flatten(1)).abs().max() <= 0.25 + 1e-6
    for row, place in ((0, 10), (3, 20), (7, 43)):
        level = round(float(X.flatten(1)[row, place]) * 10)
        counts = {
            n: int(((flat[:, place] * 10).round() == n).sum()) + 0.5 * (n == level)
            for n in range(max(0, level - 2), min(10, level + 2) + 1)
        }
        assert counts[round(float(moved[row, place]) * 10)] == max(counts.values())


def test_anti_adversary_makes_answers_surer() -> None:
    net = ordinary_digits()
    defended = purifiers.AntiAdversary(net)
    with torch.inference_mode():
        plain, moved = net(X), defended(X)
    answer = plain.argmax(1)
    assert torch.equal(moved.argmax(1), answer)
    sure = functional.cross_entropy(moved, answer, reduction="none")
    assert (sure <= functional.cross_entropy(plain, answer, reduction="none") + 1e-6).all()
