"""Published certification logs: reading them, their figures, and what in them cannot be.

The format is that of Cohen, Rosenfeld and Kolter (ICML 2019): tab-separated columns idx, label, predict, radius,
correct and time, with a header; predict is -1 and radius 0 where the classifier abstained; radii are written with three
significant digits.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from holdfast.arguments import path_of
from holdfast.certify.smoothing.noise import Gaussian
from holdfast.certify.smoothing.result import ABSTAINED, average_certified_radius, certified_accuracy
from holdfast.errors import DataError, SettingError
from holdfast.files import read_text

__all__ = ["LARGEST_LOG", "LogFault", "SmoothingLog", "check_log", "read_log"]

_COLUMNS = ("idx", "label", "predict", "radius", "correct")
_DIGITS = 3
_HUGE = 2**63
LARGEST_LOG = 2**26
"""Bytes that a log may have: that of a million examples has fewer."""


@dataclass(frozen=True)
class LogFault:
    """Something in a log that its own numbers rule out: the line of the file and what is wrong there."""

    line: int
    what: str


@dataclass(frozen=True, eq=False)
class SmoothingLog:
    """A log's columns, one row an example.

    Parameters
    ----------
    line : Tensor
        ``(N,)`` int64, the rows' lines in the file.
    idx, label, predict : Tensor
        ``(N,)`` int64; ``predict`` is -1 for an abstention.
    radius : Tensor
        ``(N,)`` float64, as written.
    correct : Tensor
        ``(N,)`` bool, as written.
    """

    line: Tensor
    idx: Tensor
    label: Tensor
    predict: Tensor
    radius: Tensor
    correct: Tensor

    @property
    def abstentions(self) -> int:
        return int((self.predict == ABSTAINED).sum())

    @property
    def average_certified_radius(self) -> float:
        return average_certified_radius(self.radius, self.correct)

    def certified_accuracy(self, radius: float) -> float:
        """The share of examples that are correct with a radius of ``radius`` or more."""
        return certified_accuracy(self.radius, self.correct, radius)


def read_log(path: str | Path) -> SmoothingLog:
    """Read a certification log.

    Raises
    ------
    DataError
        When the file cannot be read, has no rows or lacks a column, or a value is not the number it should be.
    """
    lines = read_text(path_of("log", path, DataError), DataError, LARGEST_LOG).splitlines()
    header = lines[0].split("\t") if lines else []
    if missing := [name for name in _COLUMNS if name not in header]:
        raise DataError(
            f"{path}:1: no column {missing[0]} in the header; a log starts with {', '.join(_COLUMNS)}, tab-separated"
        )
    places = [header.index(name) for name in _COLUMNS]
    rows = [
        (number, *_row(line.split("\t"), places, len(header), f"{path}:{number}"))
        for number, line in enumerate(lines[1:], 2)
        if line.strip()
    ]
    if not rows:
        raise DataError(f"{path}: no examples below the header; give a log of at least one")
    columns = list(zip(*rows, strict=True))
    line, idx, label, predict, correct = (torch.tensor(columns[i], dtype=torch.int64) for i in (0, 1, 2, 3, 5))
    return SmoothingLog(line, idx, label, predict, torch.tensor(columns[4], dtype=torch.float64), correct == 1)


def check_log(log: SmoothingLog, sigma: float, *, samples: int = 100_000, alpha: float = 0.001) -> tuple[LogFault, ...]:
    """What cannot be in a log of Gaussian smoothing with these settings, line by line; empty if all can be.

    Radii above ``sigma * Phi^-1(alpha^(1/samples))``, which not even unanimous votes reach; abstentions with a radius
    or marked correct; a mark that disagrees with label and prediction; an example that comes twice. Radii are taken
    to be rounded to three significant digits.

    Parameters
    ----------
    log : SmoothingLog
        See :func:`read_log`.
    sigma : float
        The noise's standard deviation.
    samples : int
        Votes an example, the choice of its class not counted.
    alpha : float
        The chance of error.

    Raises
    ------
    SettingError
        When ``sigma`` is not positive, or ``samples`` or ``alpha`` make no sense.
    """
    if samples < 1 or not 0 < alpha < 1:
        raise SettingError(f"samples, alpha: at least 1 vote and a chance inside (0, 1), got {samples} and {alpha}")
    unanimous = torch.tensor(alpha ** (1 / samples), dtype=torch.float64)
    # Logs are written by other programs, whose last digits are their own.
    largest = max(0.0, float(Gaussian(sigma).radius(unanimous, 1 - unanimous))) * (1 + 1e-9)
    faults, seen = [], set()
    columns = (log.line, log.idx, log.label, log.predict, log.radius, log.correct)
    for line, idx, label, predict, radius, correct in zip(*(column.tolist() for column in columns), strict=True):
        if radius - _rounding(radius) > largest:
            faults.append(
                LogFault(
                    line, f"radius {radius:g} is more than {samples} samples at alpha {alpha:g} prove: {largest:.4g}"
                )
            )
        if radius < 0:
            faults.append(LogFault(line, f"radius {radius:g} is negative"))
        if predict == ABSTAINED and radius > 0:
            faults.append(LogFault(line, f"radius {radius:g} of an abstention"))
        if correct != (predict == label):
            faults.append(LogFault(line, f"marked {'correct' if correct else 'wrong'}: {predict} for label {label}"))
        if idx in seen:
            faults.append(LogFault(line, f"example {idx} a second time"))
        seen.add(idx)
    return tuple(faults)


def _row(values: list[str], places: list[int], width: int, where: str) -> tuple[int, int, int, float, int]:
    if len(values) != width:
        raise DataError(f"{where}: {len(values)} values for {width} columns; separate them by tabs")
    idx, label, predict, radius, correct = (values[place] for place in places)
    try:
        row = int(idx), int(label), int(predict), float(radius), int(correct)
    except ValueError as error:
        raise DataError(f"{where}: {error}; radius is a number, the other columns are integers") from error
    if not math.isfinite(row[3]) or row[4] not in (0, 1):
        raise DataError(f"{where}: radius {radius}, correct {correct}; a radius is finite and correct is 0 or 1")
    if max(map(abs, row[:3])) >= _HUGE:
        raise DataError(f"{where}: idx, label and predict are numbers of examples and classes, below 2**63")
    return row


def _rounding(radius: float) -> float:
    """Half a unit in the last digit that is written."""
    return 0.5 * 10.0 ** (math.floor(math.log10(abs(radius))) + 1 - _DIGITS) if radius else 0.0
