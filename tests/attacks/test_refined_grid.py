import pytest
import torch

from helpers.attacks import examples, predict
from helpers.set_attacks import check_set_attack
from helpers.zoo import convnet, uniform
from holdfast import Linf, SettingError
from holdfast.attacks import Grid, RefinedGrid, craft
from holdfast.threats import Spatial


def moves(share):
    return Spatial(rotation=share * 6.0, translation=share * 0.15)


def test_shared():
    check_set_attack(RefinedGrid(3, 3, keep=3, rounds=1), moves, forwards=27 + 3 * 6, backwards=0)


def test_finds_all_that_the_grid_finds_and_more():
    model = convnet()
    x, y = examples(model)
    for threat in (Spatial(rotation=6, translation=0.15), Spatial(translation=1, whole=True), Spatial(scale=0.05)):
        coarse = craft(Grid(3, 3, 3), model, x, y, threat=threat)
        refined = craft(RefinedGrid(3, 3, 3, keep=4, rounds=2), model, x, y, threat=threat)
        assert (coarse.success <= refined.success).all()
        assert torch.equal(refined.x_adv[coarse.success], coarse.x_adv[coarse.success])
        standing = ~refined.success
        assert (refined.objective >= coarse.objective)[standing].all()
        assert threat.whole or (refined.objective > coarse.objective)[standing].any()


class Needle(torch.nn.Module):
    """Wrong where the image's one bright pixel has gone half a pixel to the right, within a sixth of one."""

    def forward(self, x):
        left, right = x[:, 0, 2, 2], x[:, 0, 2, 3]
        off = (right - 0.5).abs() - 1 / 6 + 0 * left
        return torch.stack([off, -off], 1)


def test_finds_what_lies_between_the_points():
    """A grid of whole pixels never sees half a pixel, but it sees which way the margin rises."""
    x = torch.zeros(3, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    threat, y = Spatial(translation=1.0), torch.zeros(3, dtype=torch.long)
    missed = craft(Grid(translations=3), Needle(), x, y, threat=threat)
    found = craft(RefinedGrid(translations=3, keep=3, rounds=4), Needle(), x, y, threat=threat)
    assert not missed.success.any()
    assert found.success.all()


@pytest.mark.parametrize(
    ("threat", "axes"),
    [(Spatial(6, 0.15, 0.02), 4), (Spatial(6, 0.1), 3), (Spatial(6), 1), (Spatial(1, 0.0, 0.02), 2), (Spatial(), 0)],
    ids=lambda value: getattr(value, "name", None),
)
def test_only_what_may_change_is_searched_and_a_grid_of_one_point_is_enough(threat, axes):
    model = convnet()
    x = torch.cat([examples(model)[0], torch.zeros(1, 3, 6, 6)])
    y = predict(model, x)
    result = craft(RefinedGrid(1, 1, 1, keep=5, rounds=3), model, x, y, threat=threat)
    assert set((result.forwards[~result.success] - 1).tolist()) == {1 + 5 * 3 * 2 * axes}
    assert bool(result.success.any()) == (axes > 0)


def test_is_a_direct_search_from_the_worst_points_of_the_grid():
    """Told again for one image at a time, from the plain model's margins."""
    model = convnet()
    x, y = examples(model)
    x, y = x[15:19], predict(model, x[15:19])
    threat = Spatial(rotation=3, translation=0.02)
    result = craft(RefinedGrid(4, 3, 1, keep=3, rounds=3), model, x, y, threat=threat)
    standing = (~result.success).nonzero()[:, 0].tolist()
    assert standing
    for i in standing:

        def margin(z, i=i):
            logits = model(threat.apply(x[i : i + 1], z.unsqueeze(0)))[0]
            return float((logits[torch.arange(5) != y[i]].max() - logits[y[i]]).detach())

        points = threat.lattice(x[i], (4, 3, 3, 1))
        worst = sorted(points, key=margin, reverse=True)[:3]
        for size in (0.5, 0.25, 0.125):
            for axis, spacing in ((0, 2.0), (1, 0.02), (2, 0.02)):
                for side in (1, -1):
                    for place, point in enumerate(worst):
                        step = torch.zeros(4)
                        step[axis] = side * size * spacing
                        other = threat.project((point + step).unsqueeze(0), x[i : i + 1])[0]
                        worst[place] = other if margin(other) > margin(point) else point
        assert float(result.objective[i]) == pytest.approx(max(map(margin, worst)), abs=1e-5)


def test_refuses_what_makes_no_sense():
    model, x = convnet(), uniform(2, 3, 6, 6)
    with pytest.raises(SettingError, match=r"refined-grid looks through .* linf:0.1"):
        craft(RefinedGrid(), model, x, torch.zeros(2, dtype=torch.long), threat=Linf(0.1))
    for settings in ({"keep": 0}, {"rounds": 0}, {"rotations": 0}):
        with pytest.raises(SettingError, match="refined-grid"):
            RefinedGrid(**settings)
