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
        """Go back (or on) to a snapshot, one of this run: see :meth:`check`."""
        self.model.load_state_dict(groups["model"])
        device = next(self.model.parameters()).device
        _unflatten(self.optimizer, groups.get("optimizer", {}))
        self.memory.clear()
        self.memory.update({key: value.to(device).clone() for key, value in groups.get("memory", {}).items()})
        self.step = int(groups["step"]["step"])
        if self.averaged is not None:
            self.averaged = {key: value.to(device).clone() for key, value in groups["averaged"].items()}

    def check(self, groups: Groups) -> None:
        """Refuse what is no snapshot of this run, or was changed since; nothing is gone back to.

        Raises
        ------
        ModelError
            When the snapshot is that of another network.
        ValueError
            When a part of it is missing, or is none that a run of this network and recipe can have.
        """
        fresh = {name: value.detach() for name, value in self.model.state_dict().items()}
        if (fault := _difference(groups["model"], fresh)) is not None:
            raise ModelError(f"the checkpoint is that of another architecture: {fault}; give another --run")
        if self.averaged is not None and (fault := _difference(groups["averaged"], fresh)) is not None:
            raise ValueError(f"of the average, {fault}")
        step = groups["step"]["step"]
        if step.dtype != torch.int64 or step.dim():
            raise ValueError("the step is no whole number")
        _check_optimizer(self.optimizer, groups.get("optimizer", {}))

    def check_memory(self, groups: Groups, first: dict[str, Tensor]) -> None:
        """Refuse a snapshot whose memory the method in force cannot go on from.

        Parameters
        ----------
        groups : Groups
        first : dict of Tensor
            What the method remembers after its first step. Besides, there may be what another method has left.

        Raises
        ------
        ValueError
            When something is missing, has another shape or type, or is not finite.
        """
        kept = {name: value for name, value in groups.get("memory", {}).items() if name in first}
        if (fault := _difference(kept, first)) is not None:
            raise ValueError(f"of the method's memory, {fault}")
        if strange := [name for name, value in kept.items() if not bool(value.isfinite().all())]:
            raise ValueError(f"of the method's memory, {strange[0]} is not finite")

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


def _difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str | None:
    """The first difference in names, shapes or types; None where there is none."""
    for name in sorted({*found, *wanted}):
        if name not in found or name not in wanted:
            return f"{name} is {'missing' if name in wanted else 'unknown'}"
        ours, theirs = wanted[name], found[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return _unlike(name, theirs, ours)
    return None


def _unlike(name: str, found: Tensor, wanted: Tensor) -> str:
    return f"{name} is {tuple(found.shape)} {found.dtype}, not {tuple(wanted.shape)} {wanted.dtype}"


def _check_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Refuse what no optimiser of this kind remembers of its parameters."""
    numbered = enumerate(parameter for group in optimizer.param_groups for parameter in group["params"])
    parameters = {str(number): parameter for number, parameter in numbered}
    adam = {"step", "exp_avg", "exp_avg_sq"}
    kinds = adam if isinstance(optimizer, torch.optim.AdamW) else {"momentum_buffer"}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if number not in parameters or name not in kinds:
            raise ValueError(f"the optimiser's {key} is unknown")
        wanted = torch.tensor(0.0) if name == "step" else parameters[number]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise ValueError(f"the optimiser's {_unlike(key, value, wanted)}")
        if missing := [other for other in kinds if f"{number}.{other}" not in tensors]:
            raise ValueError(f"the optimiser's {number}.{missing[0]} is missing")


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
