"""Tables: rows whose columns have types, directions, bounds and relations between them."""

from holdfast.threats.table.columns import Column, Group
from holdfast.threats.table.relations import Comparison, Relation, parse_relation
from holdfast.threats.table.rules import Rules

__all__ = ["Column", "Comparison", "Group", "Relation", "Rules", "parse_relation"]
