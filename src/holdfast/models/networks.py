"""Small reference networks, for images in ``[0, 1]`` or rows of numbers.

Each is made for a shape of input, without the batch dimension, and a number of classes.
"""

import itertools
import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional

from holdfast.errors import ModelError

__all__ = ["NETWORKS", "digits_conv"]

Shape = tuple[int, ...]


def digits_conv() -> nn.Module:
    """Two 3x3 convolutions and two linear layers for 8x8 grey images in 10 classes (38,000 parameters)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def mlp(shape: Shape, classes: int) -> nn.Module:
    """Two hidden layers of 256 units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, classes),
    )


def conv_small(shape: Shape, classes: int) -> nn.Module:
    """Two 4x4 convolutions with stride 2 (16 and 32 channels) and two linear layers, 166,000 parameters on MNIST.

    The network of Wong and Kolter, ICML 2018, arXiv:1711.00851, on which most exact results are known.
    """
    channels, height, width = _image("conv-small", shape, 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def lenet5(shape: Shape, classes: int) -> nn.Module:
    """Two 3x3 convolutions (32 and 64 channels), each with max pooling, and two linear layers."""
    channels, height, width = _image("lenet5", shape, 4)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 200),
        nn.ReLU(),
        nn.Linear(200, classes),
    )


class _Block(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, and a way around both (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.around = (
            None if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        ready = functional.relu(self.norm1(x))
        around = x if self.around is None else self.around(ready)
        out: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(ready)))) + around
        return out


class _PreActResNet(nn.Module):
    """A 3x3 convolution, stages of blocks that halve the image but for the first, and the mean over all places."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...], depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            stride = 1 if not blocks else 2
            blocks += [_Block(inputs, outputs, stride), *(_Block(outputs, outputs, 1) for _ in range(depth - 1))]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        # Values of images lie in [0, 1]; around 0 and of about unit scale they are learned from sooner.
        out = self.norm(self.blocks(self.stem((x - 0.5) * 4)))
        logits: Tensor = self.head(functional.relu(out).mean((2, 3)))
        return logits


def preact_resnet18(shape: Shape, classes: int) -> nn.Module:
    """The pre-activation ResNet with 18 layers for small images, 11 million parameters.

    He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", ECCV 2016, arXiv:1603.05027.
    """
    return _PreActResNet(_image("preact-resnet18", shape, 8)[0], classes, (64, 64, 128, 256, 512), 2)


def wide_resnet_28_10(shape: Shape, classes: int) -> nn.Module:
    """The wide ResNet with 28 layers of 10 times the width, 36 million parameters.

    Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016, arXiv:1605.07146.
    """
    return _PreActResNet(_image("wide-resnet-28-10", shape, 4)[0], classes, (16, 160, 320, 640), 4)


NETWORKS: Mapping[str, Callable[[Shape, int], nn.Module]] = {
    "mlp": mlp,
    "conv-small": conv_small,
    "lenet5": lenet5,
    "preact-resnet18": preact_resnet18,
    "wide-resnet-28-10": wide_resnet_28_10,
}


def _image(name: str, shape: Shape, divisor: int) -> tuple[int, int, int]:
    if len(shape) != 3 or shape[1] % divisor or shape[2] % divisor:
        raise ModelError(
            f"{name} takes images of channels x height x width whose sides {divisor} divides, not inputs of shape "
            f"{tuple(shape)}: choose another network, or mlp"
        )
    return shape[0], shape[1], shape[2]
