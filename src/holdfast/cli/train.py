"""``holdfast train``: a robust model, what happened on the way, and its audit."""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from holdfast.audit import audit
from holdfast.cli.progress import watching
from holdfast.models import Model
from holdfast.models.load import needs_trust
from holdfast.processes import Processes
from holdfast.report import show_result
from holdfast.report.curves import draw_curves
from holdfast.report.terminal import percent
from holdfast.threats import Threat
from holdfast.train import Epoch, train
from holdfast.train import Progress as TrainingProgress
from holdfast.train.methods import CERTIFIED
from holdfast.train.trackers import tracking
from holdfast.words import plain

__all__ = ["run_train"]

CURVES, AUDIT, FINAL = "curves.png", "audit", "audit-standard"
# The gap is that between one step and PGD, in points; alignment is the cosine between gradients a random step apart.
_HEADER = (
    f"{'epoch':>5}  {'step':>7}  {'loss':>7}  {'clean':>7}  {'PGD':>7}  {'proved':>7}  {'gap':>6}  {'alignment':>9}"
)


def run_train(
    network: str,
    data: str,
    threat: Threat,
    run: Path,
    console: Console,
    progress: Console,
    *,
    typed: Sequence[str],
    protocol: str,
    certify: str | None,
    audited: str,
    method: str,
    processes: Processes,
    track: Sequence[str],
    **settings: Any,
) -> None:
    """Train, write everything to the folder ``run``, and audit the result on the test split.

    ``typed`` are the options that the threat was read from, for the command that is shown at the end.
    """
    about = {"network": network, "data": data, "threat": threat.name, "method": method, **settings["settings"]}
    with _watching(progress) as show, tracking(track if processes.is_main else [], run, about) as tell:

        def look(now: TrainingProgress) -> None:
            show(now)
            tell(now)

        result = train(network, data, threat, method=method, run=run, processes=processes, on_progress=look, **settings)
    best = result.best
    console.print(
        f"best after epoch {best.number} of {len(result.epochs)}, on held-out training examples: "
        f"{percent(best.evaluation.clean)} clean, {percent(best.evaluation.multi_step)} under PGD",
        soft_wrap=True,
    )
    files = ["weights.safetensors", "train.json"]
    if not processes.is_main or draw_curves(result.epochs, run / CURVES, title=f"{network} against {threat.name}"):
        files.append(CURVES)
    else:
        progress.print(f"no {CURVES}: it needs matplotlib (pip install 'holdfast[figures]')")
    if protocol != "none":
        with watching(progress, "auditing") as show_audit:
            found = audit(
                Model(run, trust=True),  # the record in the folder was written just now
                data,
                threat,
                protocol=protocol,
                certify=certify or ("alpha-crown" if method in CERTIFIED else "none"),
                examples=audited,
                seed=settings["seed"],
                run=run / AUDIT,
                processes=processes,
                on_progress=show_audit,
            )
        console.print()
        show_result(found, console)
        files.append(f"{AUDIT}/")
    console.print(f"\n{plain(run)} holds {', '.join(files)}", soft_wrap=True)
    trust = ["--trust"] if needs_trust(network) else []
    again = ["--model", run, *trust, "--data", data, *typed, "--protocol", "standard", "--run", run / FINAL]
    console.print(f"  holdfast audit {plain(shlex.join(map(str, again)))}", soft_wrap=True)


@contextmanager
def _watching(console: Console) -> Iterator[Callable[[TrainingProgress], None]]:
    """A live line, and a line that stays for every epoch."""
    bar = Progress(
        TextColumn("training"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total} steps"),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[left]} left", style="dim"),
        console=console,
        transient=True,
        disable=not console.is_interactive,
        refresh_per_second=4,
    )
    tasks: list[Any] = []

    def show(now: TrainingProgress) -> None:
        if not tasks:
            if now.step > 1:
                console.print(f"resuming after step {now.step - 1} of {now.steps}")
            tasks.append(bar.add_task("", total=now.steps, loss="", left=""))
            console.print(_HEADER)
            bar.start()
        left = f"{int(now.seconds_left) // 60}:{int(now.seconds_left) % 60:02d}"
        bar.update(tasks[0], completed=now.step, loss=f"{now.loss:.3f}", left=left)
        if now.epoch is not None:
            console.print(_line(now.epoch))
        if now.event is not None:
            console.print(plain(now.event), soft_wrap=True)

    try:
        yield show
    finally:
        bar.stop()


def _line(epoch: Epoch) -> str:
    found = epoch.evaluation
    proved = "-" if math.isnan(found.certified) else percent(found.certified)
    return (
        f"{epoch.number:5}  {epoch.step:7}  {epoch.loss:7.3f}  {percent(found.clean):>7}  "
        f"{percent(found.multi_step):>7}  {proved:>7}  {100 * found.gap:6.1f}  {found.alignment:9.2f}"
    )
