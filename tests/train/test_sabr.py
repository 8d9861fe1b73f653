"""Training on small boxes: its loss by hand, and what it is at the ends of its setting."""

import pytest
import torch

from helpers.intervals import check_slope, cross_entropy_by_hand, two_hidden, worst_by_hand
from helpers.zoo import uniform
from holdfast import L0, L2, Linf, SettingError
from holdfast.models.query import Query
from holdfast.train import IBP, SABR, PGDTraining, Step

X, Y, INDEX = uniform(5, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 0]), torch.arange(5)


@pytest.mark.parametrize(("share", "kappa"), [(1.0, 0.0), (1.0, 0.3), (0.5, 0.3)])
def test_the_loss_by_hand(share, kappa):
    net, eps, ratio = two_hidden(), 0.2, 0.3
    x_adv = (X + 0.4 * share * (uniform(5, 6, seed=4, dtype=torch.float64) - 0.5)).clamp(0, 1)
    whole, small = eps * share, eps * share * ratio
    # The centre of a box that lies within the large one, but for what the unit box cuts off.
    centre = torch.maximum(torch.minimum(x_adv, X + whole - small), X - whole + small).clamp(0, 1)
    assert (centre - x_adv).abs().max() > 0.01
    worst = worst_by_hand(net, (centre - small).clamp_min(0), (centre + small).clamp_max(1), Y)
    weight = 1 - (1 - kappa) * share
    expected = weight * cross_entropy_by_hand(net(centre), Y) + (1 - weight) * cross_entropy_by_hand(worst, Y)
    loss = SABR(Linf(eps), ratio, kappa).loss(net, X, x_adv, Y, Step(0, 0, INDEX, share))
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-10, atol=0)


def test_the_gradient_is_that_of_the_loss():
    net = two_hidden()
    x_adv = (X + 0.2).clamp(0, 1)
    check_slope(net, lambda: SABR(Linf(0.2)).loss(net, X, x_adv, Y, Step(0, 0, INDEX)))


@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.3)])
def test_at_its_ends_it_is_adversarial_and_interval_training(threat):
    net, step = two_hidden(), Step(0, 0, INDEX)
    with Query(net) as query:
        query.bare_logits(X)
        x_adv = SABR(threat).perturb(query, X, Y, step)
        assert x_adv.equal(PGDTraining(threat, steps=2).perturb(query, X, Y, step))
    ends = {0.0: PGDTraining(threat), 1.0: IBP(threat, kappa=0.0)}
    for ratio, method in ends.items():
        loss, expected = (one.loss(net, X, x_adv, Y, step) for one in (SABR(threat, ratio=ratio), method))
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_settings_are_checked():
    with pytest.raises(SettingError, match=r"sabr: ratio and kappa must lie between 0 and 1, got 2 and 0\.0"):
        SABR(Linf(0.1), ratio=2)
    with pytest.raises(SettingError, match="steps and step_size must be positive, got 0"):
        SABR(Linf(0.1), steps=0)
    with pytest.raises(SettingError, match="L0"):
        SABR(L0(3))
