import pytest
import torch

from helpers.zoo import uniform
from holdfast.models.layout import is_channels_last, lay_out, pick

SHAPES = [
    (4, 3, 5, 6),
    (4, 1, 5, 6),
    (1, 3, 5, 6),
    (1, 1, 5, 6),
    (4, 3, 1, 1),
    (4, 3, 1, 6),
    (0, 3, 5, 6),
    (2, 1, 1, 1),
]


def forms(x: torch.Tensor) -> list[torch.Tensor]:
    return [
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
        torch.cat([x, x], 3)[..., : x.shape[3]],
        torch.cat([x[None], x[None] + 1])[0],
        x[:1].expand(x.shape) if len(x) else x,
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_numbers_stay_and_strides_are_the_asked_ones(shape, channels_last):
    _, c, h, w = shape
    for form in forms(uniform(*shape)):
        laid = lay_out(form, channels_last)
        assert torch.equal(laid, form)
        assert laid.stride() == ((c * h * w, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1))
        assert lay_out(laid, channels_last) is laid
        # Where both layouts have the same strides, the plain one is meant.
        differ = (c * h * w, 1, w * c, c) != (c * h * w, h * w, w, 1)
        assert is_channels_last(laid) == (channels_last and differ)
        assert torch.equal(lay_out(laid, not channels_last), form)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_rows_keep_the_layout_of_the_whole(shape, channels_last):
    x = lay_out(uniform(*shape), channels_last)
    for index in ([0], [0, 0], list(range(shape[0]))[::-1]):
        index = torch.tensor([i for i in index if i < shape[0]], dtype=torch.int64)
        rows = pick(x, index)
        assert torch.equal(rows, x[index])
        if len(index) == 0:
            continue
        assert is_channels_last(rows) == is_channels_last(x)
        assert rows.stride() == x.stride()


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4), (5, 2, 3, 4, 5)])
def test_other_dimensions_are_made_contiguous(shape):
    x = uniform(*shape).repeat_interleave(2, 0)[::2]
    assert lay_out(x, True).is_contiguous()
    assert torch.equal(lay_out(x, True), x)
    assert not is_channels_last(x)
    assert torch.equal(pick(x, torch.tensor([3, 1])), x[[3, 1]])
