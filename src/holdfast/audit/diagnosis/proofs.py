"""What kept examples from being certified."""

from holdfast.audit.result import Diagnostic
from holdfast.certify.certificate import APART, LOOSE, TIMEOUT

__all__ = ["examine_proofs"]


def examine_proofs(notes: dict[str, int], refuted: str | None) -> list[Diagnostic]:
    """What kept examples from being certified; the notes on them, and on how many each stands.

    ``refuted`` is what an earlier session has found of a false proof.
    """
    found = []
    if refuted is not None:
        found.append(
            Diagnostic(
                name="proof refuted before",
                verdict="warn",
                message="an earlier session found a false proof; all were made again, and each of them was attacked: "
                + refuted,
            )
        )
    for note, count in notes.items():
        if note in (APART, LOOSE, TIMEOUT):
            continue
        found.append(
            Diagnostic(
                name="cannot certify",
                verdict="warn",
                message=f"left without a proof, {_examples(count)}: {note}",
            )
        )
    if count := notes.get(TIMEOUT, 0):
        found.append(
            Diagnostic(
                name="proof cut off",
                verdict="note",
                message=f"out of time for a proof, {_examples(count)}: more of it may decide them, either way",
            )
        )
    return found


def _examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count} examples"
