"""Rules of a table beside the data that they are about."""

import torch

from holdfast.data import Source, columns_of
from holdfast.errors import DataError
from holdfast.threats import Table, Threat
from holdfast.threats.table.checks import check_relations

__all__ = ["check_rules"]

# Rows that are read at a time.
_ROWS = 4096


def check_rules(threat: Threat, source: Source) -> None:
    """Refuse rules that are not about a table's columns, or that none of its rows satisfies.

    Raises
    ------
    DataError
        Naming the first column that is another one, or the relation with its line.
    """
    if not isinstance(threat, Table):
        return
    rules, columns = threat.rules, columns_of(source)
    if source.shape != (len(rules.names),):
        raise DataError(
            f"{rules.where(0)}: rules for {len(rules.names)} columns, but inputs of {source.name} have the shape "
            f"{source.shape}: give every column a line, in the order of the data"
        )
    for number, (ours, theirs) in enumerate(zip(rules.names, columns or rules.names, strict=True)):
        if ours != theirs:
            line = rules.columns[number].line
            raise DataError(
                f"{rules.where(line)}: column {number + 1} of {source.name} is {theirs!r}, not {ours!r}: name the "
                "columns in the order of the data"
            )
    if rules.relations:
        check_relations(rules, torch.cat([batch.x for batch in source.batches(_ROWS)]))
