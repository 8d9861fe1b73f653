"""Counting what a model is asked, and timing contenders side by side."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Contender = Callable[[nn.Module, Tensor, Tensor], Tensor]

# Rounding of x + z may leave the ball by an ulp.
_SLACK = 1e-6


class Counted(nn.Module):
    """A model that counts the examples that pass through it forwards and backwards, whoever sends them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._back)
        return logits

    def _back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@dataclass
class Line:
    """What one contender did: passes in examples, robust accuracy in percent, and CPU seconds a round."""

    name: str
    forwards: int
    backwards: int
    robust: float
    outside: int
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """A contender against the baseline: ratio of medians, its smallest and largest in a round, and by pass."""

    median: float
    low: float
    high: float
    per_pass: float


def count(name: str, contender: Contender, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Line:
    """One run that is not timed: what the model sees, and what the attack reaches."""
    counted = Counted(model).eval()
    x_adv = contender(counted, x, y)
    with torch.no_grad():
        stands = torch.cat([model(part).argmax(1) for part in x_adv.split(256)]) == y
    outside = (
        ((x_adv - x).abs().amax((1, 2, 3)) > eps + _SLACK) | (x_adv.amin((1, 2, 3)) < 0) | (x_adv.amax((1, 2, 3)) > 1)
    )
    robust = 100 * float(stands.float().mean())
    return Line(name, counted.forwards, counted.backwards, robust, int(outside.sum()))


def race(
    contenders: Mapping[str, Contender], model: nn.Module, x: Tensor, y: Tensor, eps: float, rounds: int
) -> list[Line]:
    """Count each contender once, then let all of them run in turn, ``rounds`` times."""
    lines = [count(name, contender, model, x, y, eps) for name, contender in contenders.items()]
    for _ in range(rounds):
        for line in lines:
            start = time.process_time()
            contenders[line.name](model, x, y)
            line.seconds.append(time.process_time() - start)
    return lines


def compare(line: Line, base: Line) -> Ratio:
    """Round by round, since what else the machine does changes from round to round."""
    rounds = [mine / theirs for mine, theirs in zip(line.seconds, base.seconds, strict=True)]
    ratio = line.median / base.median
    passes = (line.forwards + line.backwards) / (base.forwards + base.backwards)
    return Ratio(ratio, min(rounds), max(rounds), ratio / passes)


def table(lines: list[Line], base: Line) -> str:
    """The lines as text, by CPU time."""
    head = f"  {'':32}{'CPU s':>8}{'ratio':>7}{'min .. max':>14}{'a pass':>8}"
    head += f"{'forwards':>10}{'backwards':>11}{'robust %':>10}"
    rows = [head]
    for line in sorted(lines, key=lambda line: line.median):
        r = compare(line, base)
        rows.append(
            f"  {line.name:32}{line.median:8.2f}{r.median:7.2f}{f'{r.low:.2f} .. {r.high:.2f}':>14}{r.per_pass:8.2f}"
            f"{line.forwards:10d}{line.backwards:11d}{line.robust:10.2f}"
            + (f"  {line.outside} outside the ball" if line.outside else "")
        )
    return "\n".join(rows)


def record(lines: list[Line], base: Line) -> dict[str, Any]:
    """The same for JSON."""
    rows = [{**asdict(line), "median": line.median, "ratio": asdict(compare(line, base))} for line in lines]
    return {"baseline": base.name, "contenders": rows}


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "holdfast": metadata.version("holdfast"),
        "date": time.strftime("%Y-%m-%d"),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
