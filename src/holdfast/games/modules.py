"""Modules as players: their parameters are the strategy."""

from typing import Any

import torch
from torch import nn

from holdfast.errors import ModelError
from holdfast.games.game import Strategy

__all__ = ["assign", "call", "strategy_of"]


def strategy_of(module: nn.Module) -> Strategy:
    """Copies of a module's parameters, frozen ones left out, in their order."""
    return tuple(parameter.detach().clone() for parameter in module.parameters() if parameter.requires_grad)


def call(module: nn.Module, strategy: Strategy, *inputs: Any) -> Any:
    """The module's output with the strategy as its parameters; a function of both, which changes no parameter.

    Raises
    ------
    ModelError
        When the strategy is another module's.
    """
    return torch.func.functional_call(module, dict(zip(_names(module, strategy), strategy, strict=True)), inputs)


def assign(module: nn.Module, strategy: Strategy) -> None:
    """Make the strategy the module's own parameters.

    Raises
    ------
    ModelError
        When the strategy is another module's.
    """
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in zip(_names(module, strategy), strategy, strict=True):
            parameters[name].copy_(value)


def _names(module: nn.Module, strategy: Strategy) -> list[str]:
    named = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
    if [value.shape for value in strategy] != list(named.values()):
        raise ModelError("the strategy does not fit the module: its tensors are not of the shapes of the parameters")
    return list(named)
