import pytest

from helpers.attacks import NORMS, check_attack, check_superset
from holdfast.attacks import PGD
from holdfast.errors import SettingError


@pytest.mark.parametrize("norm", NORMS)
def test_shared(norm):
    check_attack(PGD(steps=6, restarts=2), norm, forwards=14, backwards=12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_shared_from_the_clean_input(norm):
    check_attack(PGD(steps=4, random_start=False, objective="dlr"), norm, forwards=5, backwards=4)


@pytest.mark.parametrize("norm", NORMS)
def test_more_never_helps_the_defender(norm):
    size = {"linf": 0.005, "l2": 0.05, "l1": 0.2, "l0": 1.0}[norm]
    check_superset(PGD(steps=3, step_size=size), PGD(steps=8, step_size=size), norm)
    check_superset(PGD(steps=3), PGD(steps=3, restarts=4), norm)


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"restarts": 0}, {"step_size": 0.0}, {"restarts": 2, "random_start": False}]
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SettingError, match="pgd: "):
        PGD(**settings)
