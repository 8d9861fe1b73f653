from datetime import date

import numpy as np
import pytest

from helpers.sources import check_source, drain, read
from holdfast.data import from_frame, load_data
from holdfast.errors import DataError


class Frame:
    """As much of a data frame as is asked of one."""

    def __init__(self, **columns):
        self.held = {name: np.asarray(values) for name, values in columns.items()}
        self.columns = list(self.held)
        self.shape = (len(next(iter(self.held.values()))), len(self.held))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, name):
        return self.held[name]


def flows(**more):
    return Frame(
        duration=np.array([0, 2, 1, 3]),
        protocol=np.array(["tcp", "udp", "tcp", "icmp"], object),
        rate=np.array([0.5, 1.5, -2, 4]),
        late=np.array([True, False, False, True]),
        attack=np.array(["no", "no", "yes", "yes"]),
        **more,
    )


def test_columns_and_labels():
    source = from_frame(flows(), "attack", group="protocol", name="flows")
    assert source.columns == ("duration", "rate", "late")
    assert source.classes == ("no", "yes")
    whole = check_source(source, count=4, shape=(3,), unit_range=False)
    assert whole.x.tolist() == [[0, 0.5, 1], [2, 1.5, 0], [1, -2, 0], [3, 4, 1]]
    assert whole.y.tolist() == [0, 0, 1, 1]
    assert source.raw.read("protocol") == ["tcp", "udp", "tcp", "icmp"]


def test_words_and_labels_beside_the_table():
    source = load_data((flows(), np.array([3, 3, 7, 3])))
    assert source.columns[:4] == ("duration", "protocol=icmp", "protocol=tcp", "protocol=udp")
    assert source.columns[-2:] == ("attack=no", "attack=yes")
    assert source.classes == ("3", "7")
    assert read(source, 4).y.tolist() == [0, 0, 1, 0]
    assert load_data((flows(), "attack")).classes == ("no", "yes")


def test_the_same_table_as_a_file(tmp_path):
    path = tmp_path / "flows.csv"
    path.write_text(
        "duration,protocol,rate,late,attack\n0,tcp,0.5,True,no\n2,udp,1.5,False,no\n1,tcp,-2,False,yes\n3,icmp,4,True,yes\n"
    )
    one, two = load_data((flows(), "attack")), load_data(f"csv:{path}?label=attack")
    assert one.columns == two.columns
    assert one.classes == two.classes
    assert read(one, 4).x.equal(read(two, 4).x)


@pytest.mark.parametrize(
    ("more", "label", "line"),
    [
        ({"x": [1.0, np.nan, 1, 1]}, "attack", "frame, row 1, column x: the value is missing (nan); fill it in"),
        (
            {"x": np.array(["a", "b", None, "c"], object)},
            "attack",
            "frame, row 2, column x: the value is missing (None)",
        ),
        ({"x": [1.0, 1, 1, np.inf]}, "attack", "frame, row 3, column x: inf is not finite"),
        ({}, "kind", "frame: no column kind; the columns are duration, protocol, rate, late, attack"),
        ({}, np.zeros(3), "frame: labels of shape (3,) for 4 rows; give one a row"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(more, label, line):
    with pytest.raises(DataError) as caught:
        load_data((flows(**more), label))
    assert str(caught.value).startswith(line)


def test_what_is_no_table():
    twice = Frame(a=[1], b=[2])
    twice.columns = ["a", "a", "b"]
    with pytest.raises(DataError, match=r"^data: a table alone has no labels; give a pair \(frame, 'COLUMN'\)$"):
        load_data(flows())
    with pytest.raises(DataError, match=r"^frame: a list has no columns with names; give a pandas DataFrame$"):
        from_frame([1], "a")
    with pytest.raises(DataError, match=r"^frame: the table is empty"):
        from_frame(Frame(a=[], b=[]), "b")
    with pytest.raises(DataError, match="two columns are called a"):
        from_frame(twice, "b")


def test_frames_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "n": pandas.array([1, 2, 3], "Int64"),
            "kind": pandas.Categorical(["b", "a", "b"], ["b", "a"]),
            "day": [date(2020, 1, 1)] * 3,
            "y": [0, 1, 1],
        }
    )
    source = load_data((frame, "y"))
    assert source.columns == ("n", "kind=a", "kind=b", "day=2020-01-01")
    assert read(source, 3).x.tolist() == [[1, 0, 1, 1], [2, 1, 0, 1], [3, 0, 1, 1]]
    assert drain(load_data((frame[["n"]], frame["y"]))) == 3
    frame.loc[1, "n"] = pandas.NA
    with pytest.raises(DataError, match=r"^frame, row 1, column n: the value is missing \((<NA>|nan)\)"):
        load_data((frame, "y"))
