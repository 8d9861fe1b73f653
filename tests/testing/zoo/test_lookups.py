"""Lookups on features, beside scikit-learn and brute force."""

import torch
from sklearn.neighbors import KNeighborsClassifier

from helpers.networks import ordinary_digits
from holdfast import load_data
from holdfast.testing.zoo import lookups
from holdfast.testing.zoo.features import Features

EXAMPLES = next(load_data("digits", split="train", examples="0:300").batches(300)).x
X = next(load_data("digits", split="test", examples="0:100").batches(100)).x


@torch.no_grad()
def test_neighbours_vote() -> None:
    net = ordinary_digits()
    features = Features(net)
    fitted = KNeighborsClassifier(5).fit(features(EXAMPLES).numpy(), net(EXAMPLES).argmax(1).numpy())
    shares = torch.from_numpy(fitted.predict_proba(features(X).numpy()))
    top = shares.topk(2, dim=1)
    clear = top.values[:, 0] > top.values[:, 1]
    assert torch.equal(lookups.Neighbours(net, EXAMPLES)(X).argmax(1)[clear], top.indices[:, 0][clear])


def test_forest_has_the_votes_of_its_trees_and_no_gradient() -> None:
    model = lookups.Forest(ordinary_digits(), EXAMPLES)
    leaf = X.clone().requires_grad_()
    logits = model(leaf)
    shares = model.forest.predict_proba(model.features(X).detach().numpy())
    assert torch.allclose(logits.double(), 10 * torch.from_numpy(shares), atol=1e-5)
    assert not torch.autograd.grad(logits.sum(), leaf)[0].any()


@torch.no_grad()
def test_prototypes_are_means() -> None:
    net = ordinary_digits()
    features, classes = Features(net).of(EXAMPLES)
    model = lookups.Prototypes(net, EXAMPLES)
    away = [(Features(net)(X) - features[classes == k].mean(0)).square().mean(1) for k in range(10)]
    assert torch.allclose(model(X), -torch.stack(away, dim=1), rtol=1e-4)


@torch.no_grad()
def test_classes_without_an_example_are_never_the_answer() -> None:
    net = ordinary_digits()
    few = EXAMPLES[net(EXAMPLES).argmax(1) < 3]
    for make in (lookups.Neighbours, lookups.Forest, lookups.Prototypes):
        assert make(net, few)(X).shape == (100, 10)
        assert make(net, few)(X).argmax(1).max() < 3
