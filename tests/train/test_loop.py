"""Training methods against hand computation, and the loop against its promises."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.zoo import mlp, uniform
from holdfast import PGD, Linf, ModelError
from holdfast.data import from_tensors, load_data
from holdfast.models.networks import digits_conv
from holdfast.train import PGDTraining, Standard, fit


def test_the_standard_loss_is_the_mean_cross_entropy():
    net, x, y = mlp(), uniform(5, 6), torch.arange(5) % 4
    by_hand = sum(-net(x)[i].log_softmax(0)[y[i]] for i in range(5)) / 5
    torch.testing.assert_close(Standard().loss(net, x, y, seed=0), by_hand)


def test_the_adversarial_loss_of_a_linear_model_is_the_exact_robust_loss():
    # Two classes: the worst L-infinity perturbation lowers the margin by eps |w_1 - w_0|_1, whatever the input.
    net = nn.Linear(6, 2).double()
    x, y, eps = uniform(7, 6, dtype=torch.float64), torch.arange(7) % 2, 0.05
    threat = Linf(eps, box=None)
    w, b = net.weight[1] - net.weight[0], net.bias[1] - net.bias[0]
    sign = 2.0 * y - 1
    exact = functional.softplus(-(sign * (x @ w + b) - eps * w.abs().sum())).mean()
    loss = PGDTraining(threat, PGD(steps=10)).loss(net, x, y, seed=0)
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=1e-8)
    # By Danskin's theorem the gradient is that of the exact robust loss.
    for mine, theirs in zip(
        torch.autograd.grad(loss, net.parameters()), torch.autograd.grad(exact, net.parameters()), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_the_inner_attack_leaves_training_as_it_was():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)).train()
    seen = []
    net[2].register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    PGDTraining(Linf(0.1), PGD(steps=3)).loss(net, uniform(5, 6), torch.arange(5) % 4, seed=0)
    assert seen == [False] * 4 + [True]
    assert net.training
    assert net[2].num_batches_tracked == 1


def test_fit_repeats_itself_and_learns():
    def train():
        torch.manual_seed(3)
        return fit(digits_conv(), load_data("digits", split="train", examples="0:300"), Standard(), epochs=6)

    first, second = train(), train()
    assert not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    batch = next(iter(load_data("digits", split="train", examples="0:300").batches(300)))
    assert (first(batch.x).argmax(1) == batch.y).float().mean() > 0.8


def test_a_loss_that_diverges_stops_with_the_step():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    data = from_tensors(torch.rand(64, 4), torch.arange(64) % 2)
    with torch.no_grad():
        net[1].weight.fill_(torch.inf)
    with pytest.raises(ModelError, match="at step 0 of"):
        fit(net, data, Standard(), epochs=1)
