"""Proofs cell by cell, against enumeration of everything that a set holds."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from helpers.zoo import seeded, uniform
from holdfast import Linf
from holdfast.certify import certify
from holdfast.certify.certifier import Certifier
from holdfast.certify.cover import CoverCertifier
from holdfast.data import load_data
from holdfast.errors import DataError, ProofError, SettingError
from holdfast.threats import Coverable
from holdfast.threats.patch import Patch
from holdfast.threats.planes import Planes
from holdfast.threats.spatial import Spatial

SIDE = 5


def small(seed=0, gain=4):
    """A network whose answer changes with little."""
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 12), nn.ReLU(), nn.Linear(12, 3)), seed)
    with torch.no_grad():
        model[1].weight.sub_(model[1].weight.mean(1, keepdim=True)).mul_(gain)
        model[3].bias.zero_()
    return model


@dataclass(frozen=True)
class Lying:
    """A rotation whose boxes leave out all but the clean image."""

    true: Spatial

    def __getattr__(self, name):
        return getattr(self.true, name)

    def at(self, index: Tensor) -> "Lying":
        return self

    def near(self, x: Tensor) -> "Lying":
        return self

    def box(self, x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        same = x.expand(len(cells), *x.shape)
        return same, same

    def planes(self, x: Tensor, cells: Tensor) -> Planes:
        same = x.expand(len(cells), *x.shape).double()
        reach = same.new_zeros(len(cells), 4)
        return Planes(same, same, reach, reach.reshape(-1, 4, 1, 1, 1) * same.unsqueeze(1), same, same)


def labelled(model, count=12, seed=0):
    """Images with the model's own labels, half of them the surest of many, half the least sure."""
    x = uniform(300, 1, SIDE, SIDE, seed=seed)
    with torch.no_grad():
        top, y = model(x).topk(2, dim=1)
    order = (top[:, 0] - top[:, 1]).argsort()
    chosen = torch.cat([order[: count // 2], order[-(count // 2) :]])
    return x[chosen], y[chosen, 0]


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown", "complete"])
def test_whole_moves_are_decided_exactly(method):
    model = small(3, gain=1)
    x, y = labelled(model)
    threat = Spatial(translation=1, whole=True)
    found = certify(model, x, y, threat, method=method, seconds=20)
    moves = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2)).to(x.dtype)
    every = nn.functional.pad(torch.cat([torch.zeros(9, 1), moves, torch.zeros(9, 1)], 1), (0, 0))
    for i, certificate in enumerate(found):
        with torch.no_grad():
            right = bool((model(threat.apply(x[i : i + 1].expand(9, -1, -1, -1), every)).argmax(1) == y[i]).all())
        assert certificate.verdict == ("certified" if right else "broken")
    assert {certificate.verdict for certificate in found} == {"certified", "broken"}


@pytest.mark.parametrize("threat", [Spatial(rotation=20), Spatial(rotation=4, translation=0.2), Spatial(scale=0.1)])
def test_no_choice_breaks_what_is_proved(threat):
    model = small(1)
    x, y = labelled(model, seed=3)
    found = certify(model, x, y, threat, method="crown", seconds=20)
    limits = threat.limits(x[:1])
    choices = (2 * uniform(20_000, 4, seed=5) - 1) * limits
    for i, certificate in enumerate(found):
        many = x[i : i + 1].expand(len(choices), -1, -1, -1)
        with torch.no_grad():
            logits = model(threat.apply(many, choices))
        rivals = logits.masked_fill(nn.functional.one_hot(y[i], 3).bool(), -torch.inf).amax(1)
        worst = (logits[:, y[i]] - rivals).amin()
        if certificate.verdict == "certified":
            assert float(worst) >= certificate.bound > 0
        else:
            assert certificate.verdict == "broken"
            assert int(model(certificate.x_adv[None]).argmax()) != int(y[i])
            assert certificate.choice is not None
            z = certificate.choice[None]
            assert bool(threat.contains(x[i : i + 1], z))
            assert torch.equal(threat.apply(x[i : i + 1], z)[0], certificate.x_adv)
    assert {certificate.verdict for certificate in found} == {"certified", "broken"}


def test_patches_are_decided_by_branch_and_bound_as_by_a_grid_of_contents():
    model = small(2, gain=1)
    x, y = labelled(model, 10, seed=4)
    threat = Patch(1, 2)
    found = certify(model, x, y, threat, method="complete", seconds=20)
    grey = torch.linspace(0, 1, 21)
    contents = torch.cartesian_prod(grey, grey)
    for i, certificate in enumerate(found):
        worst = torch.inf
        for top in range(SIDE):
            for left in range(SIDE - 1):
                images = x[i].repeat(len(contents), 1, 1, 1)
                images[:, 0, top, left : left + 2] = contents
                with torch.no_grad():
                    logits = model(images)
                rivals = logits.masked_fill(nn.functional.one_hot(y[i], 3).bool(), -torch.inf).amax(1)
                worst = min(worst, float((logits[:, y[i]] - rivals).amin()))
        assert certificate.verdict != "undecided"
        if certificate.verdict == "certified":
            assert worst >= certificate.bound > 0
        else:
            assert int(model(certificate.x_adv[None]).argmax()) != int(y[i])
    assert {certificate.verdict for certificate in found} == {"certified", "broken"}


@pytest.mark.parametrize("size", [(1, 1), (1, 2)])
@pytest.mark.parametrize("hidden", [0, 16])
def test_patches_on_digits_are_decided_as_three_grey_levels_say(size, hidden):
    """Exactly for a linear model, whose worst contents are black and white; for a network, never better."""
    threat = Patch(*size)
    x = next(iter(load_data("digits", examples=":10").batches(10))).x.float()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), *([nn.Linear(64, hidden), nn.ReLU()] if hidden else []))
    model.append(nn.Linear(hidden or 64, 10))
    with torch.no_grad():
        y = model(x).argmax(1)
        z = [
            torch.cat([place, torch.tensor(levels)])
            for place in threat.cells(x[0])
            for levels in itertools.product((0.0, 0.5, 1.0), repeat=size[0] * size[1])
        ]
        seen = [model(threat.apply(one.expand(len(z), 1, 8, 8), torch.stack(z))).argmax(1) for one in x]
    broken = [bool((classes != label).any()) for classes, label in zip(seen, y, strict=True)]
    found = [certificate.verdict for certificate in certify(model, x, y, threat, method="complete", seconds=30)]
    assert all(verdict == "broken" for verdict, known in zip(found, broken, strict=True) if known)
    assert hidden or found == ["broken" if known else "certified" for known in broken]
    assert set(found) == {"broken", "certified"}


