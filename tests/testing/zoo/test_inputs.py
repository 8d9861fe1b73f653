"""Transformations of the input, beside what they should come to."""

import numpy as np
import pytest
import torch
from scipy import fft, ndimage
from torch import Tensor, nn

from helpers.zoo import uniform
from holdfast.testing.zoo import inputs

X = uniform(3, 2, 12, 17)


def slopes(part: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(part(leaf).sum(), leaf)
    return grad


def test_levels() -> None:
    ladder = torch.tensor([0.0, 0.07, 0.08, 0.5, 0.93, 1.0])
    assert torch.equal(inputs.Rounded(8)(ladder), torch.tensor([0, 0, 1, 4, 7, 7]) / 7)
    assert torch.equal(inputs.Bytes(8)(X), inputs.Rounded(8)(X))
    assert torch.allclose(inputs.Thermometer(10)(ladder), torch.tensor([0, 0.1, 0.1, 0.5, 0.9, 1.0]), atol=1e-6)
    assert torch.allclose(inputs.OneHotEncoded(8)(X), inputs.Rounded(8)(X))
    assert not slopes(inputs.Rounded(), X).any()
    assert not inputs.Thermometer()(X.clone().requires_grad_()).requires_grad


def test_jpeg_rounds_coefficients_of_blocks() -> None:
    image = uniform(1, 1, 16, 8)
    expected = np.empty((16, 8))
    for top in (0, 8):
        block = image[0, 0, top : top + 8].double().numpy() * 255 - 127.5
        coefficients = fft.dctn(block, norm="ortho")
        table = np.array(inputs._LUMINANCE)  # quality 50 is the table as it stands
        expected[top : top + 8] = fft.idctn(np.round(coefficients / table) * table, norm="ortho") / 255 + 0.5
    assert np.allclose(inputs.Jpeg(50)(image)[0, 0].numpy(), expected.clip(0, 1), atol=1e-5)
    assert (inputs.Jpeg(95)(X) - X).abs().mean() < 0.02
    assert inputs.Jpeg()(X).shape == X.shape
    assert not slopes(inputs.Jpeg(), X).any()


def test_filters() -> None:
    window = np.ones((1, 1, 3, 3))
    expected = ndimage.median_filter(X.numpy(), footprint=window, mode="nearest")
    assert np.allclose(inputs.MedianFiltered()(X).numpy(), expected)
    kernel = inputs.Blurred().kernel.numpy()[None, None]
    assert np.allclose(inputs.Blurred()(X).numpy(), ndimage.correlate(X.numpy(), kernel, mode="nearest"), atol=1e-6)


def test_sparse_frequencies_are_the_largest() -> None:
    sparse = inputs.SparseFrequencies(0.1)(X).double().numpy()
    kept = fft.dctn(sparse, axes=(2, 3), norm="ortho")
    all_of_them = fft.dctn(X.double().numpy(), axes=(2, 3), norm="ortho")
    there = np.abs(kept) > 1e-5
    assert there.sum((2, 3)).max() == 20
    assert np.allclose(kept[there], all_of_them[there], atol=1e-5)
    assert np.abs(all_of_them[there]).min() > np.abs(all_of_them[~there]).min()


def test_total_variation_goes_down_its_slope() -> None:
    weight, x = 0.1, X.double()
    leaf = (0.9 * x).requires_grad_()
    variation = sum((leaf.diff(dim=dim).square() + 1e-3).sqrt().sum() for dim in (2, 3))
    (slope,) = torch.autograd.grad((leaf - x).square().sum() / 2 + weight * variation, leaf)
    first = inputs.Denoised(weight, steps=1)
    leaf_at_x = x.clone().requires_grad_()
    variation = sum((leaf_at_x.diff(dim=dim).square() + 1e-3).sqrt().sum() for dim in (2, 3))
    (slope,) = torch.autograd.grad(weight * variation, leaf_at_x)
    assert torch.allclose(first(x), x - 0.1 * slope)


def test_quilts_are_of_the_nearest_patches() -> None:
    examples = uniform(5, 1, 8, 8, seed=2)
    quilted = inputs.Quilted(examples)(examples.flip(0))
    assert torch.equal(quilted, examples.flip(0))  # its own patches are there
    x = uniform(2, 1, 8, 8, seed=3)
    patches = [e[0, a : a + 4, b : b + 4] for e in examples for a in (0, 4) for b in (0, 4)]
    best = min(patches, key=lambda patch: float((patch - x[1, 0, 4:, :4]).square().sum()))
    assert torch.equal(inputs.Quilted(examples)(x)[1, 0, 4:, :4], best)


def test_ripples_are_small_and_steep() -> None:
    x = uniform(1000, dtype=torch.float64)
    assert (inputs.Rippled()(x) - x).abs().max() <= 0.01
    assert (slopes(inputs.Rippled(), x) < 0).double().mean() > 0.4


def test_sawtooth_falls_at_every_point_and_rises_over_any_stretch() -> None:
    x = 0.98 * uniform(1000, dtype=torch.float64)
    assert torch.allclose(slopes(inputs.Sawtooth(), x), -torch.ones_like(x))
    assert (inputs.Sawtooth()(x + 0.02) > inputs.Sawtooth()(x)).all()
    assert (inputs.Sawtooth()(x) - x).abs().max() <= 0.01


@pytest.mark.parametrize("part", [inputs.Jpeg(), inputs.MedianFiltered(), inputs.Denoised(), inputs.Blurred()])
def test_images_of_any_size(part: nn.Module) -> None:
    assert part(uniform(2, 3, 7, 9)).shape == (2, 3, 7, 9)
