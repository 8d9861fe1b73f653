"""Double masking, against every patch at every place."""

import itertools

import pytest
import torch
from torch import nn

from helpers.tiny import Fn
from helpers.zoo import uniform
from holdfast import DataError, SettingError
from holdfast.certify import DoublyMasked, Fill, Masks, mark


@pytest.mark.parametrize("size", [(8, 8), (7, 11), (28, 28), (5, 5), (1, 9)])
@pytest.mark.parametrize("number", [1, 2, 3, 6, 50])
def test_every_patch_lies_inside_a_mask(size, number):
    for patch in range(1, min(size) + 1):
        hidden = ~Masks(*size, patch, number).kept
        for top, left in itertools.product(range(size[0] - patch + 1), range(size[1] - patch + 1)):
            assert bool(hidden[:, top : top + patch, left : left + patch].flatten(1).all(1).any())


def test_masks_are_those_of_the_paper():
    """A patch of 32 on 224 pixels and six masks along an axis: strides of 33, masks of 64 pixels."""
    hidden = ~Masks(224, 224, 32, 6).kept
    assert len(hidden) == 36
    assert {int(mask.any(1).sum()) for mask in hidden} == {64}


def by_hand(model, masks, x):
    """Algorithm 1, image by image and mask by mask, as it is written."""
    kept = masks.kept

    def ask(view):
        return int(model(torch.where(view, x, 0.0)[None]).argmax())

    first = [ask(one) for one in kept]
    if len(set(first)) == 1:
        return first[0]
    most = max(sorted(set(first)), key=first.count)
    for mask, answer in zip(kept, first, strict=True):
        if answer != most and all(ask(mask & other) == answer for other in kept):
            return answer
    return most


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("seed", range(4))
def test_answers_and_certificates_are_those_of_the_algorithms(seed):
    model, masks, x = network(seed), Masks(5, 5, 2, 2), uniform(12, 1, 5, 5, seed=seed)
    defended = DoublyMasked(model, masks, batch_size=7)
    with torch.no_grad():
        expected = [by_hand(model, masks, one) for one in x]
        certain = [
            len({int(model(torch.where(a & b, one, 0.0)[None]).argmax()) for a in masks.kept for b in masks.kept}) == 1
            for one in x
        ]
    found = defended.certify(x)
    assert defended.predict(x).tolist() == found.prediction.tolist() == expected
    assert found.radius.tolist() == [2.0 * one for one in certain]
    if seed == 0:
        assert 0 < sum(certain) < len(x)  # both are there


@pytest.mark.parametrize("seed", range(3))
def test_no_patch_changes_a_certified_answer(seed):
    """All black and white patches of 2 x 2 pixels at all places of images that were certified."""
    model, masks = network(seed), Masks(5, 5, 2, 2)
    defended = DoublyMasked(model, masks)
    x = uniform(20, 1, 5, 5, seed=seed + 10)
    found = defended.certify(x)
    proved = (found.radius == 2).nonzero()[:2, 0]
    for row in proved.tolist():
        patched = []
        for top, left in itertools.product(range(4), range(4)):
            for content in itertools.product((0.0, 1.0, 5.0), repeat=4):
                image = x[row].clone()
                image[0, top : top + 2, left : left + 2] = torch.tensor(content).view(2, 2)
                patched.append(image)
        assert set(defended.predict(torch.stack(patched)).tolist()) == {int(found.prediction[row])}


def test_what_names_no_class_is_not_certified():
    found = DoublyMasked(Fn(lambda x: x.flatten(1)[:, :2] * torch.nan), Masks(4, 4, 1, 2)).certify(uniform(3, 1, 4, 4))
    assert found.prediction.tolist() == [-1, -1, -1]
    assert found.radius.tolist() == [0, 0, 0]


def test_hidden_pixels_are_hidden_as_asked():
    seen = []

    def look(x):
        seen.append(x)
        return x.flatten(1)[:, :3]

    for hide, channels in ((mark, 2), (Fill(7.0), 1)):
        seen.clear()
        DoublyMasked(Fn(look), Masks(4, 4, 2, 2, hide)).predict(uniform(1, 1, 4, 4))
        assert all(x.shape[1] == channels for x in seen)
    assert any(bool((x == 7).any()) for x in seen)


def test_bad_settings():
    with pytest.raises(SettingError, match="a side of 6 pixels does not fit into an image of 5 x 9"):
        Masks(5, 9, 6)
    with pytest.raises(SettingError, match="masks: Masks"):
        DoublyMasked(network(0), 3)
    with pytest.raises(DataError, match=r"these masks are for images \(N, C, 5, 5\)"):
        DoublyMasked(network(0), Masks(5, 5, 2)).predict(uniform(2, 1, 5, 6))
