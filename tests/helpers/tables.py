"""Random rules of tables, as text, and a judge of rows that reads the same text: plain Python and fractions.

Nothing of holdfast is used here: a row that this judge passes obeys the rules whatever holdfast thinks of it.
"""

import operator
import random
import re
import tomllib
from fractions import Fraction

import numpy as np
import torch

SENSES = {"<": operator.lt, "<=": operator.le, "=": operator.eq, ">=": operator.ge, ">": operator.gt}
MILLIONTH = Fraction(1, 10**6)


def number(value):
    """A number of a rules file as the decimal that is written there."""
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def split(comparison):
    """``(left, sense, right)``, each side as ``{column or None: coefficient}``."""
    name = re.compile(r"`([^`]*)`|(?<![\w.])([A-Za-z_][\w.]*)")
    names = [quoted or bare for quoted, bare in name.findall(comparison)]
    left, sense, right = re.split(r"(<=|>=|=|<|>)", name.sub("@", comparison), maxsplit=1)
    return side(left, names), sense, side(right, names)


def side(text, names):
    """Columns stand as ``@``, their names in order in ``names``."""
    total = {}
    for sign, term in re.findall(r"([+-]?)\s*([^\s+-][^+-]*)", text):
        coefficient, column, _ = term.partition("@")
        factor = Fraction(coefficient.strip().removesuffix("*") or 1) * (-1 if sign == "-" else 1)
        name = names.pop(0) if column else None
        total[name] = total.get(name, 0) + factor
    return total


