"""A measured value as a finding."""

from typing import Literal

from holdfast.audit.result import Diagnostic

__all__ = ["judged"]


def judged(
    *, name: str, value: float, warn: float, fail: float, well: str, ill: str, advice: str, above: bool = True
) -> Diagnostic:
    """A finding that warns where a value lies beyond one threshold, and fails beyond another.

    Parameters
    ----------
    name : str
        Of the check.
    value, warn, fail : float
        What was measured, and the thresholds.
    well, ill : str
        What it means where it passes, and where it does not.
    advice : str
        What to do where it does not.
    above : bool
        Whether values above the thresholds are beyond them; those below otherwise.
    """

    def beyond(threshold: float) -> bool:
        return value > threshold if above else value < threshold

    verdict: Literal["pass", "warn", "fail"] = "fail" if beyond(fail) else "warn" if beyond(warn) else "pass"
    fine = verdict == "pass"
    return Diagnostic(
        name=name,
        verdict=verdict,
        value=value,
        threshold=fail if verdict == "fail" else warn,
        message=well if fine else ill,
        advice="" if fine else advice,
    )
