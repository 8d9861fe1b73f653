"""An audit's result in a terminal."""

from collections.abc import Collection, Iterator

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from holdfast.audit import AuditResult
from holdfast.audit.result import Adapted, Certification, Diagnostic, GroupResults, Share, SmoothedResult
from holdfast.report.threat import allowed, in_units
from holdfast.words import plain

__all__ = ["percent", "show_diagnostics", "show_result", "told"]

# Open examples that are shown one by one.
_OPEN = 5
_WORDS = {"pass": "pass", "note": "note", "warn": "warning", "fail": "fail"}
_STYLES = {"note": "dim", "warn": "bold yellow", "fail": "bold red"}
_SHARES = ("clean", "certified", "robust", "sensitivity", "certified_sensitivity", "robust_sensitivity")


def show_result(result: AuditResult, console: Console) -> None:
    """Print the bracket, or the curve, then what it is made of and what to know before trusting it."""
    console.print(Panel(Group(_headline(result), _facts(result)), title="holdfast audit", title_align="left"))
    if result.curve is not None:
        console.print(_curve(result))
    else:
        console.print(_stages(result))
        console.print(_classes(result))
        if result.groups is not None:
            console.print(_groups(result.groups))
    if result.certification is not None:
        for table in _proofs(result.certification):
            console.print(table)
        console.print(Text(f"proofs: {result.certification.statement}", style="dim"))
    if result.smoothed is not None:
        console.print(Text(f"smoothed: {result.smoothed.statement}", style="dim"))
    if result.adapted is not None:
        console.print(Text(_adapted(result.adapted, result.robust_accuracy), style="bold"))
    passed = sum(diagnostic.verdict == "pass" for diagnostic in result.diagnostics)
    if passed:
        console.print(Text(f"diagnosis: {passed} of {_checks(result.diagnostics)} checks passed", style="dim"))
    for diagnostic in result.diagnostics:
        if diagnostic.verdict != "pass":
            console.print(Text(told(diagnostic), style=_STYLES[diagnostic.verdict]))


def show_diagnostics(result: AuditResult, console: Console, names: Collection[str]) -> None:
    """Print those of a result's diagnostics that have one of some names, a line each."""
    for diagnostic in result.diagnostics:
        if diagnostic.name in names:
            console.print(told(diagnostic), markup=False, soft_wrap=True)


def told(diagnostic: Diagnostic) -> str:
    """A finding in a line: its verdict, what it means, and what to do."""
    cure = f"; {diagnostic.advice}" if diagnostic.advice else ""
    return f"{_WORDS[diagnostic.verdict]}: {plain(diagnostic.message)}{cure}"


def _adapted(adapted: Adapted, after: float) -> str:
    """What was done beyond the protocol, and what came of it."""
    return (
        f"adapted: {percent(adapted.before)} before, {percent(after)} after; {', '.join(adapted.reasons)} failed, so "
        f"the audit {'; '.join(adapted.changes)}"
    )


def _checks(diagnostics: list[Diagnostic]) -> int:
    return sum(diagnostic.verdict != "note" for diagnostic in diagnostics)


def percent(share: float) -> str:
    """A share as results print it: only none is 0 %, and only all are 100 %."""
    text = f"{100 * share:.2f} %"
    if text == "0.00 %" and share > 0:
        return "< 0.01 %"
    return "> 99.99 %" if text == "100.00 %" and share < 1 else text


def _headline(result: AuditResult) -> Text:
    if result.curve is not None:
        share = 1 - result.robust_accuracy
        return Text.assemble("nearest adversarial inputs, found for ", (percent(share), "bold"), " of the examples")
    lower, upper = result.bracket
    if result.certified_accuracy is not None and lower == upper:
        return Text.assemble("robust accuracy is exactly ", (percent(lower), "bold green"), " on these examples")
    proved = "proved" if result.certified_accuracy else "(nothing certified)"
    return Text.assemble(
        (percent(lower), "bold"), f" {proved}  ≤  robust accuracy  ≤  ", (percent(upper), "bold"), " not broken"
    )


