"""Rules of a table, held against the data."""

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import DataError
from holdfast.threats.table import Column, Rules, Table

RULES = """norm = "linf"
eps = 0.1
relations = [
    "a <= b",
    "a >= {least}",
]
[columns]
{first} = {{ move = "up" }}
b = {{}}
"""


def written(folder, least=0, first="a"):
    path = folder / "rules.toml"
    path.write_text(RULES.format(least=least, first=first))
    return f"table:{path}"


def data(folder, header="a,b,label"):
    path = folder / "rows.csv"
    path.write_text(f"{header}\n" + "".join(f"{k / 10},{1 + k / 10},{k % 2}\n" for k in range(20)))
    return f"csv:{path}?label=label"


def test_rules_that_fit_are_taken(tmp_path):
    result = holdfast.audit(nn.Linear(2, 2), data(tmp_path), written(tmp_path), protocol="quick")
    assert result.examples == 20
    assert result.threat["name"].startswith("table:")


@pytest.mark.parametrize(
    ("rules", "header", "line"),
    [
        ({"least": 50}, "a,b,label", r"rules\.toml, line 5: relation 'a >= 50' holds of none of the 20 rows"),
        ({}, "a,c,label", r"rules\.toml, line 9: column 2 of \S+ is 'c', not 'b'"),
        ({}, "b,a,label", r"rules\.toml, line 8: column 1 of \S+ is 'b', not 'a'"),
    ],
)
def test_rules_about_other_data_are_refused_with_their_line(tmp_path, rules, header, line):
    with pytest.raises(DataError, match=line):
        holdfast.audit(nn.Linear(2, 2), data(tmp_path, header), written(tmp_path, **rules), protocol="quick")


def test_another_number_of_columns():
    table = Table(Rules((Column("a", move="up"),)), "linf", 0.1)
    with pytest.raises(DataError, match="rules for 1 columns, but inputs of tensors have the shape"):
        holdfast.audit(nn.Linear(2, 2), (torch.zeros(4, 2), torch.zeros(4).long()), table)
