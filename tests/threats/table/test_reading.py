import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.shared import SHARED, needs_shared
from holdfast.errors import DataError, SettingError
from holdfast.threats import parse_threat
from holdfast.threats.table import Column, Group, Rules, Table, parse_relation, read_table
from holdfast.threats.table.checks import check_relations
from holdfast.threats.table.layout import layout_of

GOOD = """\
norm = "linf"
eps = 0.5
relations = [
    # the first
    "bytes <= 3*packets + 10", "packets >= 0",
    'failed > 0 -> `flag=SF` = 0',
]

[columns]
bytes = { kind = "integer", move = "up", bounds = [0, 1e6], unit = "range", range = [0, 400] }
packets = { kind = "integer", move = "both", most = 5, unit = "std", std = 2.5, cost = 3 }
failed = {}
"flag=S0" = {}
"flag=SF" = {}

[columns.rate]
move = "down"
bounds = [0, inf]
unit = 0.25

[groups]
flag = { columns = "flag=*", distance = 0.5, transitions = { "flag=S0" = ["flag=SF"] } }
"""


def written(tmp_path, text):
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return path


def test_a_file_and_the_same_rules_in_python(tmp_path):
    path = written(tmp_path, GOOD)
    threat = read_table(path)
    rules = Rules(
        (
            Column("bytes", "integer", "up", lower=0, upper=1e6, unit=400, measure="range"),
            Column("packets", "integer", "both", most=5, unit=2.5, measure="std", cost=3),
            Column("failed"),
            Column("flag=S0"),
            Column("flag=SF"),
            Column("rate", move="down", lower=0, upper=math.inf, unit=0.25),
        ),
        (Group("flag", ("flag=S0", "flag=SF"), distance=0.5, transitions=(("flag=S0", ("flag=SF",)),)),),
        (
            parse_relation("bytes <= 3*packets + 10"),
            parse_relation("packets >= 0"),
            parse_relation("failed > 0 -> `flag=SF` = 0"),
        ),
    )
    assert threat.rules == rules
    assert threat.to_dict() == Table(rules, "linf", 0.5).to_dict()
    assert [relation.line for relation in threat.rules.relations] == [5, 5, 6]
    assert [column.line for column in threat.rules.columns] == [10, 11, 12, 13, 14, 16]
    assert threat.rules.groups[0].line == 22
    assert threat.name == f"table:{path}"
    assert parse_threat(threat.name).to_dict() == threat.to_dict()


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('norm = "linf"', 'norm = "l3"', 1, "unknown norm 'l3': write one of linf, l2, l1, l0, cost"),
        ('norm = "linf"\n', "", 0, "there is no norm"),
        ("eps = 0.5", "eps = -1", 2, "at least 0"),
        ("eps = 0.5", "eps = [1]", 2, "eps must be one number"),
        ("eps = 0.5", "epsilon = 0.5", 2, "unknown key 'epsilon'"),
        ("eps = 0.5", 'eps = "a/b"', 2, "'a/b' is not a number"),
        ("packets >= 0", "packages >= 0", 5, "relation 'packages >= 0': there is no column 'packages'"),
        ("3*packets", "3*packets*bytes", 5, "cannot be read"),
        ("'failed > 0 -> `flag=SF` = 0'", "7", 3, "a relation must be a text, got 7"),
        ('unit = "range"', 'unit = "furlong"', 10, "unknown unit 'furlong': write raw, range, std"),
        (", range = [0, 400]", "", 10, 'unit = "range" needs range'),
        ("range = [0, 400]", "range = [0]", 10, "range must be two numbers [low, high], got [0]"),
        ("range = [0, 400]", "range = [4, 4]", 10, "its unit must be a positive number"),
        ("bounds = [0, 1e6]", "bounds = [1e6, 0]", 10, "the lower bound 1e+06 is above"),
        ("std = 2.5", 'std = "2.5"', 11, "unit must be a number"),
        ("most = 5", "limit = 5", 11, "unknown key 'limit' in columns packets: there are kind, move"),
        ("failed = {}", "failed = { range = [0, 1] }", 12, 'range is used only with unit = "range"'),
        ("failed = {}", "failed = 3", 12, "'failed' in [columns] must be settings between braces"),
        ('move = "down"', 'move = "downwards"', 16, "unknown move 'downwards'"),
        ("unit = 0.25", "unit = 0.25\nrelations = []", 20, "unknown key 'relations' in columns rate: write it above"),
        ('"flag=*"', '"flog=*"', 22, "0 columns are called 'flog=*'"),
        ('"flag=*"', "[1, 2]", 22, "columns must list names"),
        ('["flag=SF"]', '["flag=S1"]', 22, "'flag=S1', which is none of its columns"),
        ('{ "flag=S0" = ["flag=SF"] }', "3", 22, "transitions must be"),
        ("distance = 0.5", "distance = -1", 22, "distance must be"),
        ('"flag=SF" = {}', '"flag=SF" = { cost = 2 }', 14, "column 'flag=SF' is of a group"),
        ("[groups]", "[group]", 21, "unknown key 'group'"),
        ("eps = 0.5", "eps = 0.5 0.6", 2, "not a file in TOML"),
        ("failed = {}", "failed = {}\nfailed = {}", 13, "not a file in TOML"),
    ],
)
def test_a_bad_rule_is_refused_in_one_line_with_its_number(tmp_path, old, new, line, words):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(SettingError) as caught:
        read_table(path)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert str(path) in message
    found = re.search(r"line (\d+)", message)
    assert (int(found[1]) if found else 0) == line


