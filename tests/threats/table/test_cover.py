"""Cells against rows that are known to be admissible, and proofs over them against enumeration."""

import pytest
import torch
from torch import nn

from helpers.tables import random_rules
from helpers.zoo import random_linear
from holdfast.certify import certify
from holdfast.draws import Draws
from holdfast.threats.table import Column, Rules, Table, parse_relation, read_table


def admissible_rows(threat, one, seed):
    """``(M, d)`` rows around one clean row, found in all ways."""
    rows, index = [one], torch.tensor([0])
    generator = torch.Generator().manual_seed(seed)
    for number in range(12):
        rows.append(threat.apply(one, threat.sample(one, Draws(number, index))))
        noise = torch.randn(one.shape, generator=generator, dtype=torch.float64) * 10.0 ** (number % 4 - 1)
        rows.append(threat.apply(one, threat.retract(noise.to(one.dtype), one)))
    return torch.cat(rows)


@pytest.mark.parametrize("seed", range(12))
def test_no_admissible_row_is_lost_however_often_cells_are_split(seed, tmp_path):
    text, x = random_rules(seed)
    path = tmp_path / "rules.toml"
    path.write_text(text)
    threat, one = read_table(path), x[:1].to(torch.float32 if seed % 2 else torch.float64)
    rows, cells = admissible_rows(threat, one, seed), threat.cells(one[0])
    for _ in range(5):
        lower, upper = threat.box(one[0], cells)
        held = (rows[:, None] >= lower) & (rows[:, None] <= upper)
        where = held.all(2)
        assert bool(where.any(1).all())
        # The very row is chosen in a cell that holds it.
        cell = where.int().argmax(1)
        z = threat.choose(one[0], cells[cell], rows)
        many = one.expand(len(rows), -1)
        assert torch.equal(threat.apply(many, z), rows)
        assert bool(threat.contains(many, threat.choose(one[0], cells[cell], rows + 1)).all())
        finer = threat.split(cells)
        if not len(finer) or len(finer) > 300:
            break
        assert len(finer) == 2 * len(cells)
        cells = finer


def test_relations_and_budget_cut_cells_before_they_are_split():
    columns = tuple(Column(name, "integer", "both", lower=0, upper=100) for name in "abc")
    relations = (parse_relation("a + b <= 12"), parse_relation("a > 3 -> c = 7"))
    x = torch.tensor([3.0, 2.0, 5.0])
    l1 = Table(Rules(columns, (), relations), "l1", 4)
    lower, upper = l1.box(x, l1.cells(x)[:1])
    assert lower.tolist() == [[0, 0, 1]]
    assert upper.tolist() == [[7, 6, 9]]
    sure = Table(Rules(columns, (), (*relations, parse_relation("a >= 6"))), "l1", 5)
    lower, upper = sure.box(x, sure.cells(x)[:1])
    # a takes 3 of the 5 and c then must go to 7, which takes the rest.
    assert lower.tolist() == [[6, 2, 7]]
    assert upper.tolist() == [[6, 2, 7]]


def test_a_box_that_is_all_admissible_is_not_split():
    threat = Table(Rules((Column("a", move="both"), Column("b"))), "linf", 0.5)
    cells = threat.cells(torch.tensor([1.0, 2.0]))
    assert len(threat.split(cells)) == 0
    round_ = Table(threat.rules, "l2", 0.5)
    assert len(round_.split(round_.cells(torch.tensor([1.0, 2.0])))) == 0  # one column: a ball is a box


@pytest.mark.parametrize("seed", range(3))
def test_proofs_over_cells_agree_with_enumeration(seed):
    """A small network on whole numbers: certified exactly where no row of the grid is misclassified."""
    columns = tuple(Column(name, "integer", "both", lower=0, upper=6) for name in "abc")
    relations = (parse_relation("a + b + c <= 9"), parse_relation("a > 4 -> b = 0"))
    threat = Table(Rules(columns, (), relations), "l1", 3)
    model = nn.Sequential(random_linear(3, 8, seed), nn.ReLU(), random_linear(8, 2, seed + 50)).double()
    x = torch.tensor([[1.0, 2, 3], [4, 0, 4], [0, 0, 0], [2, 2, 2], [6, 0, 1]], dtype=torch.float64)
    y = model(x).argmax(1)
    grid = torch.cartesian_prod(*[torch.arange(7, dtype=torch.float64)] * 3)
    wrong = model(grid).argmax(1)
    for row, label, certificate in zip(x, y, certify(model, x, y, threat, method="complete"), strict=True):
        admitted = threat.admits(grid, row.expand_as(grid))
        assert certificate.verdict == ("broken" if bool((wrong != label)[admitted].any()) else "certified")
