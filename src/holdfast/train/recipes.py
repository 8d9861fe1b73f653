"""What is learned how long and how fast, where the user does not say."""

import math
from dataclasses import replace

import torch

from holdfast.threats import Ball, Scalable, Threat
from holdfast.train.methods import CERTIFIED
from holdfast.train.recipe import Recipe

__all__ = ["default_recipe", "is_large"]

_SMALL = Recipe(epochs=14, batch_size=100, lr=5e-3, clip=1.0, average=0.995)
_RESIDUAL = Recipe(
    epochs=30,
    batch_size=128,
    optimizer="sgd",
    lr=0.2,
    peak=0.5,
    weight_decay=5e-4,
    clip=1.0,
    augmentation="crop-flip",
)

# The part of the training over which a large budget grows, and by how much small networks exceed it in the end.
_WARMUP, _REACH = 0.3, 7 / 6
# Bounds of an untrained network say nothing: those who train with them have every budget grow, and for longer.
_CERTIFIED_WARMUP = 0.5
# A budget is large for the data where it reaches across this share of the box.
_LARGE = 0.1
# What small data sets need to be learned at all.
_FEWEST_UPDATES = 1000


def default_recipe(network: str, method: str, examples: int, *, large: bool) -> Recipe:
    """The recipe of a network and a method.

    Parameters
    ----------
    network, method : str
        Their names; a network of the user's own learns as the small ones do.
    examples : int
        How many there are to learn from: with few of them one goes through them more often.
    large : bool
        Whether the budget is large for the data, so that it is better grown into.
    """
    certified = method.rpartition(":")[2] in CERTIFIED
    recipe = _RESIDUAL if "resnet" in network else _SMALL
    enough = math.ceil(_FEWEST_UPDATES * recipe.batch_size / examples)
    warmup = _CERTIFIED_WARMUP if certified else _WARMUP if large else 0.0
    reach = _REACH if recipe is _SMALL and large and not certified else 1.0
    return replace(recipe, epochs=max(recipe.epochs, enough), warmup=warmup, reach=reach)


def is_large(threat: Threat) -> bool:
    """Whether a budget had better be grown into: where it can be, unless it is small beside the inputs' range."""
    if not isinstance(threat, Scalable):
        return False
    box = getattr(threat, "box", None)
    if not isinstance(threat, Ball) or threat.norm != "linf" or box is None or not box.bounded:
        return True
    span = (torch.as_tensor(box.upper) - torch.as_tensor(box.lower)).max()
    return bool(torch.as_tensor(threat.eps).max() >= _LARGE * span)
