import pytest
import torch

from helpers.attacks import NORMS, check_attack, examples
from helpers.minimum import exact_distance, fewest_coordinates
from helpers.zoo import convnet, random_linear, uniform
from holdfast.attacks.fmn import FMN
from holdfast.errors import SettingError


@pytest.mark.parametrize("norm", NORMS)
def test_shared(norm):
    check_attack(FMN(steps=10, refine=8), norm, forwards=18, backwards=17)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_linear_models_are_exact(norm, dual, classes):
    model = random_linear(20, classes)
    x = uniform(40, 20, seed=7, dtype=torch.float64)
    y = model(x).argmax(1)
    result = FMN()(model, x, y, threat=NORMS[norm]("inf", box=None))
    torch.testing.assert_close(result.distance, exact_distance(model, x, y, dual), rtol=1e-4, atol=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_l0_of_linear_models_is_exact(classes):
    # A bias towards the first class puts the others several coordinates away.
    model = random_linear(7, classes)
    with torch.no_grad():
        model[1].bias[0] += 2
    x = uniform(40, 7, seed=3, dtype=torch.float64)
    y = model(x).argmax(1)
    reachable = torch.tensor([n < 8 for n in fewest_coordinates(model, x, y)])
    x, y = x[reachable], y[reachable]
    result = FMN()(model, x, y, threat=NORMS["l0"]("inf"))
    expected = fewest_coordinates(model, x, y)
    assert result.success.all()
    assert len(set(expected)) > 2
    assert result.distance.tolist() == expected


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_published_part_alone_comes_near(norm):
    model = random_linear(20, 2)
    x = uniform(40, 20, seed=7, dtype=torch.float64)
    y = model(x).argmax(1)
    result = FMN(refine=0)(model, x, y, threat=NORMS[norm]("inf", box=None))
    exact = exact_distance(model, x, y, {"linf": 1, "l2": 2, "l1": torch.inf}[norm])
    assert result.success.all()
    torch.testing.assert_close(result.distance, exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_refinement_never_leads_away(norm):
    model = convnet()
    x, y = examples(model)
    rough, fine = (FMN(steps=20, refine=n)(model, x, y, threat=NORMS[norm]("inf")) for n in (0, 20))
    assert torch.equal(rough.success, fine.success)
    assert (fine.distance <= rough.distance * (1 + 1e-3)).all()
    assert (fine.distance < rough.distance).any()


@pytest.mark.parametrize("settings", [{"steps": 0}, {"step_size": 0.0}, {"gamma": 1.0}, {"refine": -1}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="fmn: "):
        FMN(**settings)