class Judge:
    """What the text of a rules file says of rows."""

    def __init__(self, text):
        rules = tomllib.loads(text)
        self.norm, self.eps = rules["norm"], number(rules["eps"])
        self.columns, self.groups = rules["columns"], rules.get("groups", {})
        self.names = list(self.columns)
        self.relations = [[split(part) for part in text.split("->")] for text in rules.get("relations", [])]
        for group in self.groups.values():
            if isinstance(group["columns"], str):
                group["columns"] = [name for name in self.names if name.startswith(group["columns"].removesuffix("*"))]
        members = {name for group in self.groups.values() for name in group["columns"]}
        self.whole = {name for name, c in self.columns.items() if c.get("kind") == "integer"} | members
        self.grouped = members

    def says(self, clean, row, precision):
        """The first rule that ``row`` breaks as a change of ``clean``, lists of floats; None where it breaks none."""
        if row == clean:
            return None
        before = dict(zip(self.names, map(Fraction, clean), strict=True))
        after = dict(zip(self.names, map(Fraction, row), strict=True))
        spent = []
        for name, column in self.columns.items():
            if name in self.grouped:
                continue
            change, whole = after[name] - before[name], name in self.whole
            if not change:
                continue
            if column.get("move", "none") not in ("both", "up" if change > 0 else "down"):
                return f"{name} may not go that way"
            if whole and after[name].denominator != 1:
                return f"{name} is not whole"
            room = 0 if whole else MILLIONTH
            low, high = (number(end) if abs(end) != float("inf") else end for end in column.get("bounds", self.open))
            if after[name] < low - room * abs(low) or after[name] > high + room * abs(high):
                return f"{name} is out of bounds"
            size = abs(change)
            if not whole:
                size = max(size * (1 - MILLIONTH) - Fraction(precision) / 2 * abs(after[name]), 0)
            if "most" in column and size > number(column["most"]):
                return f"{name} goes too far"
            unit = {"range": lambda c: number(c["range"][1]) - number(c["range"][0]), "std": lambda c: number(c["std"])}
            scale = column.get("unit", "raw")
            scale = 1 if scale == "raw" else unit[scale](column) if isinstance(scale, str) else number(scale)
            spent.append(size / scale * (number(column.get("cost", 1)) if self.norm == "cost" else 1))
        for name, group in self.groups.items():
            values = [after[column] for column in group["columns"]]
            if sorted(values) != [0] * (len(values) - 1) + [1]:
                return f"{name} is not one category"
            start = next(column for column in group["columns"] if before[column] == 1)
            end = next(column for column in group["columns"] if after[column] == 1)
            if start != end:
                if "transitions" in group and end not in group["transitions"].get(start, []):
                    return f"{name} may not go from {start} to {end}"
                spent.append(number(group.get("cost" if self.norm == "cost" else "distance", 1)))
        for parts in self.relations:
            *guard, comparison = parts
            held = all(self.holds(part, after, lenient=False) for part in guard)
            if held and not self.holds(comparison, after, lenient=True):
                return f"the relation {parts}"
        length = {
            "linf": lambda s: max(s, default=Fraction(0)),
            "l1": sum,
            "cost": sum,
            "l0": lambda s: Fraction(sum(v > 0 for v in s)),
            "l2": lambda s: sum(v * v for v in s),
        }[self.norm](spent)
        limit = (self.eps * (1 + Fraction(1, 10**9))) ** (2 if self.norm == "l2" else 1)
        return f"{float(length)} of the budget {float(limit)}" if length > limit else None

    open = (float("-inf"), float("inf"))

    def holds(self, comparison, row, lenient):
        left, sense, right = comparison
        terms = {name: left.get(name, 0) - right.get(name, 0) for name in left | right}
        bound = -Fraction(terms.pop(None, 0))
        value = sum((factor * row[name] for name, factor in terms.items()), Fraction(0))
        if lenient and not self.whole.issuperset(terms) and sense in ("<=", "=", ">="):
            size = sum((abs(factor * row[name]) for name, factor in terms.items()), abs(bound))
            # A hair more than is promised, for the sums of floats.
            slack = size * MILLIONTH * (1 + Fraction(1, 10**6))
            return (sense == ">=" or value - bound <= slack) and (sense == "<=" or value - bound >= -slack)
        if not lenient and not self.whole.issuperset(terms) and sense in ("<", ">"):
            # Whether a guard holds at its very edge is a matter of how decimals are written in binary.
            hair = (abs(bound) + sum(abs(factor * row[name]) for name, factor in terms.items())) / 10**12
            return value < bound - hair if sense == "<" else value > bound + hair
        return SENSES[sense](value, bound)

    def broken(self, clean, rows):
        """What the first bad row breaks, for tensors ``(N, d)``."""
        precision = torch.finfo(rows.dtype).eps
        for x, row in zip(clean.double().tolist(), rows.double().tolist(), strict=True):
            if not np.isfinite(row).all():
                return "a number that is none"
            if fault := self.says(x, row, precision):
                return f"{fault}: {x} became {row}"
        return None