def _facts(result: AuditResult) -> Table:
    low, high = result.robust_interval
    cost = result.cost
    interval = f"{result.confidence:.0%} interval {percent(low)} to {percent(high)}, Clopper-Pearson"
    facts = {
        "model": f"{result.model} on {result.device}",
        "data": f"{result.data}, {result.examples} examples",
        "threat": f"{allowed(result.threat)}; {result.knowledge}",
        "clean accuracy": f"{percent(result.clean_accuracy)} (commonest label {percent(result.majority_class_rate)})",
        "robust accuracy": f"{percent(result.robust_accuracy)} ({interval})",
        "correlation": _correlation(result),
        "certified": _certified(result),
        "median distance": _median(result),
        "protocol": f"{result.protocol['name']}, seed {result.seed}",
        "cost": f"{cost.forwards:,} forwards, {cost.backwards:,} backwards, {cost.seconds:.1f} s",
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
    }
    if result.curve is not None:
        del facts["robust accuracy"]
    if result.certification is None:
        del facts["certified"]
    if result.smoothed is not None:
        facts["smoothed"] = _smoothed(result.smoothed)
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _correlation(result: AuditResult) -> str:
    """How far answers tell the labels apart, which one answer to all does not, however common its label is."""
    if result.clean_mcc is None:
        return "-"
    under = "" if result.robust_mcc is None else f", {result.robust_mcc:.3f} under attack"
    return f"{result.clean_mcc:.3f} clean{under} (Matthews; one answer to all has 0)"


def _median(result: AuditResult) -> str:
    """The median distance, and what is not in it: what nothing broke at any distance would raise it."""
    if result.median_distance is None:
        return "-"
    text = f"{in_units(result.median_distance, result.threat)}, of the adversarial inputs found"
    standing = result.verdicts["robust"] + result.verdicts["undecided"]
    return f"{text}; {standing} more examples never broken" if result.curve is not None and standing else text


def _certified(result: AuditResult) -> str:
    """By what how many examples were proved robust, and how many are open."""
    found = result.certification
    if found is None:
        return ""
    parts = [f"{count} by {method}" for method, count in found.methods.items()]
    low, high = result.bracket_interval
    whole = f"; {result.confidence:.0%} interval of the bracket {percent(low)} to {percent(high)}" if found.open else ""
    return f"{', '.join(parts) or 'no example'}; {found.open} open{whole}"


def _smoothed(found: SmoothedResult) -> str:
    return (
        f"{percent(found.certified_accuracy)} certified within {found.radius:.4g} in l2, {percent(found.accuracy)} "
        f"correct, {found.abstained} abstained; of another classifier, and no part of the bracket"
    )


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
        table.add_row(Text(stage.name), str(stage.attacked), str(stage.broken), percent(stage.robust_accuracy))
    return table


def _classes(result: AuditResult) -> Table:
    table = Table("class", title="Class by class", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    certified = result.certification is not None
    for header in ("examples", "clean", *(["proved"] if certified else []), "robust"):
        table.add_column(header, justify="right")
    uneven = len({row.robust_accuracy for row in result.per_class}) > 1
    for row in result.per_class:
        worst = uneven and row.label == result.worst_class
        name = f"{row.name}  ← worst" if worst else row.name
        proved = [] if row.certified_accuracy is None else [row.certified_accuracy]
        shares = (row.clean_accuracy, *proved, row.robust_accuracy)
        table.add_row(Text(name), str(row.examples), *map(percent, shares), style="bold" if worst else "")
    return table


def _groups(found: GroupResults) -> Table:
    """Shares and their intervals, group by group, and how far groups are apart."""
    table = Table(
        found.column,
        title=f"Group by group: {found.column}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    shown = [share for share in _SHARES if any(getattr(group, share) is not None for group in found.groups)]
    for header in ("examples", *(share.replace("_", " ") for share in shown)):
        table.add_column(header, justify="right")
    for group in found.groups:
        shares = (getattr(group, share) for share in shown)
        table.add_row(Text(group.name), str(group.examples), *(_share(share) for share in shares))
    if found.gaps:
        gaps = (percent(found.gaps[share]) if share in found.gaps else "" for share in shown)
        table.add_row("largest gap", "", *gaps, style="bold")
    if found.positive is not None:
        table.caption = f"sensitivity: of class {found.positive}"
    return table


def _share(share: Share | None) -> str:
    if share is None:
        return "-"
    low, high = share.interval
    return f"{100 * share.share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _proofs(certification: Certification) -> Iterator[Table]:
    """The certified curve, and the open examples nearest to a proof."""
    if certification.curve:
        table = Table("budget", title="Certified curve", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
        table.add_column("proved", justify="right")
        for budget, share in certification.curve:
            table.add_row(f"{budget:.4g}", percent(share))
        yield table
    if certification.open_examples:
        # No longer than the table is wide: it would be broken.
        title = f"Open: {certification.open}"
        if certification.open > _OPEN:
            title += f", the {_OPEN} nearest to a proof"
        table = Table("example", title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
        table.add_column("margin at least", justify="right")
        table.add_column("why")
        for example in certification.open_examples[:_OPEN]:
            bound = "-" if example.bound is None else f"{example.bound:.4g}"
            table.add_row(str(example.index), bound, Text(example.note))
        yield table
