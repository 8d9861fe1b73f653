"""Small reference networks."""

from torch import nn

__all__ = ["digits_conv"]


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
