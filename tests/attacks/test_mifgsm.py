import pytest
import torch

from helpers.attacks import NORMS, check_attack, examples
from helpers.zoo import convnet
from holdfast.attacks.bim import BIM
from holdfast.attacks.mifgsm import MIFGSM
from holdfast.errors import SettingError


@pytest.mark.parametrize("norm", NORMS)
def test_shared(norm):
    check_attack(MIFGSM(steps=4), norm, forwards=5, backwards=4)


@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.1)])
def test_it_is_the_published_loop(norm, eps, decay):
    """Algorithm 1, one example at a time; in L2 with its equation 9 and the plain projections of ball and box."""
    model = convnet().double()
    x, y = examples(model)
    x, steps = x.double(), 6
    result = MIFGSM(steps=steps, decay=decay)(model, x, y, threat=NORMS[norm](eps, None))
    stands = (~result.success).nonzero()[:, 0].tolist()
    assert len(stands) > 4
    turned = 0
    for i in stands:
        velocity, z, trace = torch.zeros_like(x[i]), torch.zeros_like(x[i]), []
        for _ in range(steps + 1):
            point = (x[i] + z).requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(model(point[None]), y[i : i + 1])
            (grad,) = torch.autograd.grad(loss, point)
            trace.append((loss.item(), point.detach()))
            velocity = decay * velocity + grad / grad.abs().sum()
            turned += int((velocity.sign() != grad.sign()).any())
            z = z + eps / steps * (velocity.sign() if norm == "linf" else velocity / velocity.norm())
            z = z.clip(-eps, eps) if norm == "linf" else z * min(1.0, eps / z.norm().item())
        value, point = max(trace, key=lambda seen: seen[0])
        assert float(result.objective[i]) == pytest.approx(value, rel=1e-9)
        torch.testing.assert_close(result.x_adv[i], point, rtol=0, atol=1e-12)
    assert turned  # else any decay would pass


@pytest.mark.parametrize("norm", NORMS)
def test_without_memory_it_is_bim(norm):
    model = convnet()
    x, y = examples(model)
    eps = {"linf": 0.02, "l2": 0.2, "l1": 0.8, "l0": 3.0}[norm]
    ours = MIFGSM(steps=5, decay=0.0)(model, x, y, threat=NORMS[norm](eps))
    bim = BIM(steps=5)(model, x, y, threat=NORMS[norm](eps))
    assert torch.equal(ours.success, bim.success)
    torch.testing.assert_close(ours.x_adv, bim.x_adv)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"step_size": 0.0}, {"decay": -0.1}, {"decay": float("nan")}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="mifgsm: "):
        MIFGSM(**settings)
