import pytest
import torch
from torch import Tensor, nn

from helpers.attacks import NORMS, check_attack, examples
from helpers.planes import linear_distances
from helpers.zoo import Wavy, constant, convnet, random_linear, uniform
from holdfast.attacks import craft
from holdfast.attacks.deepfool import DeepFool
from holdfast.attacks.fab import FAB
from holdfast.errors import SettingError

SPHERES = ["linf", "l2", "l1"]


@pytest.mark.parametrize("norm", SPHERES)
def test_shared(norm):
    check_attack(DeepFool(steps=6), norm, forwards=7, backwards=30, exact=False)


@pytest.mark.parametrize("overshoot", [1e-6, 0.02, 0.3])
@pytest.mark.parametrize("norm", SPHERES)
def test_one_step_is_exact_on_a_linear_model(norm, overshoot):
    model = random_linear(12, 5)
    x = uniform(30, 12, dtype=torch.float64)
    y = model(x).argmax(1)
    result = DeepFool(overshoot=overshoot)(model, x, y, threat=NORMS[norm]("inf", box=None))
    assert result.success.all()
    # The overshoot is one of the whole way, and the second look ends the run.
    exact = linear_distances(model, x, y, norm, box=None)
    torch.testing.assert_close(result.distance, (1 + overshoot) * exact, rtol=1e-6, atol=0)
    assert (result.forwards == 4).all()  # clean, two looks, verification
    assert (result.backwards == 10).all()


@pytest.mark.parametrize("norm", SPHERES)
def test_the_box_is_no_obstacle(norm):
    """With two classes the way inside the box is the shortest, whatever that holds back, to the size of a last step."""
    model = random_linear(6, 2)
    x = (4 * uniform(30, 6, seed=3, dtype=torch.float64) - 1.5).clamp(0, 1)
    y = model(x).argmax(1)
    exact = linear_distances(model, x, y, norm, box=(0.0, 1.0))
    assert (exact > 1.05 * linear_distances(model, x, y, norm, box=None)).sum() >= 5
    result = DeepFool(steps=300, overshoot=1e-6)(model, x, y, threat=NORMS[norm]("inf"))
    assert (result.forwards < 240).all()  # none waits for the last fifth of the steps
    torch.testing.assert_close(result.distance, exact, rtol=1.1e-3, atol=1e-7)


class Misleading(nn.Module):
    """Class 1 wins by ``steep (x0 - 1) + slope t + curve t^2 - 1``, ``t = x1 - 0.1``; class 0 otherwise."""

    def __init__(self, steep: float, slope: float, curve: float) -> None:
        super().__init__()
        self.register_buffer("factors", torch.tensor([steep, slope, curve], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        t = x[:, 1] - 0.1
        rise = torch.stack([x[:, 0] - 1, t, t**2], 1).to(self.factors) @ self.factors - 1
        return torch.stack([torch.zeros_like(rise), rise], 1)


CORNER = torch.tensor([[1.0, 0.1]], dtype=torch.float64)  # the box refuses the steep coordinate


@pytest.mark.parametrize("norm", SPHERES)
def test_no_leap_where_the_gradient_misleads(norm):
    """The slope inside the box is slight at first: its plane is ten away, the boundary 0.22."""
    slope, curve = 0.1, 20.0
    nearest = (-slope + (slope**2 + 4 * curve) ** 0.5) / (2 * curve)
    model = Misleading(10.0, slope, curve)
    result = DeepFool()(model, CORNER, torch.tensor([0]), threat=NORMS[norm]("inf"))
    assert result.success.all()
    assert nearest <= float(result.distance[0]) <= 1.03 * nearest


@pytest.mark.parametrize("norm", SPHERES)
def test_the_last_fifth_of_the_steps_goes_all_the_way(norm):
    model = Misleading(1e4, 2.0, 0.0)
    threat = NORMS[norm]("inf")
    short, enough = (DeepFool(steps=steps)(model, CORNER, torch.tensor([0]), threat=threat) for steps in (4, 5))
    assert not short.success.any()
    assert enough.success.all()
    assert 0.5 <= float(enough.distance[0]) <= 0.5 * 1.021


def test_the_steps_of_the_paper():
    """Algorithm 2 in L2, written out for one example at a time, gradients beyond the boundary as in its code."""
    model = Wavy()
    x = uniform(40, 8, seed=1, dtype=torch.float64)
    y = model(x).argmax(1)
    result = DeepFool(overshoot=0.1)(model, x, y, threat=NORMS["l2"]("inf", box=None))
    lengths = []
    for row, label in zip(x, y.tolist(), strict=True):
        total, steps = torch.zeros_like(row), 0
        while True:
            point = (row + 1.1 * total).requires_grad_(True)
            logits = model(point[None])[0]
            if int(logits.argmax()) != label:
                break
            moves = []
            for other in set(range(4)) - {label}:
                f = logits[other] - logits[label]
                (w,) = torch.autograd.grad(f, point, retain_graph=True)
                moves.append((float(-f.detach() / w.norm()), -f.detach() * w / w.norm() ** 2))
            total, steps = total + min(moves, key=lambda move: move[0])[1], steps + 1
        torch.testing.assert_close(result.x_adv[len(lengths)], point.detach(), rtol=0, atol=1e-5)
        assert int(result.forwards[len(lengths)]) == 3 + steps
        lengths.append(steps)
    assert max(lengths) > 2
    assert len(set(lengths)) > 2


def test_a_rough_answer_that_fab_betters():
    model = convnet()
    x, y = examples(model)
    for norm in SPHERES:
        rough, fine = (attack(model, x, y, threat=NORMS[norm]("inf")) for attack in (DeepFool(), FAB(steps=20)))
        both = rough.success & fine.success & (rough.distance > 0)
        assert both.sum() >= 20
        assert (fine.distance[both] <= rough.distance[both] * 1.001).float().mean() >= 0.9
        assert rough.distance[both].median() < 1.5 * fine.distance[both].median()


@pytest.mark.parametrize("box", [None, (0.0, 1.0)], ids=["free", "box"])
@pytest.mark.parametrize("norm", SPHERES)
def test_flat_models(norm, box):
    x, y = uniform(4, 6), torch.ones(4, dtype=torch.int64)
    result = craft(DeepFool(steps=3), constant(), x, y, threat=NORMS[norm]("inf", box=box))
    assert not result.success.any()
    assert torch.equal(result.x_adv, x)
    assert (result.forwards == 5).all()
    assert (result.backwards == 9).all()


def test_other_threats_are_refused():
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match="not under l0:2: use"):
        DeepFool()(model, x, y, threat=NORMS["l0"](2))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"overshoot": -0.1}, {"overshoot": float("nan")}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match=r"^deepfool: "):
        DeepFool(**settings)
