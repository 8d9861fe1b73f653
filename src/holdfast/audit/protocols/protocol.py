"""What a protocol is: attacks in an order, under a name."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_args

import torch
from torch import nn

from holdfast.arguments import choice
from holdfast.audit.digest import digest_module
from holdfast.engine import Attack, Knowledge, Stage
from holdfast.errors import SettingError
from holdfast.threats import Ball, Threat

__all__ = ["EvaluationProtocol", "cascade", "endless", "restrict"]


@dataclass(frozen=True)
class EvaluationProtocol:
    """A cascade of attacks under a name.

    Parameters
    ----------
    name : str
        What results call it.
    stages : tuple of Stage
        The attacks in order; each sees what those before it left unbroken.
    caveat : str
        What its number is and is not, printed beside it.
    samples : int
        Passes averaged a look, for a model with noise of its own; see :func:`holdfast.attacks.drive`.
    """

    name: str
    stages: tuple[Stage, ...]
    caveat: str
    samples: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Name, caveat and every stage with the settings of its attacks."""
        stages = [_described(stage) for stage in self.stages]
        return {"name": self.name, "caveat": self.caveat, "samples": self.samples, "stages": stages}


def _described(stage: Stage) -> dict[str, Any]:
    described = {"name": stage.name, "attack": type(stage.attack).__name__, "settings": _plain(stage.attack)}
    if stage.polish is not None:
        described["polish"] = {"attack": type(stage.polish).__name__, "settings": _plain(stage.polish)}
    return described | ({"margins": list(stage.margins)} if stage.margins else {})


def _plain(setting: Any) -> Any:
    """A setting as numbers, texts and dicts; a model among them by its class and a digest of its content."""
    if isinstance(setting, nn.Module):
        return {"model": type(setting).__name__, "digest": digest_module(setting)}
    if is_dataclass(setting):
        return {field.name: _plain(getattr(setting, field.name)) for field in fields(setting)}
    return setting


def restrict(protocol: EvaluationProtocol, knowledge: Knowledge) -> EvaluationProtocol:
    """The stages of a protocol that need to know no more than ``knowledge``.

    Raises
    ------
    SettingError
        When the knowledge is none of the three, or no stage is left.
    """
    order = get_args(Knowledge)
    choice("knowledge", knowledge, order)

    def allowed(attack: Attack | None) -> bool:
        return attack is None or order.index(attack.knowledge) >= order.index(knowledge)

    stages = tuple(stage for stage in protocol.stages if allowed(stage.attack) and allowed(stage.polish))
    if protocol.stages and not stages:
        raise SettingError(
            f"no attack of protocol {protocol.name} does with {knowledge}s alone: choose blackbox, or a protocol of "
            "your own"
        )
    return replace(protocol, stages=stages)


def endless(threat: Threat) -> bool:
    """Whether the nearest adversarial input is wanted, of any example."""
    return isinstance(threat, Ball) and bool(torch.as_tensor(threat.eps).isinf().any())


def cascade(name: str, attacks: Mapping[str, Attack], caveat: str, samples: int = 1) -> EvaluationProtocol:
    """Attacks one after the other, each a stage of its own name."""
    return EvaluationProtocol(name, tuple(Stage(key, attack) for key, attack in attacks.items()), caveat, samples)