def random_rules(seed, rows=4, norm=None, whole=None):
    """``(text, x)``: a rules file, and clean rows ``(rows, d)`` float64 that satisfy it.

    Columns of every kind, direction and unit, groups, inequalities, equalities and implications with whole and with
    fractional coefficients; bounds and right-hand sides are chosen so that the rows obey.
    """
    rng = random.Random(seed)
    singles, groups = rng.randint(1, 6), rng.randint(0, 2)
    names, columns, data, kinds = [], {}, [], {}
    for j in range(singles):
        name = rng.choice(["c{}", "a.{}", "näme {}"]).format(j)
        kind = rng.choice(["real", "integer"]) if whole is None else ("integer" if whole else "real")
        values = [rng.randint(-8, 40) if kind == "integer" else round(rng.uniform(-8, 40), 2) for _ in range(rows)]
        entry = {"kind": kind, "move": rng.choice(["both", "both", "up", "down", "none"])}
        if norm == "l0" or rng.random() < 0.6:
            entry["bounds"] = [min(values) - rng.choice([0, 3, 7.5]), max(values) + rng.choice([0, 2, 11.5])]
        if rng.random() < 0.2:
            entry["most"] = rng.choice([1, 2.5, 10])
        unit = rng.choice(["raw", "range", "std", 4])
        entry["unit"] = unit
        if unit == "range":
            entry["range"] = [min(values) - 1, max(values) + rng.choice([1, 0.7])]
        elif unit == "std":
            entry["std"] = rng.choice([0.1, 2.5, 7])
        if rng.random() < 0.4:
            entry["cost"] = rng.choice([0.5, 2, 3])
        names.append(name)
        columns[name], kinds[name] = entry, kind
        data.append(values)
    lines = {}
    for g in range(groups):
        members = [f"g{g}={k}" for k in range(rng.randint(2, 4))]
        chosen = [rng.randrange(len(members)) for _ in range(rows)]
        for k, member in enumerate(members):
            columns[member], kinds[member] = {}, "integer"
            data.append([int(c == k) for c in chosen])
        entry = {"columns": members, "distance": rng.choice([0.5, 1, 1.5]), "cost": rng.choice([0.5, 2])}
        if rng.random() < 0.4:
            entry["transitions"] = {
                m: rng.sample(members, rng.randint(0, len(members))) for m in members if rng.random() < 0.7
            }
        lines[f"g{g}"] = entry
    if not any(c.get("move", "none") != "none" for c in columns.values()) and not lines:
        columns[names[0]]["move"] = "both"
    table = dict(zip(columns, data, strict=True))
    relations = [relation(rng, table, kinds) for _ in range(rng.randint(0, 4))]
    norm = norm or rng.choice(["linf", "l1", "l2", "l0", "cost"])
    if norm == "l0":
        for entry in columns.values():
            if entry.get("move", "none") != "none":
                entry.setdefault("most", 12)
    eps = rng.randint(1, 3) if norm == "l0" else rng.choice([0.1, 0.5, 1, 2.5, 6])
    text = f'norm = "{norm}"\neps = {eps}\nrelations = [\n'
    text += "".join(f"    '{line}',\n" for line in relations if line) + "]\n\n[columns]\n"
    text += "".join(f'"{name}" = {inline(entry)}\n' for name, entry in columns.items())
    text += "\n[groups]\n" + "".join(f"{name} = {inline(entry)}\n" for name, entry in lines.items())
    return text, torch.tensor(data, dtype=torch.float64).T.contiguous()


def inline(value):
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {inline(inner)}' for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def linear(rng, names, kinds):
    """A sum as text and as a function of a row; whole coefficients more often than not."""
    chosen = rng.sample(names, min(len(names), rng.randint(1, 3)))
    factors = [rng.choice([1, 1, 2, 3, -1, -2, 0.5, 0.1]) for _ in chosen]
    text = " + ".join(f"{factor}*`{name}`" for factor, name in zip(factors, chosen, strict=True)).replace("+ -", "- ")
    return text, lambda row: sum(
        Fraction(repr(f)) * Fraction(repr(row[n])) for f, n in zip(factors, chosen, strict=True)
    )


def relation(rng, table, kinds):
    """A relation that the rows of a table satisfy."""
    names, count = list(table), len(next(iter(table.values())))
    rows = [{name: table[name][i] for name in names} for i in range(count)]

    def comparison(rows, senses):
        text, value = linear(rng, names, kinds)
        values = [value(row) for row in rows]
        sense = rng.choice(senses if len(set(values)) == 1 else [s for s in senses if s != "="])
        slack = rng.choice([0, 0, 1, 5])
        bound = {"<=": max(values) + slack, "<": max(values) + 1 + slack, "=": values[0]}.get(sense)
        bound = bound if bound is not None else min(values) - slack - (sense == ">")
        return f"{text} {sense} {float(bound)!r}"

    if rng.random() < 0.6:
        return comparison(rows, ["<=", "<=", ">=", "<", ">", "="])
    text, value = linear(rng, names, kinds)
    sense, bound = rng.choice(["<=", ">=", ">", "=", "<"]), float(value(rng.choice(rows)))
    guard = f"{text} {sense} {bound!r}"
    held = [row for row in rows if SENSES[sense](value(row), Fraction(repr(bound)))] or rows
    return f"{guard} -> {comparison(held, ['<=', '>=', '>', '<', '='])}"
