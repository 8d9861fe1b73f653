"""What the verdicts on all examples tell."""

from holdfast.audit.result import Diagnostic

__all__ = ["examine_verdicts"]


def examine_verdicts(
    verdicts: dict[str, int], predictions: int, labels: int, correct: int, majority: int
) -> list[Diagnostic]:
    """What the verdicts themselves tell.

    Parameters
    ----------
    verdicts : dict
        How many examples have each verdict.
    predictions, labels : int
        How many different classes the model predicts on clean inputs, and how many they have.
    correct, majority : int
        Clean inputs classified correctly, and inputs of the commonest label.
    """
    found = []
    if undecided := verdicts.get("undecided", 0):
        found.append(
            Diagnostic(
                name="undecided",
                verdict="warn",
                message=f"{undecided} examples ran out of queries unbroken; they count as standing, so the robust "
                "accuracy may be lower",
            )
        )
    if labels == 1:
        found.append(
            Diagnostic(
                name="one label",
                verdict="note",
                message="all examples have one label: a model that always answers it would do as well or better, and "
                "nothing is known of other classes",
            )
        )
    elif predictions == 1:
        found.append(
            Diagnostic(
                name="constant model",
                verdict="warn",
                message="the model answers one and the same class to every clean input: it is of no use, however hard "
                "it is to change its mind",
            )
        )
    elif correct <= majority:
        found.append(
            Diagnostic(
                name="no better than the majority",
                verdict="warn",
                message=f"clean accuracy ({correct} right) is no better than always answering the commonest label "
                f"({majority} right): check the labels, their order and the input scaling (normalised twice, or "
                "not at all?)",
            )
        )
    return found
