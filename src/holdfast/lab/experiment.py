"""An experiment: what it finds, how that is drawn, and where both are kept."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import SettingError
from holdfast.files import write_whole
from holdfast.lab.claim import Claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Experiment", "Finding"]

_CURE = "give an --out folder that can be written"


@dataclass(frozen=True)
class Finding:
    """What an experiment found.

    Parameters
    ----------
    claims : tuple of Claim
        With their measurements.
    data : dict
        Numbers, strings, and lists and dicts of them: all that the figure is drawn from.
    """

    claims: tuple[Claim, ...]
    data: dict[str, Any]

    @property
    def refuted(self) -> int:
        """The number of claims that the measurements do not bear out."""
        return sum(claim.verdict == "refuted" for claim in self.claims)


@dataclass(frozen=True)
class Experiment:
    """A runnable claim.

    Parameters
    ----------
    name : str
        What the command line calls it.
    title : str
        What it shows, in a line.
    run : callable
        Makes the measurements; the same ones every time.
    draw : callable
        Draws the figure from a finding's data.
    """

    name: str
    title: str
    run: Callable[[], Finding]
    draw: Callable[[dict[str, Any]], "Figure"]

    def save(self, finding: Finding, folder: Path) -> tuple[Path, Path]:
        """Write ``NAME.json`` and draw ``NAME.png``; each is there whole or not at all.

        Raises
        ------
        SettingError
            When matplotlib is not installed.
        RunError
            When the folder cannot be written.
        """
        figure, data = folder / f"{self.name}.png", folder / f"{self.name}.json"
        document = {
            "name": self.name,
            "title": self.title,
            "claims": [claim.to_dict() for claim in finding.claims],
            "data": finding.data,
        }
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        write_whole(data, lambda part: part.write_text(text, encoding="utf-8"), _CURE)
        try:
            drawn = _png(self.draw(finding.data))
        except ModuleNotFoundError as error:
            raise SettingError("figures need matplotlib: pip install 'holdfast[figures]'") from error
        write_whole(figure, lambda part: part.write_bytes(drawn), _CURE)
        return figure, data


def _png(figure: "Figure") -> bytes:
    """Drawings get by with few colours, and a palette is a third of the bytes."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=150)
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()
