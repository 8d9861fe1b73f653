import numpy as np
import pytest
import torch

from holdfast.data import from_tensors, load_data
from holdfast.data.groups import read_groups
from holdfast.errors import DataError

ROWS = "age,sex,hand,y\n30,f,l,0\n4,m,r,1\n30,f,r,1\n21,m,r,0\n"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "people.csv").write_text(ROWS)
    return f"csv:{tmp_path}/people.csv?label=y"


def test_columns_of_every_kind(path):
    for query, examples in (("", None), ("&group=sex", None), ("&drop=sex,age", None), ("", "1:3")):
        source = load_data(path + query, examples=examples)
        here = range(4) if examples is None else range(1, 3)
        sexes, ages = read_groups(source, "sex"), read_groups(source, "age")
        assert (sexes.column, sexes.names) == ("sex", ("f", "m"))
        assert sexes.of == {position: position % 2 for position in here}
        assert ages.names == (("4", "21", "30") if examples is None else ("4", "30"))
        assert [ages.names[ages.of[position]] for position in here] == [["30", "4", "30", "21"][p] for p in here]


def test_the_column_that_the_source_was_opened_with(path):
    assert read_groups(load_data(path)) is None
    assert read_groups(load_data(path + "&group=hand")).names == ("l", "r")
    assert read_groups(load_data(path + "&group=hand"), "y").of == {0: 0, 1: 1, 2: 1, 3: 0}


def test_features_of_other_sources(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        x=np.array([[1, 0, 0.5], [0, 1, 2], [0, 1, 0.5]]),
        y=np.arange(3),
        names=np.array(["c=a", "c=b", "n"]),
    )
    source = load_data(f"npz:{tmp_path}/a.npz")
    assert source.columns == ("c=a", "c=b", "n")
    assert read_groups(source, "c").of == {0: 0, 1: 1, 2: 1}
    assert read_groups(source, "n").names == ("0.5", "2")


def test_values_from_python():
    source = load_data((torch.rand(5, 2), torch.zeros(5, dtype=torch.long)), examples="1:4")
    found = read_groups(source, ["old", "young", "old"])
    assert (found.column, found.names, found.of) == ("group", ("old", "young"), {1: 0, 2: 1, 3: 0})
    assert read_groups(source, torch.tensor([10, 9, 9])).names == ("9", "10")
    assert read_groups(source) is None


def test_what_is_no_group(path):
    plain = from_tensors(torch.rand(60, 2), torch.zeros(60, dtype=torch.long), "plain")
    for source, group, line in (
        (load_data(path), "race", r"people: no column race to group by; its columns are age, sex, hand, y$"),
        (plain, "sex", r"plain: no column sex to group by; its features have no names; from Python give group a value"),
        (plain, [1, 2], r"group: give the name of a column, or 60 values, one an example; not a list$"),
        (plain, range(60), r"group: give the name of a column, or 60 values, one an example; not a range$"),
        (plain, list(range(60)), r"group: group holds 60 different values; a result lists at most 50 groups"),
    ):
        with pytest.raises(DataError, match=line):
            read_groups(source, group)
