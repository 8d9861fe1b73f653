import pytest
import torch

from holdfast.errors import DataError, SettingError
from holdfast.tasks import CLASSIFICATION, Classification, Task

NAN = float("nan")


def example(*logits):
    return torch.tensor([logits])


@pytest.mark.parametrize(
    ("logits", "y", "target", "share"),
    [
        ((0.0, 2.0, 1.0), 1, None, 0.0),
        ((0.0, 2.0, 1.0), 2, None, 1.0),
        ((2.0, 2.0, 1.0), 0, None, 0.0),  # of equals the first
        ((2.0, 2.0, 1.0), 1, None, 1.0),
        ((NAN, 2.0, 1.0), 1, None, 1.0),
        ((0.0, 2.0, NAN), 1, None, 1.0),
        ((NAN, NAN, NAN), 0, None, 1.0),
        ((0.0, float("inf"), 1.0), 1, None, 0.0),
        ((0.0, 2.0, 1.0), 0, 1, 1.0),
        ((0.0, 2.0, 1.0), 0, 2, 0.0),
        ((0.0, 2.0, 1.0), 1, 2, 0.0),
    ],
)
def test_an_example_is_wrong_as_a_whole_or_not_at_all(logits, y, target, share):
    target = None if target is None else torch.tensor([target])
    found = CLASSIFICATION.wrong(example(*logits), torch.tensor([y]), target)
    assert found.tolist() == [share]
    assert found.dtype == torch.float32


@pytest.mark.parametrize("towards", [False, True])
def test_the_margin_is_positive_exactly_where_it_is_wrong(towards):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (500,), generator=generator)
    target = torch.randint(4, (500,), generator=generator) if towards else None
    share = CLASSIFICATION.wrong(z, y, target)
    assert torch.equal(share > CLASSIFICATION.threshold, CLASSIFICATION.objective("margin", y, target)(z) > 0)
    assert set(share.tolist()) == {0.0, 1.0}


def test_its_prediction_has_the_shape_of_labels():
    assert CLASSIFICATION.prediction(torch.tensor([[0.0, 2.0], [3.0, 1.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("y", "target", "message"),
    [
        ([0, 3, 1], None, "example 8 has label 3, but the model knows classes 0 to 2"),
        ([0, 2, -1], None, "example 9 has label -1"),
        ([0, 2, 1], [0, 1, 3], "example 9 has a target class outside 0 to 2"),
        ([0, 2, 1], [-1, 1, 2], "example 7 has a target class"),
    ],
)
def test_labels_that_the_model_does_not_know(y, target, message):
    target = None if target is None else torch.tensor(target)
    with pytest.raises(DataError, match=message):
        CLASSIFICATION.check(torch.tensor([7, 8, 9]), torch.zeros(3, 3), torch.tensor(y), target)


def test_labels_that_it_knows():
    CLASSIFICATION.check(torch.arange(3), torch.zeros(3, 3), torch.tensor([0, 1, 2]), torch.tensor([2, 1, 0]))


def test_an_unknown_objective():
    with pytest.raises(SettingError, match="unknown objective 'hinge'"):
        CLASSIFICATION.objective("hinge", torch.zeros(1), None)


def test_it_has_no_settings():
    task: Task = Classification()
    assert task == CLASSIFICATION
