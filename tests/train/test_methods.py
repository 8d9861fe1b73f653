"""Every training method, put through the shared tester."""

import pytest

from helpers.training import METHODS, check_method


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, case in METHODS.items() for norm in case.norms])
def test_method(name, norm):
    check_method(METHODS[name], norm)
