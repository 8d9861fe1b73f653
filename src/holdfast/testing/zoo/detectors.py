"""Defences that judge an input, and answer otherwise where they suspect it.

A suspect is answered with the class that came second: of an adversarial input that is often the true one, so that an
attack which takes no account of it fails for a reason that no gradient shows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from holdfast.testing.zoo.features import Features
from holdfast.testing.zoo.outputs import largest

__all__ = ["Abstaining", "Dimensional", "Distant", "Odd", "Squeezed", "Unstable", "swapped"]


def swapped(logits: Tensor, suspect: Tensor) -> Tensor:
    """Logits with the two largest of a row exchanged where it is suspect."""
    top = logits.topk(2, dim=1)
    other = logits.scatter(1, top.indices, top.values.flip(1))
    return torch.where(suspect.unsqueeze(1), other, logits)


class Squeezed(nn.Module):
    """Suspects what is answered otherwise when the input is squeezed (Xu, Evans and Qi, NDSS 2018)."""

    threshold: Tensor

    def __init__(self, net: nn.Module, examples: Tensor, squeeze: nn.Module, quantile: float = 0.98) -> None:
        super().__init__()
        self.net, self.squeeze = net, squeeze
        with torch.no_grad():
            self.register_buffer("threshold", self._score(examples, net(examples)).quantile(quantile))

    def _score(self, x: Tensor, logits: Tensor) -> Tensor:
        apart: Tensor = (logits.softmax(1) - self.net(self.squeeze(x)).softmax(1)).abs().sum(1)
        return apart

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return swapped(logits, self._score(x, logits) > self.threshold)


class Distant(nn.Module):
    """Suspects what lies far from the examples of its class in the features (Lee et al., NeurIPS 2018)."""

    centres: Tensor
    inverse: Tensor
    threshold: Tensor

    def __init__(self, net: nn.Module, examples: Tensor, quantile: float = 0.98) -> None:
        super().__init__()
        self.features = Features(net)
        features, classes = self.features.of(examples)
        with torch.no_grad():
            count = net(examples[:1]).shape[1]
        wide = features.double()
        members = nn.functional.one_hot(classes, count).double()
        centres = members.T @ wide / members.sum(0).clamp_min(1).unsqueeze(1)
        spread = wide - centres[classes]
        covariance = spread.T @ spread / len(wide)
        covariance += (
            0.1 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=wide.dtype, device=wide.device)
        )
        self.register_buffer("centres", centres.to(features.dtype))
        self.register_buffer("inverse", torch.linalg.inv(covariance).to(features.dtype))
        self.register_buffer("threshold", self._score(features, classes).quantile(quantile))

    def _score(self, features: Tensor, classes: Tensor) -> Tensor:
        away = features - self.centres[classes]
        score: Tensor = ((away @ self.inverse) * away).sum(1)
        return score

    def forward(self, x: Tensor) -> Tensor:
        features, logits = self.features.both(x)
        return swapped(logits, self._score(features, logits.argmax(1)) > self.threshold)


class Dimensional(nn.Module):
    """Suspects what has a high local intrinsic dimension among the examples' features (Ma et al., ICLR 2018)."""

    references: Tensor
    threshold: Tensor

    def __init__(self, net: nn.Module, examples: Tensor, neighbours: int = 20, quantile: float = 0.98) -> None:
        super().__init__()
        self.features, self.neighbours = Features(net), neighbours
        features, _ = self.features.of(examples)
        half = len(features) // 2
        self.register_buffer("references", features[:half])
        self.register_buffer("threshold", self._score(features[half:]).quantile(quantile))

    def _score(self, features: Tensor) -> Tensor:
        count = min(self.neighbours, len(self.references))
        near = torch.cdist(features, self.references).topk(count, largest=False).values.clamp_min(1e-6)
        return -1 / (near / near[:, -1:]).log().mean(1).clamp(max=-1e-6)

    def forward(self, x: Tensor) -> Tensor:
        features, logits = self.features.both(x)
        return swapped(logits, self._score(features) > self.threshold)


