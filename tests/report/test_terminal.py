"""The terminal view shows what the result says, and wraps on a narrow screen without losing it."""

import io
import re

import pytest
from rich.console import Console

import holdfast
from helpers.audits import audit
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


def shown(width: int = 200, **options) -> str:
    result = audit(ordinary_digits(), "digits", examples="0:40", **options)
    console = Console(width=width, file=io.StringIO())
    show_result(result, console)
    return " ".join(console.file.getvalue().replace("│", " ").split())


def test_a_closed_bracket_is_one_number():
    text = shown(threat="linf:0.01", certify="complete")
    assert re.search(r"robust accuracy is exactly \d+\.\d\d % on these examples", text)
    assert "0 open" in text
    assert "upper bound" not in text  # what attacks alone would leave in doubt
    assert "a deterministic proof about the network as executed" in text


def test_an_open_bracket_says_what_is_open():
    text = shown(threat="linf:0.08", certify="crown", certify_budgets=(0.02,))
    assert "proved ≤ robust accuracy ≤" in text
    assert "interval of the bracket" in text
    assert re.search(r"Open: \d+(, the 5 nearest to a proof)? example margin at least why", text)
    assert "the bound is not positive" in text
    assert "Certified curve budget proved" in text
    assert "upper bound" in text


def test_nothing_certified_is_not_called_proved():
    text = shown(threat="linf:0.08", certify="ibp")
    assert "0.00 % (nothing certified) ≤ robust accuracy" in text
    assert "no example; " in text


def test_the_smoothed_classifier_is_no_end_of_the_bracket():
    text = shown(threat="l2:0.25", certify="smoothing", sigma=0.25)
    assert "0.00 % (nothing certified) ≤ robust accuracy" in text
    assert "of another classifier, and no part of the bracket" in text
    assert "with confidence 99.9% for each certified example" in text
