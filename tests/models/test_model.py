"""A model as a user names it: what is read of it, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast import Model, SettingError

NET = nn.Linear(2, 2)


def test_a_normalisation_is_a_tuple_of_numbers():
    assert Model(NET).normalisation == (None, None)
    for mean in ([0.5, 0.25], np.array([0.5, 0.25]), torch.tensor([0.5, 0.25])):
        assert Model(NET, mean=mean, std=(1.0, 2.0)).normalisation == ((0.5, 0.25), (1.0, 2.0))
    for odd in ("abc", 0.5, {0.5: 1}, [None]):
        with pytest.raises(SettingError, match=r"^mean: a tuple of finite numbers is needed"):
            Model(NET, mean=odd, std=(1.0, 1.0)).query(NET, 0)


def test_a_name_for_results(tmp_path):
    assert Model(NET).name == "Linear"
    assert (Model("mlp").name, Model("mlp").is_named, Model(NET).is_named) == ("mlp", True, False)
    assert Model(tmp_path / "\udcff.pt").name.endswith("\\udcff.pt")
    assert Model.of(NET) == Model(NET)
    assert Model.of(Model(NET, trust=True)).trust
