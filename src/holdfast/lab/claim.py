"""A claim of the literature, and whether a measurement bears it out."""

import math
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Claim", "between", "near"]


@dataclass(frozen=True)
class Claim:
    """A statement about a number, with what was measured.

    Make one with :func:`near` or :func:`between`.

    Parameters
    ----------
    text : str
        What is claimed.
    source : str
        Who claims it: a paper, or the theorem it follows from.
    measured : float
        What the experiment found.
    low, high : float
        Where the number has to lie, both ends included.
    expected : str
        The same as a person writes it.
    """

    text: str
    source: str
    measured: float
    low: float
    high: float
    expected: str

    @property
    def verdict(self) -> Literal["confirmed", "refuted"]:
        """Computed from the numbers; one that is no number confirms nothing."""
        return "confirmed" if self.low <= self.measured <= self.high else "refuted"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "text": self.text,
            "source": self.source,
            "expected": self.expected,
            "measured": self.measured,
            "verdict": self.verdict,
        }


def near(text: str, source: str, measured: float, expected: float, within: float) -> Claim:
    """The claim that a number is ``expected``, up to an absolute error of ``within``."""
    written = f"{expected:.5g} ± {within:.2g}" if within else f"{expected:.5g}"
    return Claim(text, source, float(measured), expected - within, expected + within, written)


def between(text: str, source: str, measured: float, low: float = -math.inf, high: float = math.inf) -> Claim:
    """The claim that a number is at least ``low`` and at most ``high``."""
    written = f"{low:.4g} to {high:.4g}"
    if low == -math.inf:
        written = f"at most {high:.4g}"
    elif high == math.inf:
        written = f"at least {low:.4g}"
    return Claim(text, source, float(measured), low, high, written)
