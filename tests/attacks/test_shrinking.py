import pytest
import torch
from torch import Tensor, nn

from helpers.attacks import NORMS, check_attack, examples, lengths, predict
from helpers.minimum import exact_distance
from helpers.zoo import constant, convnet, mlp, random_linear, uniform
from holdfast.attacks import FMN, PGD, Stage, drive
from holdfast.attacks.shrinking import ShrinkingBall
from holdfast.data import Batch
from holdfast.errors import SettingError
from holdfast.models.query import Query

ROUND = ["linf", "l2", "l1"]


@pytest.mark.parametrize("norm", ROUND)
def test_shared(norm):
    check_attack(ShrinkingBall(steps=4, runs=3, refine=6), norm, forwards=18, backwards=14)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_linear_models_are_exact(norm, dual, classes):
    model = random_linear(20, classes)
    x = uniform(40, 20, seed=7, dtype=torch.float64)
    y = model(x).argmax(1)
    result = ShrinkingBall(runs=8)(model, x, y, threat=NORMS[norm]("inf", box=None))
    torch.testing.assert_close(result.distance, exact_distance(model, x, y, dual), rtol=1e-4, atol=0)


class Regions(nn.Module):
    """Class 1 in five separate regions of the plane; from anywhere the gradient leads to one of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(uniform(5, 2, seed=seed, dtype=torch.float64))
        self.radius = nn.Parameter(0.05 + 0.1 * uniform(5, seed=seed + 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        inside = (self.radius - (x.unsqueeze(1) - self.centres).abs().sum(2)).amax(1)
        return torch.stack([-inside, inside], 1)


@pytest.mark.parametrize("norm", ROUND)
def test_finds_the_nearest_of_several_regions(norm):
    """Within a few per cent of the nearest of a fine grid's points, where an attack from one start is far off."""
    side = torch.linspace(0, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    model = Regions(1)
    x = uniform(60, 2, seed=3, dtype=torch.float64)
    x = x[predict(model, x) == 0]
    wrong = grid[model(grid).argmax(1) == 1]
    exact = torch.stack([lengths(norm, wrong - row).min() for row in x])

    def farther(attack) -> int:
        result = attack(model, x, torch.zeros(len(x), dtype=torch.int64), threat=NORMS[norm]("inf"))
        distance = torch.where(result.success, result.distance, torch.inf)
        # The grid's nearest point may itself be a spacing or two too far.
        assert (distance > exact - 2.5 / 400 * (2 if norm == "l1" else 1)).all()
        return int((distance > 1.03 * exact + 1e-6).sum())

    assert farther(FMN()) >= 5
    assert farther(ShrinkingBall(runs=60)) <= 2


def test_starts_from_what_an_earlier_stage_found():
    """Its looks stay inside the ball below that distance, so it never records one farther away."""
    model = convnet()
    x, y = examples(model)
    with Query(model, batch_size=24) as query:
        both, single = (
            {
                one.index: one
                for some in drive(query, NORMS["linf"]("inf"), stages, [Batch(torch.arange(24), x, y)])
                for one in some
            }
            for stages in (
                [Stage("fmn", FMN(steps=20)), Stage("ball", ShrinkingBall(runs=6))],
                [Stage("fmn", FMN(steps=20))],
            )
        )
    assert {one.stage for one in both.values()} >= {"fmn", "ball"}
    for i, one in both.items():
        assert one.distance <= single[i].distance
        assert (one.distance == single[i].distance) == (one.stage != "ball")


def test_restarts_are_those_of_the_seed():
    model = mlp(seed=3)
    x = uniform(24, 6, seed=3)
    y = predict(model, x)
    first, again, other = (
        ShrinkingBall(runs=6, refine=0)(model, x, y, threat=NORMS["linf"]("inf"), seed=seed).x_adv for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_under_a_budget_it_breaks_what_ascent_in_that_ball_breaks():
    model = convnet()
    x, y = examples(model)
    threat = NORMS["linf"](0.02)
    mine, theirs = (
        attack(model, x, y, threat=threat).success
        for attack in (ShrinkingBall(), PGD(steps=20, restarts=5, objective="margin"))
    )
    assert 2 < theirs.sum() < 24
    assert (theirs <= mine).all()


@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_of_a_constant_model_nothing_is_found(box):
    x = uniform(6, 6, seed=1)
    result = ShrinkingBall(runs=8)(constant(), x, torch.ones(6).long(), threat=NORMS["l2"]("inf", box=box))
    assert not result.success.any()
    assert result.x_adv.isfinite().all()


def test_l0_is_refused():
    with pytest.raises(SettingError, match="shrinking-ball works in linf, l2, l1 only, not under l0:3: use sigma-zero"):
        ShrinkingBall()(mlp(), uniform(3, 6), torch.zeros(3).long(), threat=NORMS["l0"](3))


@pytest.mark.parametrize(
    "settings", [{"steps": 1}, {"runs": 0}, {"gap": 0.0}, {"gap": 1.0}, {"targets": -1}, {"refine": -1}]
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="shrinking-ball: "):
        ShrinkingBall(**settings)
