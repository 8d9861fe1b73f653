"""Defences inside the network: other activations, fewer bits, and wrong gradients between its layers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from holdfast.errors import SettingError
from holdfast.testing.zoo.backward import Change
from holdfast.testing.zoo.features import Features
from holdfast.testing.zoo.outputs import largest

__all__ = ["Activated", "BinaryFeatures", "LayerHooked", "LowPrecisionVote", "Steps", "Winners"]


# Modules, functions and methods come down to these.
_ACTIVATIONS = {
    *(torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, functional.relu, functional.relu6, functional.leaky_relu),
    *(functional.elu, functional.selu, functional.gelu, functional.silu, functional.softplus, functional.mish),
}


class _Followed(TorchFunctionMode):
    """Inside, something else follows every activation."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.after = after

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        return self.after(result) if func in _ACTIVATIONS else result


class Activated(nn.Module):
    """A network each of whose activations is followed by a further module."""

    def __init__(self, net: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.net, self.after = net, after

    @torch.no_grad()
    def refuse_none(self, x: Tensor) -> None:
        """Refuse a network that has no activation that is known.

        Raises
        ------
        SettingError
            When it has none.
        """
        seen: list[Tensor] = []

        def note(result: Tensor) -> Tensor:
            seen.append(result)
            return result

        with _Followed(note):
            self.net(x)
        if not seen:
            raise SettingError("zoo: the network has no ReLU or the like to change: leave this specimen out")

    def forward(self, x: Tensor) -> Tensor:
        with _Followed(self.after):
            logits: Tensor = self.net(x)
        return logits


class Winners(nn.Module):
    """k winners take all: the largest units of every row, and 0 for the others (Xiao, Zhong and Zheng, ICLR 2020)."""

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


class Steps(nn.Module):
    """Stairs: units of a few levels, relative to the largest of the row."""

    def __init__(self, levels: int = 8) -> None:
        super().__init__()
        self.steps = levels - 1

    def forward(self, x: Tensor) -> Tensor:
        top = x.detach().flatten(1).amax(1).clamp_min(1e-6).view(-1, *[1] * (x.dim() - 1))
        return (x / top * self.steps).round() / self.steps * top


class BinaryFeatures(nn.Module):
    """Features of which only the sign of their distance to a threshold counts (Galloway, Taylor and Moussa, ICLR 2018).

    A linear layer, the least-squares fit of the network's own answers, reads several thresholds of each.
    """

    thresholds: Tensor
    weight: Tensor
    offset: Tensor

    def __init__(self, net: nn.Module, examples: Tensor, thresholds: int = 3) -> None:
        super().__init__()
        self.features = Features(net)
        features, classes = self.features.of(examples)
        at = torch.linspace(0, 1, thresholds + 2, device=features.device, dtype=features.dtype)[1:-1]
        self.register_buffer("thresholds", features.quantile(at, dim=0))
        bits = self._bits(features)
        with torch.no_grad():
            count = net(examples[:1]).shape[1]
        wanted = functional.one_hot(classes, count).double()
        mean, middle = bits.double().mean(0), wanted.mean(0)
        centred = bits.double() - mean
        power = centred.T @ centred + len(centred) * 0.05 * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        weight = torch.linalg.solve(power, centred.T @ (wanted - middle))
        self.register_buffer("weight", 10 * weight.to(features.dtype))
        self.register_buffer("offset", 10 * (middle - mean @ weight).to(features.dtype))

    def _bits(self, features: Tensor) -> Tensor:
        return (features.unsqueeze(1) > self.thresholds).to(features.dtype).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        logits: Tensor = self._bits(features) @ self.weight + self.offset + 0 * features.sum(1, keepdim=True)
        return logits


class LowPrecisionVote(nn.Module):
    """Votes of the network at several precisions of its activations (Sen, Ravindran and Raghunathan, ICLR 2020: EMPIR).

    The most confident one of those that agree with the majority is what the logits come from; a vote has no gradient.
    """

    def __init__(self, net: nn.Module, levels: tuple[int, ...] = (4, 8)) -> None:
        super().__init__()
        self.nets = nn.ModuleList([net, *(Activated(net, Steps(count)) for count in levels)])

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.stack([net(x) for net in self.nets])
        votes = torch.stack([largest(answer) for answer in answers]).sum(0)
        # Ties go to the most confident.
        return 10 * votes + answers.detach().softmax(2).amax(0) + 0 * answers.sum(0)


class LayerHooked(nn.Module):
    """A network with a backward hook in its middle that changes the gradient there."""

    def __init__(self, net: nn.Module, change: Change) -> None:
        super().__init__()
        self.net = net
        layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)]
        if not layers:
            raise SettingError("zoo: the network has no linear layer to put a hook on: leave this specimen out")
        layers[len(layers) // 2].register_full_backward_hook(_Hook(change))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class _Hook:
    def __init__(self, change: Change) -> None:
        self.change = change

    def __call__(
        self, layer: nn.Module, inputs: tuple[Tensor | None, ...], outputs: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...]:
        return tuple(None if grad is None else self.change(grad, grad) for grad in inputs)
