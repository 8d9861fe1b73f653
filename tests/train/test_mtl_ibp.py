"""Training on an attack and on a bound at once."""

import pytest
import torch

from helpers.intervals import check_slope, cross_entropy_by_hand, two_hidden, worst_by_hand
from helpers.zoo import uniform
from holdfast import Linf, SettingError
from holdfast.models.query import Query
from holdfast.train import MTLIBP, PGDTraining, Step

X, Y, INDEX = uniform(5, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 0]), torch.arange(5)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_by_hand(alpha, share):
    net, reach = two_hidden(), 0.2 * share
    x_adv = (X + 0.4 * share * (uniform(5, 6, seed=4, dtype=torch.float64) - 0.5)).clamp(0, 1)
    worst = worst_by_hand(net, (X - reach).clamp_min(0), (X + reach).clamp_max(1), Y)
    weight = alpha * share
    expected = (1 - weight) * cross_entropy_by_hand(net(x_adv), Y) + weight * cross_entropy_by_hand(worst, Y)
    loss = MTLIBP(Linf(0.2), alpha=alpha).loss(net, X, x_adv, Y, Step(0, 0, INDEX, share))
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-10, atol=0)


def test_the_gradient_is_that_of_the_loss():
    net = two_hidden()
    x_adv = (X + 0.2).clamp(0, 1)
    check_slope(net, lambda: MTLIBP(Linf(0.2), alpha=0.4).loss(net, X, x_adv, Y, Step(0, 0, INDEX)))


def test_the_attack_is_that_of_adversarial_training():
    net, step = two_hidden(), Step(0, 0, INDEX, share=0.5)
    with Query(net) as query:
        query.bare_logits(X)
        found = [
            method.perturb(query, X, Y, step)
            for method in (MTLIBP(Linf(0.2), steps=3, step_size=0.4), PGDTraining(Linf(0.2), steps=3, step_size=0.4))
        ]
    assert found[0].equal(found[1])


def test_settings_are_checked():
    with pytest.raises(SettingError, match="mtl-ibp: alpha must lie between 0 and 1, got 2"):
        MTLIBP(Linf(0.1), alpha=2)
    with pytest.raises(SettingError, match="steps and step_size must be positive, got 0"):
        MTLIBP(Linf(0.1), steps=0)
