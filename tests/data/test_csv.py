import gzip

import numpy as np
import pytest
import torch

from helpers.shared import SHARED, needs_shared
from helpers.sources import check_source, drain, peak_memory, read
from holdfast.data import load_data
from holdfast.errors import DataError

ROWS = """duration,protocol,bytes,service,attack
0,tcp,181,http,normal
2.5,udp,-1e3,domain,normal

1,"tcp",7,"a, b",smurf
3, icmp ,8,http,back
"""


def spec(tmp_path, text, query="label=attack", name="flows.csv"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return f"csv:{path}?{query}"


@pytest.mark.parametrize("name", ["flows.csv", "flows.csv.gz"])
def test_words_become_columns_with_names(tmp_path, name):
    source = load_data(spec(tmp_path, ROWS, name=name))
    assert source.columns == (
        "duration", "protocol=icmp", "protocol=tcp", "protocol=udp", "bytes",
        "service=a, b", "service=domain", "service=http",
    )  # fmt: skip
    assert source.name == "flows"
    assert source.classes == ("back", "normal", "smurf")
    whole = check_source(source, count=4, shape=(8,), unit_range=False)
    assert whole.y.tolist() == [1, 1, 2, 0]
    assert whole.x.tolist() == [
        [0, 0, 1, 0, 181, 0, 0, 1],
        [2.5, 0, 0, 1, -1000, 0, 1, 0],
        [1, 0, 1, 0, 7, 1, 0, 0],
        [3, 1, 0, 0, 8, 0, 0, 1],
    ]


def test_columns_are_chosen(tmp_path):
    only = load_data(spec(tmp_path, ROWS, "label=attack&drop=service,protocol"))
    assert only.columns == ("duration", "bytes")
    assert load_data(spec(tmp_path, ROWS, "label=attack&use=bytes,duration")).columns == ("duration", "bytes")
    grouped = load_data(spec(tmp_path, ROWS, "label=attack&group=protocol&use=bytes"))
    assert grouped.columns == ("bytes",)
    assert grouped.raw.group == "protocol"
    assert grouped.raw.read("protocol") == ["tcp", "udp", "tcp", "icmp"]
    odd = "a&b,a=b,c%\n1,0,x\n2,1,y\n"
    assert load_data(spec(tmp_path, odd, "label=a%3Db&drop=c%25")).columns == ("a&b",)


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        ("10 9 9 2", ("2", "9", "10"), [2, 1, 1, 0]),
        ("ham spam ham Ham", ("Ham", "ham", "spam"), [1, 2, 1, 0]),
        ("True False True True", ("False", "True"), [1, 0, 1, 1]),
        ("1 2 x 1", ("1", "2", "x"), [0, 1, 2, 0]),
    ],
)
def test_labels_are_classes_with_names(tmp_path, labels, classes, codes):
    source = load_data(spec(tmp_path, "a,b\n" + "".join(f"1,{one}\n" for one in labels.split()), "label=b"))
    assert source.classes == classes
    assert read(source, 4).y.tolist() == codes


