import pytest
import torch
from torch import Tensor, nn

from helpers.attacks import snapshot
from helpers.zoo import random_linear, uniform
from holdfast.errors import SettingError
from holdfast.models.distilled import distilled


class Counting(nn.Module):
    """A linear classifier that counts its rows, and may answer by one-hot codes without a gradient."""

    def __init__(self, one_hot: bool) -> None:
        super().__init__()
        self.inner, self.one_hot, self.rows = random_linear(8, 3).float(), one_hot, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        logits = self.inner(x)
        return torch.eye(3)[logits.argmax(1)] if self.one_hot else logits


@pytest.mark.parametrize("one_hot", [False, True])
def test_a_surrogate_points_where_the_model_does(one_hot: bool) -> None:
    model, x = Counting(one_hot), uniform(100, 8)
    before = snapshot(model)
    found = distilled(model, x, radius=0.3, queries=1500)
    assert snapshot(model) == before
    assert found.queries == model.rows == 1500
    assert found.agreement > 0.9
    rows = x.clone().requires_grad_(True)
    margins = [(logits := net(rows))[:, 0] - logits[:, 1] for net in (found.module, model.inner)]
    one, true = (torch.autograd.grad(margin.sum(), rows)[0] for margin in margins)
    assert torch.cosine_similarity(one, true).mean() > 0.8


def test_it_depends_on_its_seed_alone_and_takes_images() -> None:
    model = nn.Sequential(nn.Flatten(), random_linear(36, 3).float()[1])
    x, state = uniform(20, 1, 6, 6), torch.get_rng_state()
    one, same, other = (
        distilled(model, x, radius=0.1, queries=60, passes=2, seed=seed).module(x) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(SettingError, match="distilled: 20 inputs need at least so many queries"):
        distilled(random_linear(8, 3).float(), uniform(20, 8), radius=0.1, queries=10)