def test_lines_are_right_after_a_long_list(tmp_path):
    many = "".join(f'    "packets >= {-number}", # {number}\n' for number in range(3000))
    text = GOOD.replace('    "bytes <=', many + '    "bytes <=')
    relations = read_table(written(tmp_path, text)).rules.relations
    assert [relation.line for relation in relations[:3]] == [5, 6, 7]
    assert relations[-1].line == 3006
    with pytest.raises(SettingError, match="line 3016: column 'rate'"):
        read_table(written(tmp_path, text.replace('move = "down"', 'move = "off"')))


def test_files_that_are_none(tmp_path):
    with pytest.raises(SettingError, match="no such file"):
        parse_threat("table:nowhere.toml")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match="UTF-8"):
        read_table(tmp_path / "bytes")
    with pytest.raises(SettingError, match="there is no norm"):
        read_table(written(tmp_path, ""))


def test_rows_that_rules_exclude_are_named_with_the_rule(tmp_path):
    threat = read_table(written(tmp_path, GOOD))
    row = torch.tensor([[5.0, 1.0, 0.0, 1.0, 0.0, 0.5]])
    assert bool(threat.contains(row, threat.nothing(row)).all())
    for column, value, line, words in (
        (0, -1.0, 10, "-1 in column 'bytes', which goes from 0 to 1e+06"),
        (0, 0.5, 10, "0.5 in column 'bytes', which holds whole numbers"),
        (5, -0.25, 16, "-0.25 in column 'rate'"),
        (4, 1.0, 22, "column 'flag=S0', which of group 'flag' must hold one 1"),
        (3, 0.25, 22, "which of group 'flag' must hold one 1"),
        (2, math.nan, 12, "nan in column 'failed'"),
    ):
        rows = row.repeat(3, 1)
        rows[1, column] = value
        with pytest.raises(DataError) as caught:
            threat.at(torch.tensor([7, 41, 3])).near(rows)
        assert f"line {line}: example 41 has" in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="rules for 6 columns, but an example has 5"):
        threat.nothing(row[:, :5])
    with pytest.raises(DataError, match="an example has 1 x 6"):
        threat.nothing(row.unsqueeze(1))


def test_a_relation_that_no_row_satisfies_is_named_with_its_line(tmp_path):
    threat = read_table(written(tmp_path, GOOD.replace("packets >= 0", "packets >= 100")))
    rows = torch.tensor([[5.0, 1.0, 0.0, 1.0, 0.0, 0.5], [5.0, 90.0, 0.0, 1.0, 0.0, 0.5]])
    with pytest.raises(DataError, match=r"line 5: relation 'packets >= 100' holds of none of the 2 rows"):
        check_relations(threat.rules, rows)
    check_relations(threat.rules, rows + torch.tensor([0.0, 10, 0, 0, 0, 0]))
    check_relations(threat.rules, rows[:0])


RULES = Path(__file__).parents[3] / "examples" / "rules"
NAMES = ("spambase", "url_phishing", "nsl_kdd")


def test_every_file_of_the_examples_is_read():
    assert sorted(path.stem for path in RULES.glob("*.toml")) == sorted(NAMES)
    for name in NAMES:
        threat = read_table(RULES / f"{name}.toml")
        assert parse_threat(threat.name).to_dict() == threat.to_dict()


@needs_shared
@pytest.mark.parametrize("name", NAMES)
def test_the_rules_of_the_examples_hold_of_their_data(name):
    """But for a few rows in a thousand, as published relations do."""
    threat = read_table(RULES / f"{name}.toml")
    data = np.load(SHARED / "data" / "tabular" / f"{name}.npz")
    x = data["x_train" if name == "nsl_kdd" else "x"].astype(np.float64)
    if name == "nsl_kdd":
        words = {1: len(data["protocol"]), 2: len(data["service"]), 3: len(data["flag"])}
        x = np.hstack([np.eye(words[j])[x[:, j].astype(int)] if j in words else x[:, [j]] for j in range(x.shape[1])])
    else:
        assert threat.rules.names == tuple(data["names"])
    rows = torch.tensor(x)
    threat.near(rows)
    check_relations(threat.rules, rows)
    assert int((~layout_of(threat.rules).satisfied(rows)).any(1).sum()) < 0.001 * len(rows)
