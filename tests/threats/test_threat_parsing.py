"""Threats as people write them, and one line that names the culprit where they make no sense."""

import pytest
import torch

from holdfast.errors import DataError, HoldfastError, SettingError
from holdfast.threats import L0, L1, L2, Ball, Box, Linf, Spatial, parse_threat

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("spec", "norm", "eps"),
    [
        ("linf:8/255", "linf", 8 / 255),
        ("l2:0.5", "l2", 0.5),
        ("l1:12", "l1", 12.0),
        ("l0:10", "l0", 10.0),
        (" LINF : 1e-2 ", "linf", 0.01),
        ("l2:0", "l2", 0.0),
        ("linf: 4 / 255", "linf", 4 / 255),
    ],
)
def test_specs(spec, norm, eps):
    threat = parse_threat(spec)
    assert (threat.norm, threat.eps) == (norm, eps)
    assert (threat.box.lower, threat.box.upper) == (0.0, 1.0)
    assert parse_threat(threat.name).eps == pytest.approx(eps, rel=1e-5)


def test_boxes():
    assert parse_threat("l2:1", (-1, 3)).to_dict() == {"norm": "l2", "eps": 1.0, "box": [-1, 3]}
    assert parse_threat("l2:1", None).to_dict()["box"] == [None, None]
    assert Linf(0.1, (torch.tensor([0.0, -INF]), 1.0)).to_dict()["box"] == [[0.0, None], 1.0]
    box = Box(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 5.0]))
    assert Linf(0.1, box).box is box
    assert Linf(0.1, box).box.bounded
    assert not Linf(0.1, (0, INF)).box.bounded
    assert not Linf(0.1, (torch.tensor([-INF, 0]), 1)).box.bounded


@pytest.mark.parametrize(
    ("threat", "text"),
    [
        (Linf("8/255"), "Linf(eps=8/255, box=[0, 1])"),
        (L2(0.5, None), "L2(eps=0.5, box=no box)"),
        (L1(2, (0, INF)), "L1(eps=2, box=[0, inf])"),
        (L0(3, (torch.zeros(2), torch.tensor([1.0, 5.0]))), "L0(eps=3, box=[0 .. 0, 1 .. 5] per feature)"),
        (L2(torch.tensor([0.5, 2.0])), "L2(eps=0.5..2, box=[0, 1])"),
    ],
)
def test_repr(threat, text):
    assert repr(threat) == text


