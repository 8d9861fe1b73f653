"""Class-wise training: the budgets and weights that an inner method is told, and what they are learned from."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.zoo import mlp, uniform
from holdfast import Linf, SettingError
from holdfast.models.query import Query
from holdfast.train import ClassWise, PGDTraining, Standard, Step

# What fraction of each class is right, and how often a class is in a batch.
RIGHT, SEEN = torch.tensor([1.0, 0.5, 0.0, 0.75]), torch.tensor([2, 2, 1, 4])
Y = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3, 3])
SAID = torch.tensor([0, 0, 1, 3, 0, 3, 3, 0, 3])


class Says(nn.Module):
    """Predicts the class that the first feature names."""

    def forward(self, x):
        return 5.0 * functional.one_hot(x[:, 0].long(), 4) + 0 * x[:, :1]


@dataclass(frozen=True)
class Listener:
    """Adds 1 to its input, and keeps the steps that it was told of."""

    told: list[Step] = field(default_factory=list)
    replays: ClassVar[int] = 3

    def perturb(self, query, x, y, step):
        self.told.append(step)
        return x + 1

    def loss(self, model, x, x_adv, y, step):
        self.told.append(step)
        return step.cross_entropy(model(x_adv), y).mean()


def train(method: ClassWise, memory: dict, number: int) -> torch.Tensor:
    # The class named by the perturbed input is what counts, not that of the clean one.
    x = (SAID - 1).float().unsqueeze(1)
    step = Step(number, 0, torch.arange(9), share=0.5, memory=memory)
    with Query(Says(), batch_size=9) as query:
        x_adv = method.perturb(query, x, Y, step)
    return method.loss(Says(), x, x_adv, Y, step)


def test_budgets_and_weights_follow_the_accuracies_of_the_classes():
    inner, memory = Listener(), {}
    method = ClassWise(inner, base=0.3, power=0.5, decay=0.5)
    assert method.replays == 3
    seen, right = torch.zeros(4), torch.zeros(4)
    for number in range(3):
        loss = train(method, memory, number)
        accuracy = ((right + 1) / (seen + 2)).double()
        share = 0.5 * (0.3 + accuracy)[Y] if number else torch.full((9,), 0.5)
        weight = (1 - accuracy).sqrt() / (1 - accuracy).sqrt().mean()
        expected = weight[Y] if number else torch.ones(9)
        for told in inner.told[-2:]:
            torch.testing.assert_close(torch.as_tensor(told.share).expand(9).double(), share.double())
            torch.testing.assert_close(torch.as_tensor(told.weight).expand(9).double(), expected.double())
        by_hand = expected * functional.cross_entropy(Says()(SAID.float().unsqueeze(1)), Y, reduction="none")
        torch.testing.assert_close(loss.double(), by_hand.mean().double())
        right, seen = 0.5 * right + RIGHT * SEEN, 0.5 * seen + SEEN
    assert len(inner.told) == 6


def test_the_perturbed_inputs_use_their_classes_budgets():
    # On a linear model PGD ends in a corner of the box that the class has.
    net, x, y = nn.Linear(6, 4).double(), uniform(12, 6, dtype=torch.float64) / 2 + 0.25, torch.arange(12) % 4
    counts = torch.tensor([[8.0, 2.0, 0.0, 5.0], [8.0, 8.0, 8.0, 8.0]])
    step = Step(1, 0, torch.arange(12), memory={"classwise.counts": counts})
    with Query(net, batch_size=12) as query:
        x_adv = ClassWise(PGDTraining(Linf(0.1))).perturb(query, x, y, step)
    budget = 0.1 * (0.5 + (counts[0] + 1) / 10)[y]
    torch.testing.assert_close((x_adv - x).abs().amax(1), budget.double(), rtol=0, atol=1e-7)


def test_equal_weights_and_classes_nobody_saw():
    net, x = mlp(), uniform(9, 6)
    step = Step(1, 0, torch.arange(9), memory={"classwise.counts": torch.zeros(2, 4)})
    with Query(net, batch_size=9) as query:
        losses = []
        for method in (ClassWise(Standard()), ClassWise(Standard(), power=0), Standard()):
            x_adv = method.perturb(query, x, Y, step)
            losses.append(method.loss(net, x, x_adv, Y, step))
    torch.testing.assert_close(losses[0], losses[2])
    torch.testing.assert_close(losses[1], losses[2])


@pytest.mark.parametrize("wrong", [{"base": -0.1}, {"power": -1.0}, {"decay": 1.0}, {"decay": float("nan")}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(SettingError, match=f"classwise: .*{next(iter(wrong))}"):
        ClassWise(Standard(), **wrong)