class Odd(nn.Module):
    """Suspects what noise moves towards another class more than it moves clean inputs, and answers with that class.

    Roth, Kilcher and Hofmann, "The odds are odd", ICML 2019. The noise is drawn once and is the same for every input.
    """

    noise: Tensor
    mean: Tensor
    spread: Tensor
    bar: Tensor

    def __init__(
        self, net: nn.Module, examples: Tensor, sigma: float = 0.15, draws: int = 8, quantile: float = 0.99
    ) -> None:
        super().__init__()
        self.net = net
        generator = torch.Generator().manual_seed(0)
        noise = sigma * torch.randn(draws, *examples.shape[1:], generator=generator).to(examples)
        self.register_buffer("noise", noise)
        with torch.no_grad():
            logits = net(examples)
            shifts, members = self._shifts(examples, logits), largest(logits)
            count = members.sum(0).clamp_min(1).unsqueeze(1)
            mean = members.T @ shifts / count
            self.register_buffer("mean", mean)
            self.register_buffer("spread", (members.T @ shifts.square() / count - mean.square()).clamp_min(1e-2).sqrt())
            self.register_buffer("bar", self._scores(examples, logits).amax(1).quantile(quantile))

    def _shifts(self, x: Tensor, logits: Tensor) -> Tensor:
        """``(N, K)`` by how much noise raises every logit over the predicted one, on average."""
        noisy = torch.stack([self.net(x + noise) for noise in self.noise]).mean(0)
        own = logits.argmax(1, keepdim=True)
        return (noisy - noisy.gather(1, own)) - (logits - logits.gather(1, own))

    def _scores(self, x: Tensor, logits: Tensor) -> Tensor:
        """The same in standard deviations of clean inputs of the predicted class; 0 for that class."""
        answer = logits.argmax(1)
        return (self._shifts(x, logits) - self.mean[answer]) / self.spread[answer]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        scores = self._scores(x, logits)
        corrected = logits + largest(scores) * (logits.amax(1, keepdim=True) - logits + 1)
        return torch.where((scores.amax(1) > self.bar).unsqueeze(1), corrected, logits)


class Unstable(nn.Module):
    """Suspects what noise makes unsure, and what a step against the answer does not (Hu et al., NeurIPS 2019).

    Inputs that were moved just beyond a boundary are unstable under noise; those driven deep into a class stand up to a
    step of FGSM as clean inputs do not. The noise is drawn once and is the same for every input.
    """

    noise: Tensor
    loudest: Tensor
    least: Tensor

    def __init__(
        self, net: nn.Module, examples: Tensor, size: float = 0.1, sigma: float = 0.1, quantile: float = 0.99
    ) -> None:
        super().__init__()
        self.net, self.size = net, size
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("noise", sigma * torch.randn(4, *examples.shape[1:], generator=generator).to(examples))
        with torch.no_grad():
            self.register_buffer("loudest", self._change(examples, net(examples)).quantile(quantile))
        self.register_buffer("least", self._fall(examples).quantile(1 - quantile))

    def _change(self, x: Tensor, logits: Tensor) -> Tensor:
        """How far noise moves the probabilities."""
        noisy = torch.stack([self.net(x + noise).softmax(1) for noise in self.noise]).mean(0)
        return (noisy - logits.softmax(1)).abs().sum(1)

    def _fall(self, x: Tensor) -> Tensor:
        """How far a step of FGSM brings the margin down."""
        with torch.inference_mode(False), torch.enable_grad():
            clean = x.detach().clone().requires_grad_()
            top = self.net(clean).topk(2, dim=1)
            gap = top.values[:, 0] - top.values[:, 1]
            (slope,) = torch.autograd.grad(gap.sum(), clean)
            after = self.net(clean.detach() - self.size * slope.sign()).detach().gather(1, top.indices)
        fall: Tensor = gap.detach() - (after[:, 0] - after[:, 1])
        return fall

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return swapped(logits, (self._change(x, logits) > self.loudest) | (self._fall(x) < self.least))


class Abstaining(nn.Module):
    """Several networks that answer where all of them agree; elsewhere every logit is 0, which names the first class.

    Verma and Swami, NeurIPS 2019; Sen, Ravindran and Raghunathan, ICLR 2020.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.stack([net(x) for net in self.nets])
        classes = answers.argmax(2)
        agreed = (classes == classes[0]).all(0).unsqueeze(1)
        return torch.where(agreed, answers.mean(0), torch.zeros_like(answers[0]))
