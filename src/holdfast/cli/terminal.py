"""The consoles that the command writes to."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from holdfast.words import plain

__all__ = ["Terminal"]


class Terminal(Console):
    """A console to which foreign words are nothing but words.

    Square brackets are no markup and colons no emoji. Whatever is shown, in whichever way, no character reaches the
    terminal that it would obey, and none that it cannot show; line breaks alone mean what they say. Names that may hold
    some are made :func:`plain <holdfast.words.plain>` before.

    Parameters
    ----------
    stderr : bool
        Write to standard error.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._shown(segment.text), segment.style)

    def _shown(self, text: str) -> str:
        lines = "\n".join(map(plain, text.split("\n")))
        return lines.encode(self.encoding, "backslashreplace").decode(self.encoding)
