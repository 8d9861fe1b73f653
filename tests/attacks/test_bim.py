import pytest
import torch

from helpers.attacks import NORMS, check_attack, examples
from helpers.zoo import convnet
from holdfast.attacks import PGD
from holdfast.attacks.bim import BIM
from holdfast.errors import SettingError
from holdfast.threats import Linf


@pytest.mark.parametrize("norm", NORMS)
def test_shared(norm):
    check_attack(BIM(steps=4), norm, forwards=5, backwards=4)


@pytest.mark.parametrize("step_size", [None, 0.004])
def test_it_is_the_published_loop(step_size):
    model = convnet().double()
    x, y = examples(model)
    x = x.double()
    eps, steps = 0.01, 5
    seen, losses = [x], []
    for _ in range(steps + 1):
        point = seen[-1].clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(point), y, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), point)
        losses.append(loss.detach())
        ahead = seen[-1] + (step_size or eps / steps) * grad.sign()
        seen.append(torch.minimum(torch.maximum(ahead, x - eps), x + eps).clip(0, 1))
    result = BIM(steps=steps, step_size=step_size)(model, x, y, threat=Linf(eps))
    stands = ~result.success
    best = torch.stack(losses)[:, stands].max(0)
    torch.testing.assert_close(result.objective[stands], best.values, rtol=1e-9, atol=1e-12)
    expected = torch.stack(seen)[best.indices, stands.nonzero()[:, 0]]
    torch.testing.assert_close(result.x_adv[stands], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_pgd_from_the_clean_input(norm):
    model = convnet()
    x, y = examples(model)
    eps = {"linf": 0.02, "l2": 0.2, "l1": 0.8, "l0": 3.0}[norm]
    ours = BIM(steps=5)(model, x, y, threat=NORMS[norm](eps))
    pgd = PGD(steps=5, step_size=eps / 5, random_start=False)(model, x, y, threat=NORMS[norm](eps))
    torch.testing.assert_close(ours.x_adv, pgd.x_adv, rtol=0, atol=1e-6)
    assert torch.equal(ours.forwards, pgd.forwards)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"step_size": 0.0}, {"step_size": float("nan")}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="bim: "):
        BIM(**settings)
