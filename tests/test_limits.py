"""The budget of bytes of a file."""

import pytest

from holdfast import limits
from holdfast.errors import DataError, ModelError
from holdfast.limits import check_bytes


def test_the_budget_itself_may_be_asked_for():
    check_bytes(0, "w.pt")
    check_bytes(limits.MEMORY, "w.pt")


@pytest.mark.parametrize("count", [limits.MEMORY + 1, 2**60, 10**5000], ids=["one", "exbibyte", "absurd"])
@pytest.mark.parametrize("fault", [ModelError, DataError])
def test_more_is_refused_in_one_line_whatever_the_number(count, fault):
    with pytest.raises(
        fault, match=r"^x\.npz, array x: asks for [^\n]{1,40}, more than the 4 GiB that a file may [^\n]*$"
    ):
        check_bytes(count, "x.npz, array x", fault)


def test_the_default_is_a_fault_of_the_model(monkeypatch):
    monkeypatch.setattr(limits, "MEMORY", 10)
    with pytest.raises(ModelError, match=r"^net\.onnx: asks for"):
        check_bytes(11, "net.onnx")