def test_truth_is_a_number(tmp_path):
    source = load_data(spec(tmp_path, "a;b\nTrue;0\nFALSE;1\n", "label=b"))
    assert source.columns == ("a",)
    assert read(source, 2).x.tolist() == [[1], [0]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_marks_and_line_ends(tmp_path, separator):
    text = "\ufeff" + separator.join("xyz") + "\r\n" + separator.join(["1.5", '"say ""no"""', "0"]) + "\r\n"
    source = load_data(spec(tmp_path, text + separator.join(["2", "b", "1"]), "label=z"))
    assert source.columns == ("x", "y=b", 'y=say "no"')
    assert read(source, 2).x.tolist() == [[1.5, 0, 1], [2, 1, 0]]


def test_files_without_a_header_and_names_that_come_twice(tmp_path):
    assert load_data(spec(tmp_path, "5,x,0\n6,y,1\n", "label=2&header=none")).columns == ("0", "1=x", "1=y")
    assert load_data(spec(tmp_path, "a,a,b\n5,1,0\n6,2,1\n", "label=b")).columns == ("a", "a.1")


def test_words_of_the_training_examples(tmp_path):
    train = tmp_path / "train.csv"
    train.write_text("a,b,c\n1,x,0\n2,y,1\n3,z,2\n")
    source = load_data(spec(tmp_path, "c,b,a\n1,y,7\n0,x,8\n", f"label=c&like={train}"))
    assert source.columns == ("a", "b=x", "b=y", "b=z")
    assert source.classes == ("0", "1", "2")
    assert read(source, 2).x.tolist() == [[7, 0, 1, 0], [8, 1, 0, 0]]
    with pytest.raises(
        DataError, match=r"test\.csv, line 3, column b: 'w' is none of the 3 values that are known \(x, y, z"
    ):
        drain(load_data(spec(tmp_path, "a,b,c\n1,y,1\n1,w,0\n", f"label=c&like={train}", "test.csv")))


FAULTS = {
    "missing": ("a,b\n1,0\n,1\n", "label=b", ", line 3, column a: the value is missing; fill it in, or drop that row"),
    "nan": ("a,b\nnan,0\n1,1\n", "label=b", ", line 2, column a: the value is missing (nan); fill it in"),
    "mark": ("a,b\n1,0\n?,1\n", "label=b", ", line 3, column a: the value is missing (?); fill it in"),
    "no label": ("a,b\n1,0\n1,NA\n", "label=b", ", line 3, column b: the value is missing (NA); fill it in"),
    "infinite": ("a,b\n1,0\n-inf,1\n", "label=b", ", line 3, column a: -inf is not finite; mend or drop that row"),
    "ragged": ("a,b\n1,0\n1\n", "label=b", ", line 3: 1 values where there are 2 columns; mend or drop that line"),
    "quote": ('a,b\n1,0\n"1,1\n', "label=b", ", line 3: 1 values where there are 2 columns; mend or drop that line"),
    "empty": ("", "label=b", ": is empty; a line of names and a line an example are needed"),
    "names only": ("a,b\n", "label=b", ": no line after that of the names; give at least one example"),
    "nameless": (",b\n1,0\n", "label=b", ": column 1 has no name: name it, or leave it out of the file (of pandas, by"),
    "no column": ("a,b\n1,0\n", "label=c", ": no column c; the columns are a, b"),
    "no features": ("a,b\n1,0\n", "label=b&drop=a", ": no column is left for a feature; leave fewer out"),
    "label dropped": ("a,b\n1,0\n", "label=b&drop=b", ": column b is the label; leave it out of use, drop and group"),
    "used and dropped": ("a,b\n1,0\n", "label=b&drop=a&use=a", ": column a is to be used and set aside; name it once"),
    "free text": (
        "a,b\n" + "".join(f"w{n},0\n" for n in range(300)),
        "label=b",
        ", line 2, column a: 'w0' is no number, and the column holds more than 256 different values; leave it out with "
        "drop=a, or turn it into numbers or fewer words",
    ),
    "measurement": (
        "a,b\n" + "".join(f"1,{n}.5\n" for n in range(1100)),
        "label=b",
        "column b, the label, holds more than 1000 different values; name one that holds classes, not measurements",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_line(tmp_path, fault):
    text, query, line = FAULTS[fault]
    with pytest.raises(DataError) as caught:
        drain(load_data(spec(tmp_path, text, query)))
    assert line in str(caught.value)
    assert "flows.csv" in str(caught.value) or fault == "measurement"
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_table(tmp_path):
    path = tmp_path / "a.csv"
    for content, line in ((b"a,b\n1,\xff\n", "not text in UTF-8"), (b"a,b\n" + b"1" * 2**22, "more than 4194304 char")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=line):
            load_data(f"csv:{path}?label=b")
    with pytest.raises(DataError, match=r"cannot be read \(Not a gzipped file"):
        load_data(f"csv:{path.rename(tmp_path / 'a.csv.gz')}?label=b")


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("", "which column is the label? write csv:a.csv?label=COLUMN"),
        ("label=b&header=yes", "header=yes is not known; say header=none where there is none"),
        ("label=b&sep=;", 'option "sep=;" is not known; use label, use, drop, group, like or header'),
    ],
)
def test_options_that_are_not_known(query, line):
    with pytest.raises(DataError) as caught:
        load_data(f"csv:a.csv?{query}")
    assert str(caught.value) == f"csv:a.csv{'?' + query}: {line}"


def test_large_files_are_never_held(tmp_path):
    rng = np.random.default_rng(0)
    text = "a,b,c\n" + "".join(f"{one:.6f},{'xyz'[n % 3]},{n % 2}\n" for n, one in enumerate(rng.normal(size=60_000)))
    source = load_data(spec(tmp_path, text, "label=c", "large.csv.gz"))
    with peak_memory(3 * 2**20):
        assert drain(source) == 60_000


@needs_shared
def test_published_tables():
    tabular = SHARED / "data" / "tabular"
    adult = load_data(f"csv:{tabular}/adult-train.csv.gz?label=14&header=none&group=9")
    assert (len(adult), adult.classes) == (32561, ("<=50K", ">50K"))
    assert "1=Private" in adult.columns
    assert not any(name.startswith("9=") for name in adult.columns)
    y = torch.cat([batch.y for batch in adult.batches(4096)])
    assert int(y.sum()) == 7841  # as published
    use = "sex,age,race,priors_count,c_charge_degree"
    compas = load_data(f"csv:{tabular}/compas-scores-two-years.csv.gz?label=two_year_recid&use={use}")
    assert (len(compas), compas.classes) == (7214, ("0", "1"))
    for name, columns in (("spambase", 57), ("url_phishing", 87)):
        source = load_data(f"npz:{tabular}/{name}.npz")
        assert source.columns is not None
        assert len(source.columns) == columns
