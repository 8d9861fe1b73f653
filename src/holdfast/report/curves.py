"""How a training run went, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from holdfast.files import write_whole
from holdfast.train import Epoch
from holdfast.train.checkpoint import CURE
from holdfast.words import plain

__all__ = ["draw_curves"]


def draw_curves(epochs: Sequence[Epoch], path: Path, title: str) -> bool:
    """Draw accuracies, the loss and the alignment of gradients, epoch by epoch.

    Returns
    -------
    bool
        Whether there is a picture: without matplotlib there is none.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    numbers = [epoch.number for epoch in epochs]
    found = [epoch.evaluation for epoch in epochs]
    accuracies = {
        "clean": [each.clean for each in found],
        "one step": [each.single_step for each in found],
        "PGD": [each.multi_step for each in found],
        "alignment of gradients": [each.alignment for each in found],
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for (label, values), style in zip(accuracies.items(), ("-", "--", "-", ":"), strict=True):
        left.plot(numbers, values, style, label=label, marker="." if style == "-" else None)
    left.set(xlabel="epoch", ylabel="on held-out examples", ylim=(-0.02, 1.02))
    left.set_title(plain(title), parse_math=False)
    left.legend(loc="lower right", frameon=False)
    right.plot(numbers, [epoch.loss for epoch in epochs], color="black", marker=".")
    right.set(xlabel="epoch", ylabel="training loss")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=150), CURE)
    return True
