"""Tables: rows whose columns have types, directions, bounds and relations between them."""

from holdfast.threats.table.checks import check_relations
from holdfast.threats.table.columns import Column, Group
from holdfast.threats.table.draft import draft
from holdfast.threats.table.reading import read_table
from holdfast.threats.table.relations import Comparison, Relation, parse_relation
from holdfast.threats.table.rules import Rules
from holdfast.threats.table.table import Table

__all__ = [
    "Column",
    "Comparison",
    "Group",
    "Relation",
    "Rules",
    "Table",
    "check_relations",
    "draft",
    "parse_relation",
    "read_table",
]
