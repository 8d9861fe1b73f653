"""Classifiers that look up the features of a network: nearest neighbours, trees, prototypes."""

import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

from holdfast.testing.zoo.features import Features

__all__ = ["Forest", "Neighbours", "Prototypes"]


class Neighbours(nn.Module):
    """Votes of the nearest examples in the features (Papernot and McDaniel 2018: deep k-nearest neighbours)."""

    references: Tensor
    votes: Tensor

    def __init__(self, net: nn.Module, examples: Tensor, neighbours: int = 5) -> None:
        super().__init__()
        self.features, self.neighbours = Features(net), neighbours
        features, classes = self.features.of(examples)
        self.register_buffer("references", features)
        self.register_buffer("votes", _members(net, examples, classes))

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        near = torch.cdist(features, self.references).topk(min(self.neighbours, len(self.references)), largest=False)
        # The nearest one breaks ties.
        weights = torch.ones_like(near.values[0]).index_fill(0, torch.zeros(1, dtype=torch.long), 1.5)
        votes = (self.votes[near.indices] * weights.view(1, -1, 1)).sum(1)
        answer: Tensor = 2 * votes + 0 * features.sum(1, keepdim=True)
        return answer


class Forest(nn.Module):
    """A random forest on the features: comparisons all the way down."""

    def __init__(self, net: nn.Module, examples: Tensor, trees: int = 20) -> None:
        super().__init__()
        self.features = Features(net)
        features, classes = self.features.of(examples)
        with torch.no_grad():
            self.classes = net(examples[:1]).shape[1]
        self.forest = RandomForestClassifier(trees, random_state=0).fit(features.cpu().numpy(), classes.cpu().numpy())

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        shares = torch.from_numpy(self.forest.predict_proba(features.detach().float().cpu().numpy())).to(features)
        known = torch.as_tensor(self.forest.classes_, device=x.device)
        logits = torch.zeros(len(x), self.classes, device=x.device, dtype=features.dtype)
        answer: Tensor = 10 * logits.index_copy(1, known, shares) + 0 * features.sum(1, keepdim=True)
        return answer


class Prototypes(nn.Module):
    """Minus the squared distance to the mean features of each class: smooth, and as easy to attack as the network.

    Pang et al., ICLR 2020; Li, Bradshaw and Sharma, ICML 2019.
    """

    centres: Tensor

    def __init__(self, net: nn.Module, examples: Tensor) -> None:
        super().__init__()
        self.features = Features(net)
        features, classes = self.features.of(examples)
        members = _members(net, examples, classes)
        count = members.sum(0).unsqueeze(1)
        # A class without an example is as far away as can be.
        self.register_buffer("centres", torch.where(count > 0, members.T @ features / count.clamp_min(1), 1e4))

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        answer: Tensor = -(features.unsqueeze(1) - self.centres).square().mean(2)
        return answer


@torch.no_grad()
def _members(net: nn.Module, examples: Tensor, classes: Tensor) -> Tensor:
    """``(N, K)`` a one for the class of each example."""
    return nn.functional.one_hot(classes, net(examples[:1]).shape[1]).to(examples.dtype)
