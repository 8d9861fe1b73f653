"""The one tester that every threat passes through."""

import pytest
import torch

from helpers.sets import CHECKS, Case
from holdfast.threats import L0, L1, L2, Linf, Patch, Spatial

X = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
EACH = torch.tensor([0.1, 0.2, 0.05, 0.15, 0.25])

CASES = {
    "linf": Case(Linf("8/255"), X, Linf(0.0)),
    "linf, each its own": Case(Linf(EACH), X, Linf(0 * EACH), parses=False),
    "l2": Case(L2(0.1234567), X, L2(0.0)),
    "l1": Case(L1("1/3"), X, L1(0.0)),
    "l0": Case(L0(3), X, L0(0)),
    "patch": Case(Patch(2, 3), X, smooth=False),
    "patch, without channels": Case(Patch(6, 1), X[:, 0], smooth=False),
    "spatial": Case(Spatial(30, "1/3", 0.1234567), X, Spatial()),
    "turns, each its own": Case(Spatial(100 * EACH, padding="edge"), X, Spatial(0 * EACH), parses=False),
    "whole moves": Case(Spatial(translation=2, whole=True), X, Spatial(), smooth=False),
    "turns and whole moves": Case(Spatial(10, 1, whole=True, padding="edge"), X, Spatial(), smooth=False),
    "sizes, then linf": Case(Spatial(scale=0.2).then(Linf("8/255")), X, Spatial().then(Linf(0.0))),
    "spatial, then l2": Case(Spatial(20, 2, 0.1, "edge").then(L2(0.1234567)), X, Spatial().then(L2(0.0))),
    "moves, then l0": Case(Spatial(0, 2, whole=True).then(L0(3)), X, Spatial().then(L0(0)), smooth=False),
    "turns, then l1, each its own": Case(Spatial(100 * EACH).then(L1(EACH)), X, parses=False),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_threat(case, check):
    check(case)
