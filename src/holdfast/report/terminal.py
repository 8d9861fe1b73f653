"""An audit's result in a terminal."""

import math
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from holdfast.audit import AuditResult

__all__ = ["show_result"]


def show_result(result: AuditResult, console: Console) -> None:
    """Print the bracket, or the curve, then what it is made of and what to know before trusting it."""
    console.print(Panel(Group(_headline(result), _facts(result)), title="holdfast audit", title_align="left"))
    if result.curve is not None:
        console.print(_curve(result))
    else:
        console.print(_stages(result))
        console.print(_classes(result))
    for diagnostic in result.diagnostics:
        style = "bold yellow" if diagnostic.level == "warning" else "dim"
        console.print(Text(f"{diagnostic.level}: {diagnostic.message}", style=style))


def percent(share: float) -> str:
    """A share as results print it."""
    return f"{100 * share:.2f} %"


def _headline(result: AuditResult) -> Text:
    if result.curve is not None:
        share = 1 - result.robust_accuracy
        return Text.assemble("nearest adversarial inputs, found for ", (percent(share), "bold"), " of the examples")
    lower, upper = result.bracket
    proved = "proved" if result.certified_accuracy is not None else "(nothing certified)"
    return Text.assemble(
        (percent(lower), "bold"), f" {proved}  ≤  robust accuracy  ≤  ", (percent(upper), "bold"), " not broken"
    )


def _facts(result: AuditResult) -> Table:
    low, high = result.robust_interval
    threat = result.threat
    eps = [math.inf if one is None else one for one in _listed(threat["eps"])]
    budget = f"{min(eps):g}" if len(eps) == 1 else f"{min(eps):g} to {max(eps):g}, one an example"
    bounds = threat["box"]
    plain = all(isinstance(bound, float) for bound in bounds)
    inside = f"inside [{bounds[0]:g}, {bounds[1]:g}]" if plain else "inside bounds of its own for each feature"
    cost = result.cost
    interval = f"{result.confidence:.0%} interval {percent(low)} to {percent(high)}, Clopper-Pearson"
    distance = "-"
    if result.median_distance is not None:
        distance = f"{result.median_distance:.4g} in {threat['norm']}, of the adversarial inputs found"
    within = "at any distance" if eps == [math.inf] else f"within {budget}"
    facts = {
        "model": f"{result.model} on {result.device}",
        "data": f"{result.data}, {result.examples} examples",
        "threat": f"{threat['norm']} {within}, {inside}; {result.knowledge}",
        "clean accuracy": f"{percent(result.clean_accuracy)} (commonest label {percent(result.majority_class_rate)})",
        "robust accuracy": f"{percent(result.robust_accuracy)} ({interval})",
        "median distance": distance,
        "protocol": f"{result.protocol['name']}, seed {result.seed}",
        "cost": f"{cost.forwards:,} forwards, {cost.backwards:,} backwards, {cost.seconds:.1f} s",
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
    }
    if result.curve is not None:
        del facts["robust accuracy"]
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _curve(result: AuditResult) -> Table:
    """The security curve, at ten budgets that share the fallen examples evenly."""
    assert result.curve is not None
    table = Table("budget", title="Security curve", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("robust", justify="right")
    last = len(result.curve) - 1
    for place in sorted({round(last * tenth / 10) for tenth in range(11)}):
        budget, share = result.curve[place]
        table.add_row(f"{budget:.4g}", percent(share))
    return table


def _stages(result: AuditResult) -> Table:
    table = Table("stage", title="What each attack broke", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for header in ("attacked", "broken", "robust after"):
        table.add_column(header, justify="right")
    table.add_row("clean", str(result.examples), str(result.verdicts["misclassified"]), percent(result.clean_accuracy))
    for stage in result.stages:
        table.add_row(stage.name, str(stage.attacked), str(stage.broken), percent(stage.robust_accuracy))
    return table


def _classes(result: AuditResult) -> Table:
    table = Table("class", title="Class by class", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for header in ("examples", "clean", "robust"):
        table.add_column(header, justify="right")
    uneven = len({row.robust_accuracy for row in result.per_class}) > 1
    for row in result.per_class:
        worst = uneven and row.label == result.worst_class
        name = f"{row.name}  ← worst" if worst else row.name
        cells = (name, str(row.examples), percent(row.clean_accuracy), percent(row.robust_accuracy))
        table.add_row(*cells, style="bold" if worst else "")
    return table
