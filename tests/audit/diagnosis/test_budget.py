"""Doubts about budgets, against what balls and boxes of a few features really allow."""

import itertools
import re

import pytest
import torch

import holdfast
from helpers.networks import ordinary_digits
from holdfast import L0, L1, L2, Linf, parse_threat
from holdfast.audit.diagnosis.budget import doubts_about_budget
from holdfast.data import Batch, load_data


def batch(x: torch.Tensor, y: torch.Tensor) -> Batch:
    return Batch(torch.arange(len(x)), x, y)


def digits(scale: float = 1.0, count: int = 64) -> Batch:
    found = next(iter(load_data("digits").batches(count)))
    return Batch(found.index, found.x * scale, found.y)


@pytest.mark.parametrize("norm", ["linf:0.15", "linf:0.3", "linf:8/255", "l2:0.5", "l2:1", "l1:3", "l0:10", "linf:0"])
def test_ordinary_budgets_raise_no_doubt(norm):
    assert doubts_about_budget(parse_threat(norm), digits()) == ""


@pytest.mark.parametrize("norm", ["linf:inf", "l2:inf", "l1:inf", "l0:inf"])
def test_an_infinite_budget_is_meant(norm):
    assert doubts_about_budget(parse_threat(norm), digits()) == ""


@pytest.mark.parametrize(
    ("threat", "said"),
    [
        ("linf:8", r"covers the whole box, \[0, 1\]: .* for 8 of 255 grey levels write 8/255"),
        ("linf:1", "covers the whole box"),
        ("l2:8", "covers the whole box.* write 8/255"),
        ("l2:4", "larger than what separates the classes: 64 of the first 64 examples .* write 4/255"),
        ("l1:64", "covers the whole box.* give a smaller one"),
        ("l0:64", "covers the whole box.* an input has 64 features"),
        ("l0:100", "covers the whole box.* an input has 64 features"),
    ],
)
def test_budgets_that_are_too_large(threat, said):
    text = doubts_about_budget(parse_threat(threat), digits())
    assert re.search(said, text)
    assert "\n" not in text


@pytest.mark.parametrize("box", [(0.0, 255.0), None])
@pytest.mark.parametrize("threat", ["linf:0.5", "linf:8/255", "l2:0.5"])
def test_shares_where_inputs_go_up_to_255(threat, box):
    text = doubts_about_budget(parse_threat(threat, box), digits(255))
    eps = float(parse_threat(threat).eps)
    assert "vary by 255" in text
    assert f"{eps / 255:.2%} of the range" in text
    assert f"write {255 * eps:g} for {eps:g} of the range" in text


@pytest.mark.parametrize("threat", ["linf:8", "linf:1", "l2:128", "l1:1000", "l0:5"])
def test_grey_levels_where_inputs_go_up_to_255(threat):
    assert doubts_about_budget(parse_threat(threat, (0.0, 255.0)), digits(255)) == ""


def test_features_of_very_different_scales_are_judged_by_most_of_them():
    x = torch.rand(40, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e4, 1.0, 1.0, 1.0, 1.0])
    y = (x[:, 1] > 0.5).long()
    assert doubts_about_budget(Linf(0.05, box=None), batch(x, y)) == ""


@pytest.mark.parametrize("make", [Linf, L2, L1, L0])
def test_the_whole_box_is_covered_exactly_when_every_corner_is_admissible(make):
    box = (torch.tensor([0.0, -1.0, 0.0]), torch.tensor([1.0, 1.0, 3.0]))
    x = torch.tensor([[0.2, 0.0, 1.0], [0.9, -0.5, 2.0]])
    y = torch.tensor([0, 0])  # of one class, so that nothing separates
    corners = torch.tensor([*itertools.product(*zip(box[0].tolist(), box[1].tolist(), strict=True))])
    for eps in (0, 1, 2, 3, 5, 6) if make is L0 else (0.5, 1, 1.5, 2, 2.5, 3.1, 5, 6):
        threat = make(eps, box=box)
        whole = all(bool(threat.admits(corner[None], row[None])) for corner in corners for row in x)
        assert ("covers the whole box" in doubts_about_budget(threat, batch(x, y))) == whole


@pytest.mark.parametrize("make", [Linf, L2, L1])
def test_classes_are_separated_exactly_as_far_as_no_midpoint_is_shared(make):
    a, b = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.4, 0.6, 0.9])
    x, y = torch.stack([a, b]), torch.tensor([0, 1])
    for eps in torch.linspace(0.013, 0.397, 40).tolist():
        threat = make(eps)
        middle = (a + b)[None] / 2
        shared = bool(threat.admits(middle, a[None]) & threat.admits(middle, b[None]))
        assert ("separates the classes" in doubts_about_budget(threat, batch(x, y))) == shared
        assert doubts_about_budget(threat, batch(x, torch.zeros(2).long())) == ""


def test_budgets_of_their_own():
    x, y = torch.tensor([[0.0], [0.5]]), torch.tensor([0, 1])
    assert doubts_about_budget(Linf(torch.tensor([0.1, 0.3])), batch(x, y)) == ""
    assert "separates" in doubts_about_budget(Linf(torch.tensor([0.1, 0.45])), batch(x, y))


@pytest.mark.parametrize("count", [1, 2])
def test_few_examples(count):
    assert doubts_about_budget(Linf(0.1), digits(count=count)) == ""
    assert "8/255" in doubts_about_budget(Linf(8), digits(count=count))


def test_an_audit_notes_it():
    for threat, doubted in (("linf:8", True), ("linf:8/255", False)):
        result = holdfast.audit(ordinary_digits(), "digits", threat, examples="0:20")
        found = [d.message for d in result.diagnostics if d.name == "budget"]
        assert bool(found) == doubted
        assert all("write 8/255" in message for message in found)
