"""Models as users name them, and how they are read and asked."""

from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast import Model, SettingError
from holdfast.models import OneLogit


def test_what_a_user_gave_is_a_model_with_nothing_more_to_say():
    named, made = Model.of("net.py:make"), Model.of(nn.Linear(3, 2))
    assert (named.name, named.is_named, named.normalisation) == ("net.py:make", True, (None, None))
    assert (made.name, made.is_named) == ("Linear", False)
    assert Model.of(Path("net.onnx")).name == "net.onnx"
    assert Model.of(Path("\udcff.onnx")).name == "\\udcff.onnx"
    assert Model.of(named) is named


def test_a_module_is_loaded_with_its_weights_and_its_positive_class(tmp_path: Path):
    net, other = nn.Linear(3, 1), nn.Linear(3, 1)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    loaded = Model(other, weights=tmp_path / "net.pt", positive=0).load()
    assert isinstance(loaded, OneLogit)
    x = torch.rand(5, 3)
    assert torch.equal(loaded(x).diff(dim=1), -net(x))


def test_the_normalisation_comes_before_the_model():
    net, x = nn.Linear(3, 2).double(), torch.rand(5, 3, dtype=torch.float64)
    named = Model(net, mean=[0.5], std=torch.tensor([0.25]))
    assert named.normalisation == ((0.5,), (0.25,))
    with named.query(net, seed=0) as query:
        assert torch.allclose(query.bare_logits(x), net((x - 0.5) / 0.25))


@pytest.mark.parametrize("given", [0.3, "0.3", ["a"], [float("nan")], {0.3}])
def test_a_normalisation_that_is_no_list_of_numbers(given):
    data = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    for name in ("mean", "std"):
        with pytest.raises(SettingError, match=f"^{name}: a tuple of finite numbers is needed"):
            holdfast.audit(Model(nn.Linear(3, 2), **{name: given}), data, "linf:0.1")