@pytest.mark.parametrize("ball", [Linf, L2, L1, L0])
@pytest.mark.parametrize("eps", [torch.tensor(2.0), torch.tensor(2), 2, "2", "4/2", True + 1])
def test_one_number_however_it_is_written(ball, eps):
    assert ball(eps).eps == 2.0
    assert isinstance(ball(eps).eps, float)


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: parse_threat("l3:1"), "'l3:1'"),
        (lambda: parse_threat("linf"), "'linf'"),
        (lambda: parse_threat(""), "''"),
        (lambda: parse_threat("8/255"), "'8/255'"),
        (lambda: parse_threat("linf:"), "eps: '' is not a number"),
        (lambda: parse_threat("linf:\n0.1x"), "'0.1x'"),
        (
            lambda: parse_threat("rotate:30"),
            "'rotate:30' is no part of a move of images: write rotate:30deg, shift:3px",
        ),
        (lambda: parse_threat("rotate:30deg,shift"), "'shift' is no part"),
        (lambda: parse_threat("rotate:30deg,"), "'' is no part"),
        (lambda: parse_threat("rotate:30deg,mirror"), "'mirror' is no part"),
        (lambda: parse_threat("rotate:deg"), "rotation: '' is not a number"),
        (lambda: parse_threat("rotate:200deg"), "rotation: 180 degrees"),
        (lambda: parse_threat("rotate:1deg,rotate:2deg"), "'rotate:2deg' says again"),
        (lambda: parse_threat("shift:1px,edge,zeros"), "'zeros' says again"),
        (lambda: parse_threat("rotate:1deg,linf"), "eps: '' is not a number"),
        (lambda: parse_threat("rotate:1deg,linf:0.1,shift:1px"), "'0.1,shift:1px' is not a number"),
        (lambda: Linf("eight"), "'eight'"),
        (lambda: Linf("8/0"), "'8/0'"),
        (lambda: Linf("8/255/2"), "'8/255/2'"),
        (lambda: Linf("8/"), "'8/'"),
        (lambda: Linf(-0.1), "-0.1"),
        (lambda: Linf("-8/255"), "-8/255"),
        (lambda: Linf("-1\n"), "-1"),
        (lambda: L2(NAN), "nan"),
        (lambda: L2("nan"), "nan"),
        (lambda: L1("1/1e-400"), "1/1e-400"),
        (lambda: Linf(None), "NoneType"),
        (lambda: Linf([0.1, 0.2]), "list"),
        (lambda: Linf(torch.tensor(-2.0)), "-2"),
        (lambda: Linf(torch.tensor([0.1, -0.25, 0.5])), "-0.25"),
        (lambda: Linf(torch.tensor([0.1, NAN])), "nan"),
        (lambda: Linf(torch.ones(2, 3)), "(2, 3)"),
        (lambda: L0(2.5), "2.5"),
        (lambda: L0("8/255"), "0.0313725"),
        (lambda: L0(torch.arange(2000) / 2), "0.5"),
        (lambda: L0(3, None), "box"),
        (lambda: L0(3, (0, INF)), "box"),
        (lambda: L0(3, (torch.tensor([-INF, 0.0]), 1.0)), "box"),
        (lambda: Linf(0.1, (1.0, 0.0)), "[1, 0]"),
        (lambda: Linf(0.1, (0.0, NAN)), "nan"),
        (lambda: Linf(0.1, (torch.zeros(500), torch.arange(500.0) - 1)), "[0 .. 0, -1 .. 498]"),
        (lambda: Linf(0.1, (torch.zeros(3), torch.ones(4))), "box"),
        (lambda: Linf(0.1, (0.0,)), "box"),
        (lambda: Linf(0.1, 7), "box"),
        (lambda: Linf(0.1, ("a", 1)), "box"),
        (lambda: L2(torch.ones(3)).project(torch.zeros(2, 4), torch.zeros(2, 4)), "3 budgets for 2 examples"),
        (lambda: L2(torch.ones(3)).admits(torch.zeros(4, 4), torch.zeros(4, 4)), "3 budgets for 4 examples"),
        (lambda: L2(torch.ones(3)).at(torch.tensor([1, 7])), "example 7"),
    ],
)
def test_errors_are_one_line_that_names_the_culprit(make, culprit):
    with pytest.raises(HoldfastError) as caught:
        make()
    message = str(caught.value)
    assert culprit in message
    assert "\n" not in message
    assert len(message) < 200
    assert isinstance(caught.value, DataError if "example" in culprit else SettingError)


@pytest.mark.parametrize(
    ("spec", "threat", "name"),
    [
        ("rotate:30deg", Spatial(30), "rotate:30deg"),
        (" Scale: 1/10 , Rotate : 7.5 DEG", Spatial(7.5, scale=0.1), "rotate:7.5deg,scale:0.1"),
        ("shift:3px,whole,edge", Spatial(0, 3, padding="edge", whole=True), "shift:3px,whole,edge"),
        ("scale:0.2,zeros", Spatial(scale=0.2), "scale:0.2"),
        ("rotate:0deg", Spatial(), "rotate:0deg"),
        ("rotate:30deg,shift:3px,scale:0.1,linf: 8/255", Spatial(30, 3, 0.1).then(Linf("8/255")),
         "rotate:30deg,shift:3px,scale:0.1,linf:8/255"),
        ("shift:1px,whole,L0:5", Spatial(0, 1, whole=True).then(L0(5)), "shift:1px,whole,l0:5"),
    ],
)  # fmt: skip
def test_moves_of_images(spec, threat, name):
    read = parse_threat(spec)
    assert read.name == threat.name == name
    assert read.to_dict() == threat.to_dict() == parse_threat(name).to_dict()
    assert parse_threat(spec, (0, 2)).to_dict()["box"] == [0, 2]


def test_an_unknown_threat_is_told_the_known_ones():
    with pytest.raises(SettingError, match="linf, l2, l1, l0"):
        parse_threat("tv:3")


def test_what_is_made_is_frozen():
    threat = Linf(0.1)
    with pytest.raises(AttributeError):
        threat.eps = 1.0
    assert isinstance(threat, Ball)
