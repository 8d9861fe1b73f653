import pytest

from helpers.attacks import check_attack, check_superset
from helpers.zoo import convnet, uniform
from holdfast.attacks import Evolution, craft
from holdfast.errors import SettingError
from holdfast.threats import Linf


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_shared(norm):
    check_attack(Evolution(queries=40, population=4, restarts=2), norm, forwards=80, backwards=0)


def test_more_never_helps_the_defender():
    check_superset(Evolution(queries=20), Evolution(queries=20, restarts=3), "linf")


def test_settings_and_sets_that_it_cannot_do_with():
    with pytest.raises(SettingError, match="population at least 2"):
        Evolution(population=1)

    class Drawn:
        """A set that has no steps."""

        def __init__(self, ball):
            self.ball, self.name = ball, "drawn"

        def __getattr__(self, name):
            if name in ("project", "retract", "pull", "ascend") or name.startswith("__"):
                raise AttributeError(name)
            return getattr(self.__dict__["ball"], name)

        def at(self, index):
            return self

        near = at

    x = uniform(2, 3, 6, 6)
    with pytest.raises(SettingError, match="evolution climbs from choice to choice, which drawn has no steps for"):
        craft(Evolution(), convnet(), x, convnet()(x).argmax(1), threat=Drawn(Linf(0.1)))
