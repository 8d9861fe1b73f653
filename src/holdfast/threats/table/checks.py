"""Rows that rules are not for, and relations that no row satisfies."""

from torch import Tensor

from holdfast.errors import DataError
from holdfast.threats.table.layout import Layout, layout_of
from holdfast.threats.table.rows import in_bounds
from holdfast.threats.table.rules import Rules

__all__ = ["check_relations", "check_rows"]


def check_rows(rules: Rules, layout: Layout, x: Tensor, index: Tensor | None = None) -> None:
    """Refuse clean rows that their columns' rules exclude: no change of them would mean anything.

    Parameters
    ----------
    rules, layout
        The rules, twice.
    x : Tensor
        ``(N, d)`` clean rows in float64.
    index : Tensor, optional
        ``(N,)`` which examples they are, for the message; row numbers without it.

    Raises
    ------
    DataError
        Naming the first example, the column and the rule's line.
    """
    if x.dim() != 2 or x.shape[1] != len(rules.columns):
        shape = " x ".join(map(str, x.shape[1:])) or "one number"
        raise DataError(
            f"{rules.where(0)}: there are rules for {len(rules.columns)} columns, but an example has {shape}: give "
            "rows of the same columns in the same order"
        )
    bad = ~x.isfinite() | (layout.integer & (x != x.round())) | ~in_bounds(layout, x)
    for group in layout.groups:
        row = x[:, group.columns]
        bad[:, group.columns] |= (((row != 0) & (row != 1)).any(1) | (row.sum(1) != 1)).unsqueeze(1)
    if not bool(bad.any()):
        return
    place, column = (int(number) for number in bad.nonzero()[0])
    example = place if index is None or len(index) != len(x) else int(index[place])
    rule, value = rules.columns[column], float(x[place, column])
    group_of = next((group for group in rules.groups if rule.name in group.columns), None)
    if group_of is not None:
        where, words = group_of.line, f"of group {group_of.name!r} must hold one 1 and otherwise 0"
    elif rule.kind == "integer" and not value.is_integer():
        where, words = rule.line, "holds whole numbers"
    else:
        where, words = rule.line, f"goes from {rule.lower:g} to {rule.upper:g}"
    raise DataError(
        f"{rules.where(where)}: example {example} has {value:g} in column {rule.name!r}, which {words}: mend the rule, "
        "or leave the example out"
    )


def check_relations(rules: Rules, x: Tensor) -> None:
    """Refuse a relation that none of the clean rows ``(N, d)`` satisfies.

    Raises
    ------
    DataError
        Naming the first such relation, with its line.
    """
    never = ~layout_of(rules).satisfied(x.double()).any(0)
    if len(x) and bool(never.any()):
        relation = rules.relations[int(never.nonzero()[0, 0])]
        raise DataError(
            f"{rules.where(relation.line)}: relation {relation.text!r} holds of none of the {len(x)} rows of the data: "
            "mend the relation, or the order of the columns"
        )
