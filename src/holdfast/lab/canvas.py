"""The look that all figures share."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "GOLD", "GREEN", "GREY", "INK", "PURPLE", "RED", "canvas", "label"]

INK, GREY = "#1f2933", "#8a94a0"
BLUE, RED, GREEN, GOLD, PURPLE = "#2463a8", "#c8442e", "#2f8f5b", "#d99a1c", "#7a4fa3"


def canvas(title: str, *panels: float, height: float = 4.4) -> "tuple[Figure, list[Axes]]":
    """An empty figure with panels side by side, as wide as told, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(sum(panels), height), layout="constrained")
    figure.suptitle(title, fontsize=14, fontweight="bold", color=INK, x=0.012, ha="left")
    axes = list(figure.subplots(1, len(panels), width_ratios=panels, squeeze=False)[0])
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(GREY)
        panel.tick_params(colors=INK, labelsize=10)
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
    return figure, axes


def label(panel: "Axes", title: str, x: str, y: str) -> None:
    """Say what a panel shows."""
    panel.set_title(title, fontsize=11, color=INK, loc="left")
    panel.set_xlabel(x, fontsize=10.5, color=INK)
    panel.set_ylabel(y, fontsize=10.5, color=INK)
