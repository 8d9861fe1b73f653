"""Other activations, whichever way the network writes them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.networks import ordinary_digits
from helpers.zoo import mlp, uniform
from holdfast import load_data
from holdfast.testing.zoo import activations
from holdfast.testing.zoo.features import Features


class Spelled(nn.Module):
    """Activations as a module, a function, a method and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.quick = nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x - 0.5
        return torch.stack([self.relu(x), functional.relu(x), x.relu(), torch.relu(x), self.quick(x.clone())])


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def test_finds_every_spelling() -> None:
    x = uniform(3, 6)
    assert torch.equal(activations.Activated(Spelled(), Halved())(x), Spelled()(x) / 2)
    for smooth in (nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.ELU()):
        assert torch.equal(activations.Activated(smooth, Halved())(x), smooth(x) / 2)


def test_winners_and_steps() -> None:
    x = uniform(5, 4, 5)
    kept = activations.Winners(0.25)(x)
    for row, sparse in zip(x.flatten(1), kept.flatten(1), strict=True):
        assert torch.equal(sparse.sort().values[-5:], row.sort().values[-5:])
        assert int((sparse != 0).sum()) == 5
    stairs = activations.Steps(5)(x)
    assert all(len(row.unique()) <= 5 for row in stairs)
    assert (stairs - x).abs().max() <= 1 / 8 + 1e-6
    leaf = x.clone().requires_grad_()
    assert not torch.autograd.grad(activations.Steps(5)(leaf).sum(), leaf)[0].any()


def test_features_are_those_before_the_last_layer() -> None:
    net, x = mlp(), uniform(5, 6)
    features, logits = Features(net).both(x)
    assert torch.equal(features, net[:-1](x))
    assert torch.equal(logits, net(x))
    assert torch.equal(Features(nn.Flatten())(x), x)
    assert not net[-1]._forward_pre_hooks


def test_binary_features_depend_on_signs_alone() -> None:
    x = next(load_data("digits", split="train", examples="0:400").batches(400)).x
    net = ordinary_digits()
    model = activations.BinaryFeatures(net, x)
    bits = model._bits(model.features(x))
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert abs(float(bits.mean()) - 0.5) < 0.2
    leaf = x.clone().requires_grad_()
    assert not torch.autograd.grad(model(leaf).sum(), leaf)[0].any()


def test_votes_are_those_of_the_precisions() -> None:
    net, x = ordinary_digits(), next(load_data("digits", split="test").batches(200)).x
    model = activations.LowPrecisionVote(net)
    with torch.no_grad():
        each = torch.stack([part(x).argmax(1) for part in model.nets])
        most = each.mode(0).values
        agreed = (each == most).sum(0) >= 2
        assert torch.equal(model(x).argmax(1)[agreed], most[agreed])
