import pytest
import torch

from holdfast.errors import DataError, SettingError
from holdfast.threats.table import read_table
from holdfast.threats.table.draft import draft

X = torch.tensor([[3, 0.5, 1, 0, 7], [9, 0.25, 0, 1, 7], [4, 1.5, 1, 0, 7]], dtype=torch.float32)
NAMES = ("count", 'näme "x"', "kind=a", "kind=b", "same")


@pytest.mark.parametrize(("unit", "sizes"), [("range", (6, 1.25)), ("std", (X[:, 0].std(correction=0), None))])
def test_a_draft_is_a_file_of_rules_once_something_moves(tmp_path, unit, sizes):
    text = draft(X, NAMES, unit)
    path = tmp_path / "rules.toml"
    path.write_text(text.replace('count = { kind = "integer"', 'count = { kind = "integer", move = "up"'))
    rules = read_table(path).rules
    assert rules.names == NAMES
    assert [column.kind for column in rules.columns[:2]] == ["integer", "real"]
    assert rules.columns[0].unit == pytest.approx(float(sizes[0]))
    assert sizes[1] is None or rules.columns[1].unit == sizes[1]
    assert rules.columns[0].measure == unit
    assert rules.columns[4].unit == 1
    assert rules.groups[0].columns == ("kind=a", "kind=b")


def test_nothing_moves_in_a_draft_without_categories(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(draft(X[:, :2], NAMES[:2]))
    with pytest.raises(SettingError, match="no column may move"):
        read_table(path)


def test_columns_that_are_not_one_hot_are_no_group():
    assert "[groups]" not in draft(torch.cat([X, X[:1] * 0]), NAMES)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(SettingError, match="write range or std, not 'iqr'"):
        draft(X, NAMES, "iqr")
    with pytest.raises(DataError, match="rows of 4 columns"):
        draft(X, NAMES[:4])
    with pytest.raises(DataError, match="rows of 5 columns"):
        draft(X[:0], NAMES)
    with pytest.raises(DataError, match="finite"):
        draft(X / 0, NAMES)
