"""A part of a split, whose examples keep their positions."""

import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.data.source import Batch, Source, columns_of
from holdfast.errors import DataError, SettingError

__all__ = ["Slice", "parse_examples", "take"]


@dataclass(frozen=True)
class Slice:
    """The examples ``[start, stop)`` of a source that has them all; :func:`take` makes one from any bounds.

    Parameters
    ----------
    source : Source
        The whole split.
    start, stop : int
        Positions in the split.
    """

    source: Source
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The source's name with the bounds."""
        return f"{self.source.name}[{self.start}:{self.stop}]"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.source.shape

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes of the whole split."""
        return self.source.classes

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the features."""
        return columns_of(self.source)

    def __len__(self) -> int:
        return self.stop - self.start

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Read in order, as :meth:`Source.batches`: positions are those of the whole split."""
        last = self.stop if stop is None else min(stop, self.stop)
        return self.source.batches(size, max(start, self.start), last)


def take(source: Source, start: int, stop: int | None) -> Slice:
    """Take the examples of a source at the positions ``[start, stop)``; what lies beyond the end is left out.

    Raises
    ------
    DataError
        No example is left.
    """
    if isinstance(source, Slice):
        whole, low, high = source.source, source.start, source.stop
    else:
        whole, low, high = source, 0, len(source)
    first, last = max(start, low), high if stop is None else min(stop, high)
    if first >= last:
        asked = f"{start}:{'' if stop is None else stop}"
        raise DataError(f"{source.name}: examples {asked} select nothing; it has {high - low} examples, {low}:{high}")
    return Slice(whole, first, last)


def parse_examples(examples: str | slice | range) -> tuple[int, int | None]:
    """Read the bounds that ``"START:STOP"`` (either side may be empty), a slice or a range names.

    Raises
    ------
    SettingError
        Another form, a negative position, or a step other than 1.
    """
    wrong = SettingError(
        f'examples {examples!r} are not START:STOP; write "0:1000", "1000:" or ":" (no signs, no step)'
    )
    if isinstance(examples, str):
        match = re.fullmatch(r"([0-9]*):([0-9]*)", examples.strip())
        if match is None:
            raise wrong
        return int(match[1] or 0), int(match[2]) if match[2] else None
    if not isinstance(examples, slice | range) or examples.step not in (None, 1):
        raise wrong
    try:
        start = 0 if examples.start is None else operator.index(examples.start)
        stop = None if examples.stop is None else operator.index(examples.stop)
    except TypeError:
        raise wrong from None
    if start < 0 or (stop is not None and stop < 0):
        raise wrong
    return start, stop