def test_a_cover_that_leaves_something_out_is_found_out():
    model = small(1)
    x, y = labelled(model, seed=3)
    true = Spatial(rotation=90)
    assert any(c.verdict == "broken" for c in certify(model, x, y, true, method="crown"))
    assert isinstance(Lying(true), Coverable)
    with pytest.raises(ProofError, match="proved robust under rotate:90deg"):
        certify(model, x, y, Lying(true), method="crown", checks=1000)


def test_time_is_kept_and_said():
    model = small(1)
    x, y = labelled(model, seed=3)
    threat = Spatial(rotation=20)
    in_time = [certificate.verdict for certificate in certify(model, x, y, threat, method="ibp", seconds=20)]
    certifier = Certifier.of(model, x, "ibp", seconds=0.0, logits=model)
    cut_off = [certificate for _, certificate in CoverCertifier(certifier).prove(x, y, threat)]
    late = [certificate.note == "timeout" for certificate in cut_off]
    # Without time for a split some are left that splits decide, and none is decided otherwise.
    assert any(late)
    assert all(
        (certificate.verdict == "undecided") if is_late else (certificate.verdict == verdict)
        for certificate, verdict, is_late in zip(cut_off, in_time, late, strict=True)
    )
    assert "certified" in {verdict for verdict, is_late in zip(in_time, late, strict=True) if is_late}
    blind = replace(certifier, graph=None, fault="no graph")
    assert [c.note for _, c in CoverCertifier(blind).prove(x, y, threat)] == ["no graph"] * len(x)


def test_what_cannot_be_covered_is_refused_in_a_line():
    class Bare:
        name = "bare"
        nothing = apply = contains = distance = sample = budget = at = None

    model = small()
    x, y = labelled(model)
    with pytest.raises(SettingError, match="no proofs about bare"):
        certify(model, x, y, Bare())
    with pytest.raises(DataError, match="example 0 is outside rotate:1deg"):
        certify(model, x + 3, y, Spatial(rotation=1))
    assert certify(model, x, y, Linf(0.0))[0].verdict == "certified"
