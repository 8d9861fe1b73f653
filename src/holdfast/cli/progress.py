"""What a person sees while an audit runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from holdfast.audit import Progress as AuditProgress
from holdfast.words import plain

__all__ = ["watching"]

_REFRESH_SECONDS = 0.1


class _TimeLeft(ProgressColumn):
    """Time left at the pace so far: verdicts fall in waves, so the last few say little."""

    def render(self, task: Task) -> Text:
        if not task.completed or not task.total or task.elapsed is None:
            return Text("-:-- left", style="dim")
        # Verdicts of an earlier session cost this one no time.
        fresh = task.completed - task.fields["resumed"]
        if fresh <= 0:
            return Text("-:-- left", style="dim")
        seconds = int(task.elapsed / fresh * (task.total - task.completed))
        return Text(f"{seconds // 60}:{seconds % 60:02d} left", style="dim")


@contextmanager
def watching(console: Console, title: str) -> Iterator[Callable[[AuditProgress], None]]:
    """A live line while an audit runs: examples decided, robust and proved so far, forwards a second, time left."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total} decided"),
        TextColumn("{task.fields[robust]}"),
        TextColumn("{task.fields[pace]}", style="dim"),
        _TimeLeft(),
        console=console,
        transient=True,
        # Elsewhere than in a terminal all that would be left of it is an empty line.
        disable=not console.is_interactive,
        refresh_per_second=4,
    )
    task: list[TaskID] = []
    started = drawn = time.perf_counter()

    def show(progress: AuditProgress) -> None:
        nonlocal drawn
        now = time.perf_counter()
        if not task:
            if progress.decided:
                console.print(f"resuming: {progress.decided} of {progress.asked} examples were decided before")
            task.append(bar.add_task(plain(title), total=progress.asked, robust="", pace="", resumed=progress.decided))
            # Not before there is something to show: an error then stands alone.
            bar.start()
        elif now - drawn < _REFRESH_SECONDS:
            return
        drawn = now
        share = f"{100 * progress.standing / progress.decided:.1f} % robust so far" if progress.decided else ""
        if progress.certified:
            share += f", {100 * progress.certified / progress.decided:.1f} % proved"
        pace = f"{progress.forwards / max(now - started, 1e-9):,.0f} forwards/s"
        bar.update(task[0], completed=progress.decided, robust=share, pace=pace)

    try:
        yield show
    finally:
        bar.stop()
