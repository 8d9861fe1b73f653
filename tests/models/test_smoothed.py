import pytest
import torch
from torch import nn

from helpers.zoo import random_linear, uniform
from holdfast.errors import SettingError
from holdfast.models.smoothed import smoothed


class Rippled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = random_linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x + 0.01 * torch.sin(1000 * x))


def test_ripples_go_and_slopes_stay() -> None:
    x = uniform(4, 6, dtype=torch.float64).requires_grad_(True)
    weights = uniform(4, 3, seed=2, dtype=torch.float64)
    true, rough, smooth = (
        torch.autograd.grad((module(x) * weights).sum(), x)[0]
        for module in (random_linear(6, 3), Rippled(), smoothed(Rippled(), 0.05, 2000))
    )
    assert (rough - true).norm() > 3 * true.norm()
    assert (smooth - true).norm() < 0.5 * true.norm()


def test_a_linear_model_is_its_own_average_and_rows_are_alone() -> None:
    x = uniform(4, 6, dtype=torch.float64)
    for samples in (2, 16):
        torch.testing.assert_close(smoothed(random_linear(6, 3), 0.3, samples)(x), random_linear(6, 3)(x))
    twin = smoothed(Rippled(), 0.1, 5)
    torch.testing.assert_close(twin(x[2:3]), twin(x)[2:3])


@pytest.mark.parametrize(("radius", "samples"), [(0.0, 4), (-1.0, 4), (0.1, 0)])
def test_settings_that_make_no_sense(radius: float, samples: int) -> None:
    with pytest.raises(SettingError, match="smoothed: radius"):
        smoothed(random_linear(6, 3), radius, samples)
