"""All that a training run changes."""

import copy
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from holdfast.errors import ModelError
from holdfast.train.recipe import Recipe

__all__ = ["Groups", "State", "make_optimizer"]

Groups = dict[str, dict[str, Tensor]]


@dataclass
class State:
    """A run between two steps.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer
        Of the model's parameters, in their order.
    averaged : dict of Tensor or None
        The moving average of the model's state, where the recipe has one.
    memory : dict of Tensor
        What the method carries from step to step.
    step : int
        Updates made.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: dict[str, Tensor] | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0

    @classmethod
    def fresh(cls, model: nn.Module, recipe: Recipe) -> Self:
        averaged = None if recipe.average is None else _copies(model.state_dict())
        return cls(model, make_optimizer(model, recipe), averaged)

    def snapshot(self) -> Groups:
        """Copies of all tensors, by groups, from which :meth:`restore` makes this very state."""
        groups = {
            "model": _copies(self.model.state_dict()),
            "optimizer": _copies(_flat(self.optimizer)),
            "memory": _copies(self.memory),
            "step": {"step": torch.tensor(self.step)},
        }
        if self.averaged is not None:
            groups["averaged"] = _copies(self.averaged)
        return groups

    def restore(self, groups: Groups) -> None:
        """Go back (or on) to a snapshot.

        Raises
        ------
        ModelError
            When the snapshot is that of another network.
        """
        try:
            self.model.load_state_dict(groups["model"])
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise ModelError(f"the checkpoint is that of another architecture: {first}; give another --run") from error
        device = next(self.model.parameters()).device
        _unflatten(self.optimizer, groups.get("optimizer", {}))
        self.memory.clear()
        self.memory.update({key: value.to(device).clone() for key, value in groups.get("memory", {}).items()})
        self.step = int(groups["step"]["step"])
        if self.averaged is not None:
            self.averaged = {key: value.to(device).clone() for key, value in groups["averaged"].items()}

    def average(self, decay: float) -> None:
        """Move the average towards the model: its buffers too, and quickly in the first steps."""
        assert self.averaged is not None
        weight = min(decay, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - weight)
            else:
                self.averaged[name].copy_(value)

    def judged(self) -> nn.Module:
        """The network that is judged and saved: the average where there is one."""
        if self.averaged is None:
            return self.model
        twin = copy.deepcopy(self.model)
        twin.load_state_dict(self.averaged)
        return twin


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of the recipe; frozen parameters are left out."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError("the model has no parameters to train")
    if recipe.optimizer == "adam":
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    decay = recipe.weight_decay
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=decay)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors as ``PARAMETER.NAME``."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, members in state.items()
        for name, value in members.items()
        if isinstance(value, Tensor)
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
