import pytest

from helpers.attacks import EPS, NORMS, check_attack, examples
from helpers.zoo import convnet
from holdfast.attacks import FGSM
from holdfast.errors import SettingError


@pytest.mark.parametrize("norm", NORMS)
def test_shared(norm):
    check_attack(FGSM(), norm, forwards=2, backwards=1)


def test_unknown_objective():
    model = convnet()
    x, y = examples(model)
    with pytest.raises(SettingError, match="must be one of ce, margin, dlr"):
        FGSM(objective="hinge")(model, x, y, threat=NORMS["linf"](EPS["linf"]))
