import pytest

from helpers.attacks import check_attack, check_superset
from holdfast.attacks.evolution import Evolution


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_shared(norm):
    check_attack(Evolution(queries=40, population=4, restarts=2), norm, forwards=80, backwards=0)


def test_more_never_helps_the_defender():
    check_superset(Evolution(queries=20), Evolution(queries=20, restarts=3), "linf")
