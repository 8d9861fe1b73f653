"""The same random numbers in one call after another."""

from types import TracebackType

from torch import nn

from holdfast.models.independence import sources

__all__ = ["Pinned"]


class Pinned:
    """Inside it, a model draws the random numbers that it would have drawn next when this was made.

    It can be entered again and again. Every generator is held that :func:`~holdfast.models.independence.sources`
    finds: the global ones, and those that modules own. Outside they go on from where they were.
    """

    def __init__(self, model: nn.Module) -> None:
        self._generators = list(sources(model))
        self._start = [read() for read, _ in self._generators]

    def __enter__(self) -> None:
        self._outside = [read() for read, _ in self._generators]
        self._set(self._start)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._set(self._outside)

    def _set(self, states: list[object]) -> None:
        for (_, write), state in zip(self._generators, states, strict=True):
            write(state)
