"""The terminal view shows what the result says, and wraps on a narrow screen without losing it."""

import io

import pytest
from rich.console import Console

import holdfast
from helpers.networks import ordinary_digits
from holdfast.report import show_result


@pytest.mark.parametrize("width", [60, 200])
def test_everything_that_matters_is_shown(width):
    result = holdfast.audit(ordinary_digits(), "digits", "linf:0.1", examples="0:40", seed=5, max_forwards=30)
    console = Console(width=width, file=io.StringIO())
    show_result(result, console)
    text = " ".join(console.file.getvalue().replace("│", " ").split())
    for words in (
        f"{100 * result.clean_accuracy:.2f} %",
        f"{100 * result.robust_accuracy:.2f} %",
        f"{100 * result.robust_interval[0]:.2f} %",
        "nothing certified",
        "white box",
        "seed 5",
        f"{result.cost.forwards:,} forwards",
        "← worst",
        "warning:",
        result.versions["torch"],
    ):
        assert words in text
