"""An audit's verdicts group by group, and how well answers and labels agree."""

import math
from collections.abc import Iterable, Mapping

from holdfast.audit.interval import clopper_pearson
from holdfast.audit.result import GroupResult, GroupResults, Share
from holdfast.audit.store import RunStore
from holdfast.data.groups import Groups

__all__ = ["matthews", "matthews_of", "summarise_groups"]

# The class whose share found is told beside accuracies, where there are two.
_POSITIVE = 1
_SHARES = ("clean", "robust", "certified", "sensitivity", "robust_sensitivity", "certified_sensitivity")


def matthews(counts: Mapping[tuple[int, int], int]) -> float:
    """The Matthews correlation coefficient of labels and answers, in [-1, 1]; 0 where one of them is always the same.

    For any number of classes (Gorodkin, "Comparing two K-category assignments by a K-category correlation
    coefficient", Computational Biology and Chemistry 28, 2004).

    Parameters
    ----------
    counts : mapping
        How many examples have each pair of a label and an answer.
    """
    total = sum(counts.values())
    labels: dict[int, int] = {}
    answers: dict[int, int] = {}
    for (label, answer), count in counts.items():
        labels[label] = labels.get(label, 0) + count
        answers[answer] = answers.get(answer, 0) + count
    right = sum(count for (label, answer), count in counts.items() if label == answer)
    together = total * right - sum(count * answers.get(label, 0) for label, count in labels.items())
    spread = [total**2 - sum(count**2 for count in sizes.values()) for sizes in (labels, answers)]
    return together / math.sqrt(spread[0] * spread[1]) if all(spread) else 0.0


def matthews_of(store: RunStore, classes: int) -> tuple[float, float | None]:
    """The coefficient on clean inputs, and under attack; the second where there are two classes, one wrong answer."""
    rows = list(
        store.select(
            "SELECT label, clean_prediction, verdict = 'broken', count(*) FROM examples "
            "GROUP BY label, clean_prediction, verdict = 'broken'"
        )
    )
    clean: dict[tuple[int, int], int] = {}
    attacked: dict[tuple[int, int], int] = {}
    for label, answer, broken, count in rows:
        clean[label, answer] = clean.get((label, answer), 0) + count
        after = 1 - label if broken else answer
        attacked[label, after] = attacked.get((label, after), 0) + count
    return matthews(clean), matthews(attacked) if classes == 2 else None


def summarise_groups(
    store: RunStore, groups: Groups, names: tuple[str, ...] | None, classes: int, confidence: float, *, proofs: bool
) -> GroupResults:
    """What the store says of each group that has examples.

    Parameters
    ----------
    store : RunStore
        The verdicts.
    groups : Groups
        Which example is of which group.
    names : tuple of str or None
        Of the classes.
    classes : int
        How many the model knows; with two, the share of the second that is found is told too.
    confidence : float
        Of the intervals.
    proofs : bool
        Whether anything was to be proved.
    """
    counts: dict[tuple[int, bool], list[int]] = {}
    for index, label, clean, robust, certified in store.select(
        "SELECT idx, label, verdict != 'misclassified', verdict IN ('robust', 'undecided'), certified IS NOT NULL "
        "FROM examples"
    ):
        row = counts.setdefault((groups.of[index], label == _POSITIVE), [0, 0, 0, 0])
        for place, one in enumerate((1, clean, robust, certified)):
            row[place] += one
    results = []
    for place, name in enumerate(groups.names):
        negative, positive = (counts.get((place, side), [0, 0, 0, 0]) for side in (False, True))
        every = [a + b for a, b in zip(negative, positive, strict=True)]
        if not every[0]:
            continue
        told = classes == 2
        clean, robust, certified = _shares(every, confidence)
        of_positive = _shares(positive, confidence) if told and positive[0] else [None] * 3
        results.append(
            GroupResult(
                name=name,
                examples=every[0],
                positives=positive[0] if told else None,
                clean=clean,
                robust=robust,
                certified=certified if proofs else None,
                sensitivity=of_positive[0],
                robust_sensitivity=of_positive[1],
                certified_sensitivity=of_positive[2] if proofs else None,
            )
        )
    positive_name = None if classes != 2 else names[_POSITIVE] if names else str(_POSITIVE)
    gaps = {share: _gap(getattr(result, share) for result in results) for share in _SHARES}
    return GroupResults(
        column=groups.column,
        positive=positive_name,
        groups=results,
        gaps={share: gap for share, gap in gaps.items() if gap is not None},
    )


def _shares(counts: list[int], confidence: float) -> list[Share]:
    total, *parts = counts
    return [
        Share(share=part / total, examples=total, interval=clopper_pearson(part, total, confidence)) for part in parts
    ]


def _gap(shares: Iterable[Share | None]) -> float | None:
    """The difference between the largest and the smallest, where at least two groups have one."""
    values = [one.share for one in shares if one is not None]
    return max(values) - min(values) if len(values) > 1 else None
