import pytest
import torch

from helpers.attacks import NORMS
from helpers.zoo import convnet, uniform
from holdfast.attacks.cw import CW
from holdfast.attacks.ddn import DDN
from holdfast.attacks.ead import EAD
from holdfast.attacks.nearest import search_constant
from holdfast.attacks.sigma_zero import SigmaZero
from holdfast.errors import SettingError


def test_the_constant_is_bisected():
    constant, lower, upper = torch.tensor([1e-3] * 4), torch.zeros(4), torch.full((4,), torch.inf)
    least = torch.tensor([0.5, 0.05, 1e-5, 7.0])
    over = torch.tensor([True, True, True, False])
    seen = []
    for _ in range(30):
        seen.append(constant.tolist())
        constant, lower, upper = search_constant(constant, lower, upper, constant >= least, over)
    assert [round(s[0], 6) for s in seen[:6]] == [0.001, 0.01, 0.1, 1.0, 0.55, 0.325]
    torch.testing.assert_close(upper[:3], least[:3], rtol=1e-5, atol=1e-9)
    assert constant[3] == 1e-3
    assert upper[3].isinf()


@pytest.mark.parametrize(
    ("attack", "norm", "instead"),
    [(DDN(), "linf", "fmn"), (CW(), "l1", "fmn"), (EAD(), "l2", "fmn"), (SigmaZero(), "l1", "fmn")],
)
def test_other_norms_are_refused(attack, norm, instead):
    model, x = convnet(), uniform(2, 3, 6, 6)
    y = model(x).argmax(1)
    with pytest.raises(SettingError, match=rf"{attack.name} works in l\d only, not under {norm}:1: use {instead} "):
        attack(model, x, y, threat=NORMS[norm](1.0))
