"""``holdfast lab``: what the literature claims, and what is measured here."""

import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.errors import HoldfastError
from holdfast.words import plain

if TYPE_CHECKING:
    from holdfast.lab import Finding

__all__ = ["list_experiments", "run_experiments"]

ALL = "all"


def list_experiments(console: Console) -> None:
    """Print the name of every experiment and what it shows."""
    table = Table("experiment", "shows", box=box.SIMPLE_HEAD, show_edge=False)
    for name, title in _lab().EXPERIMENTS.items():
        table.add_row(name, title)
    console.print(table)
    console.print("\nholdfast lab NAME --out DIR runs one and draws it, holdfast lab all every one.", soft_wrap=True)


def run_experiments(name: str, out: Path | None, console: Console, progress: Console) -> None:
    """Run one experiment, or ``all``, print the claims and keep figure and data.

    Raises
    ------
    SettingError
        When there is no such experiment, or figures cannot be drawn.
    RunError
        When ``out`` cannot be written.
    HoldfastError
        When a claim is refuted.
    """
    import torch

    # Networks this small gain nothing from threads, and on busy cores lose a great deal.
    torch.set_num_threads(1)
    lab = _lab()
    refuted: dict[str, int] = {}
    for each in lab.EXPERIMENTS if name == ALL else [name]:
        experiment, start = lab.load(each), time.perf_counter()
        with progress.status(f"{experiment.name}: {experiment.title}"):
            finding = experiment.run()
        seconds = time.perf_counter() - start
        console.rule(experiment.name)
        console.print(f"{experiment.title} ({seconds:.1f} s)\n")
        console.print(_claims(finding))
        if out is not None:
            written = [*experiment.save(finding, out), lab.write_page(out, lab.EXPERIMENTS)]
            console.print(f"\n{', '.join(map(plain, written))}", soft_wrap=True)
        if finding.refuted:
            refuted[each] = finding.refuted
    if refuted:
        counts = ", ".join(f"{count} of {each}" for each, count in refuted.items())
        raise HoldfastError(f"claims refuted: {counts}; either the claim is wrong or the code is")


def _lab() -> Any:
    # The lab is on this package's floor: neither is built on the other, and the command only opens its door.
    return import_module("holdfast.lab")


def _claims(finding: "Finding") -> Table:
    table = Table("claim and source", box=box.SIMPLE_HEAD, show_edge=False)
    for header in ("expected", "measured", "verdict"):
        table.add_column(header, justify="right", no_wrap=True)
    for claim in finding.claims:
        style = "green" if claim.verdict == "confirmed" else "bold red"
        text = Text.assemble(claim.text, "\n", (claim.source, "dim"))
        table.add_row(text, claim.expected, f"{claim.measured:.6g}", Text(claim.verdict, style=style))
    return table
