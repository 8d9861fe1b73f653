"""``holdfast certify``: how much can be proved of a model, or of its smoothed version."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from holdfast.audit import AuditResult, Certification, EvaluationProtocol, audit
from holdfast.audit.diagnosis import examine_outputs
from holdfast.audit.digest import digest_module
from holdfast.certify.certificate import METHODS
from holdfast.certify.smoothing.log import LARGEST_LOG, SmoothingLog, check_log, read_log
from holdfast.certify.smoothing.result import SmoothingResult
from holdfast.certify.smoothing.smoothing import Smoothed
from holdfast.cli.progress import watching
from holdfast.data import Source, load_data
from holdfast.errors import RunError, SettingError
from holdfast.files import read_text, write_whole
from holdfast.models import Model
from holdfast.report.terminal import percent, show_diagnostics, told
from holdfast.report.threat import allowed
from holdfast.threats import Threat
from holdfast.words import plain

__all__ = ["PROCEDURES", "Noise", "prove", "smooth"]

PROCEDURES = ("sequential", "fixed")

LOG, SETTINGS = "smoothing.tsv", "smoothing.json"
_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time", "samples")
_SELECTION = 100
_CURE = "give an --out folder that can be written"
# Examples that are certified together: what a kill loses is no more than these.
_TOGETHER = 16


@dataclass(frozen=True)
class Noise:
    """What smoothing is asked.

    Parameters
    ----------
    sigma : float or None
        The scale of the noise.
    alpha : float
        The chance that a certificate is false.
    samples : int
        The most that is asked, an example.
    procedure : str
        ``"sequential"`` or ``"fixed"``.
    """

    sigma: float | None
    alpha: float
    samples: int
    procedure: str


def prove(
    model: Model,
    data: str,
    threat: Threat,
    asked: Certification,
    out: Path | None,
    console: Console,
    progress: Console,
    **settings: Any,
) -> None:
    """An audit that proves, and attacks only where the proof is a search: there a quick attack saves most of it.

    Raises
    ------
    SettingError
        When there is no such method.
    """
    if asked.method not in METHODS:
        raise SettingError(f"--method: unknown method {asked.method!r}; choose {', '.join(METHODS)} or smoothing")
    alone = EvaluationProtocol("none", (), "nothing was attacked: what was not proved may be robust or not")
    attacks: dict[str, Any] = {} if asked.method == "complete" else {"protocol": alone, "max_forwards": 0}
    with watching(progress, "certifying") as show:
        result = audit(model, data, threat, certify=asked, run=out, on_progress=show, **attacks, **settings)
    _show_proofs(result, console)
    if out is not None:
        console.print(
            f"\n{plain(out / 'audit.json')} holds the result, {plain(out / 'run.sqlite')} a row for each example",
            soft_wrap=True,
        )


def smooth(
    model: Model,
    data: str,
    noise: Noise,
    out: Path | None,
    console: Console,
    progress: Console,
    *,
    split: str,
    examples: str | None,
    seed: int,
    batch_size: int | None,
) -> None:
    """Certify a data set by smoothing and show what came out; without a folder the log is not kept.

    Raises
    ------
    SettingError
        When there is no noise.
    RunError
        When the folder cannot be written, or holds a log of other settings.
    """
    if noise.sigma is None:
        raise SettingError("--sigma: smoothing needs the scale of its noise; write --sigma 0.25")
    source = load_data(data, split=split, examples=examples)
    module = model.load(source.shape)
    mean, std = model.normalisation
    settings = _Settings(
        model=digest_module(module),
        data=source.name,
        sigma=noise.sigma,
        alpha=noise.alpha,
        samples=noise.samples,
        procedure=noise.procedure,
        seed=seed,
        normalisation=[[*(values or ())] for values in (mean, std)],
    )
    smoothed = Smoothed(module, noise.sigma, mean=mean, std=std, batch_size=batch_size, seed=seed)
    with TemporaryDirectory() as nowhere:
        folder = Path(nowhere) if out is None else out
        _write_log(smoothed, source, settings, folder, progress)
        _show_smoothing(read_log(folder / LOG), _spent(folder / LOG, noise.samples + _SELECTION), settings, console)
    with model.query(module, seed, batch_size) as query:
        query.bare_logits(next(source.batches(1)).x)
        for diagnostic in examine_outputs(query):
            console.print(told(diagnostic), soft_wrap=True)
    if out is not None:
        console.print(f"\n{plain(out / LOG)} holds a line for each example", soft_wrap=True)


@dataclass(frozen=True)
class _Settings:
    """What the lines of a smoothing log depend on."""

    model: str
    data: str
    sigma: float
    alpha: float
    samples: int
    procedure: str
    seed: int
    normalisation: list[list[float]]


def _show_proofs(result: AuditResult, console: Console) -> None:
    """Certified accuracy, and a line for each method that contributed to it."""
    found = result.certification
    assert found is not None  # asked for
    certified = sum(found.methods.values())
    low, high = found.interval
    console.print(
        f"certified accuracy {percent(result.bracket[0])} ({certified} of {result.examples}; {result.confidence:.0%} "
        f"interval {percent(low)} to {percent(high)}), {allowed(result.threat)}",
        soft_wrap=True,
    )
    counts = {
        **{f"proved by {method}": count for method, count in found.methods.items()},
        "broken": result.verdicts["broken"],
        "open": found.open,
        "misclassified": result.verdicts["misclassified"],
    }
    for name, count in counts.items():
        console.print(f"  {count:>6}  {name}")
    for budget, share in found.curve:
        console.print(f"  {percent(share):>9}  within {budget:g}")
    show_diagnostics(
        result, console, ("one logit", "budget", "proof refuted before", "cannot certify", "proof cut off")
    )
    console.print(found.statement, soft_wrap=True)


def _write_log(smoothed: Smoothed, source: Source, settings: _Settings, out: Path, progress: Console) -> None:
    """Write a line of the log for each example that it does not hold yet."""
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        _claim(out / SETTINGS, settings)
        first = int(next(source.batches(1)).index[0])
        known = _known(out / LOG, settings, range(first, first + len(source)))
        with (out / LOG).open("a", encoding="utf-8") as log:
            if log.tell() == 0:
                log.write("\t".join(_COLUMNS) + "\n")
            batches = source.batches(_TOGETHER)
            count = -(-len(source) // _TOGETHER)
            for batch in track(
                batches,
                "certifying",
                total=count,
                console=progress,
                transient=True,
                disable=not progress.is_interactive,
            ):
                left = torch.tensor([index not in known for index in batch.index.tolist()], dtype=torch.bool)
                if not bool(left.any()):
                    continue
                began = time.perf_counter()
                index, x, y = batch.index[left], batch.x[left], batch.y[left]
                certify = smoothed.certify if settings.procedure == "sequential" else smoothed.certify_fixed
                found = certify(x, y, samples=settings.samples, selection=_SELECTION, alpha=settings.alpha, index=index)
                log.writelines(_lines(found, (time.perf_counter() - began) / len(index)))
                log.flush()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{out}: {error.strerror or error}; {_CURE}") from error


def _claim(path: Path, settings: _Settings) -> None:
    """Refuse the folder of a log with other settings, naming the first that differs."""
    now = asdict(settings)
    if not os.path.lexists(path):
        write_whole(path, lambda part: part.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8"), _CURE)
        return
    try:
        before = json.loads(read_text(path, RunError))
        same = before.keys() == now.keys()
    except (ValueError, RecursionError, AttributeError):
        same = False
    if not same:
        raise RunError(f"{path} is not that of a log, or was damaged: give another --out folder, or delete it")
    for key, value in now.items():
        if before.get(key) != value:
            raise RunError(
                f"{path} is that of another log: {key} was {before.get(key)} and is now {value}; give another --out "
                "folder, or the same settings to resume"
            )


def _known(log: Path, settings: _Settings, positions: range) -> set[int]:
    """The examples in a log; a last line that a kill has cut short is taken away.

    Raises
    ------
    DataError, RunError
        When the log is none, or says what certification with these settings cannot say.
    """
    if not os.path.lexists(log):
        return set()
    text, header = read_text(log, RunError, LARGEST_LOG), "\t".join(_COLUMNS) + "\n"
    if not text.startswith(header[: len(text)]):
        raise RunError(f"{log} is no log of smoothing; give another --out folder, or delete it")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_whole(log, lambda part: part.write_text(whole, encoding="utf-8"), _CURE)
    if len(whole) <= len(header):
        return set()
    found = read_log(log)
    faults = check_log(found, settings.sigma, samples=settings.samples, alpha=settings.alpha)
    if faults:
        raise RunError(f"{log}:{faults[0].line}: {faults[0].what}; give another --out folder, or delete it")
    if strange := set(found.idx.tolist()).difference(positions):
        raise RunError(f"{log}: {min(strange)} is no example of these data; give another --out folder, or delete it")
    _spent(log, settings.samples + _SELECTION)
    return set(found.idx.tolist())


def _lines(found: SmoothingResult, seconds: float) -> Iterator[str]:
    assert found.y is not None  # given
    columns = (found.index, found.y, found.prediction, found.radius, found.correct, found.samples)
    for index, label, prediction, radius, correct, samples in zip(*(c.tolist() for c in columns), strict=True):
        yield f"{index}\t{label}\t{prediction}\t{radius:g}\t{int(correct)}\t{seconds:.3f}\t{samples}\n"


def _spent(log: Path, most: int) -> int:
    """Samples of all examples together, of which each can have asked for so many at most."""
    place = _COLUMNS.index("samples")
    rows = [line.split("\t") for line in read_text(log, RunError, LARGEST_LOG).splitlines()[1:]]
    try:
        counts = [int(row[place]) for row in rows]
    except (IndexError, ValueError):
        counts = [-1]
    if any(not 0 <= count <= most for count in counts):
        raise RunError(f"{log}: samples are no counts; give another --out folder, or delete it")
    return sum(counts)


def _show_smoothing(log: SmoothingLog, spent: int, settings: _Settings, console: Console) -> None:
    count = len(log.idx)
    table = Table("radius in l2", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("certified accuracy", justify="right")
    for quarter in range(int(4 * float(log.radius.max())) + 1):
        table.add_row(f"{quarter / 4:.2f}", percent(log.certified_accuracy(quarter / 4)))
    console.print(table)
    fixed = count * (settings.samples + _SELECTION)
    console.print(
        f"average certified radius {log.average_certified_radius:.4f}; {log.abstentions} of {count} abstained\n"
        f"{spent:,} samples, {spent / fixed:.1%} of the {fixed:,} of the fixed procedure\n"
        f"a certificate is false with probability {settings.alpha:g} at most; of the smoothed classifier (sigma "
        f"{settings.sigma:g}), not of the model itself",
        soft_wrap=True,
    )
