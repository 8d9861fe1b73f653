"""Named cascades of attacks."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from holdfast.attacks import APGD, FGSM, PGD, Attack, Stage
from holdfast.audit.digest import digest_module
from holdfast.errors import SettingError
from holdfast.threats import Ball, Threat

__all__ = ["PROTOCOLS", "EvaluationProtocol", "find_protocol", "quick", "single"]


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
    """

    name: str
    stages: tuple[Stage, ...]
    caveat: str

    def to_dict(self) -> dict[str, Any]:
        """Name, caveat and every stage with the settings of its attack."""
        stages = [
            {"name": stage.name, "attack": type(stage.attack).__name__, "settings": _plain(stage.attack)}
            for stage in self.stages
        ]
        return {"name": self.name, "caveat": self.caveat, "stages": stages}


def _plain(setting: Any) -> Any:
    """A setting as numbers, texts and dicts; a model among them by its class and a digest of its content."""
    if isinstance(setting, nn.Module):
        return {"model": type(setting).__name__, "digest": digest_module(setting)}
    if is_dataclass(setting):
        return {field.name: _plain(getattr(setting, field.name)) for field in fields(setting)}
    return setting


def quick(threat: Threat) -> EvaluationProtocol:
    """A short cascade for a first look: 210 forwards and 201 backwards for an example that it cannot break.

    L-infinity and L2: FGSM; PGD with 20 steps from two starts; APGD on cross-entropy with 50 steps from two starts;
    APGD on targeted DLR with 20 steps towards each of the 3 nearest classes. L1 and L0, where APGD as published does
    not apply: FGSM; PGD with 40 steps on cross-entropy; PGD with 40 steps from two starts on the margin.
    """
    caveat = (
        "quick is a short cascade of gradient attacks: its robust accuracy is an upper bound for a first look, and "
        "longer attacks can lower it"
    )
    if isinstance(threat, Ball) and threat.norm in ("l1", "l0"):
        attacks: dict[str, Attack] = {
            "fgsm": FGSM(),
            "pgd": PGD(steps=40),
            "pgd-margin": PGD(steps=40, restarts=2, objective="margin"),
        }
    else:
        attacks = {
            "fgsm": FGSM(),
            "pgd": PGD(steps=20, restarts=2),
            "apgd-ce": APGD(steps=50, restarts=2),
            "apgd-t": APGD(steps=20, objective="dlr", targets=3),
        }
    return EvaluationProtocol("quick", tuple(Stage(name, attack) for name, attack in attacks.items()), caveat)


PROTOCOLS: dict[str, Callable[[Threat], EvaluationProtocol]] = {"quick": quick}


def find_protocol(name: str, threat: Threat) -> EvaluationProtocol:
    """The named protocol against a threat.

    Raises
    ------
    SettingError
        When there is none of that name.
    """
    if name not in PROTOCOLS:
        raise SettingError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name](threat)


_ATTACKS: dict[str, type[FGSM | PGD | APGD]] = {"fgsm": FGSM, "pgd": PGD, "apgd": APGD}


def single(name: str, settings: dict[str, str]) -> EvaluationProtocol:
    """A protocol of one attack, its settings as text.

    Raises
    ------
    SettingError
        When there is no such attack or setting, or a value does not fit.
    """
    if name not in _ATTACKS:
        raise SettingError(f"unknown attack {name!r}: choose one of {', '.join(_ATTACKS)}")
    known = [field.name for field in fields(_ATTACKS[name])]
    if unknown := next((key for key in settings if key not in known), None):
        raise SettingError(f"{name} has no setting {unknown!r}: its settings are {', '.join(known)}")
    try:
        attack = TypeAdapter(_ATTACKS[name]).validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingError(f"{name}: setting {first['loc'][0]!r}: {first['msg']}") from None
    caveat = f"the work of {name} alone: what it did not break may fall to another attack"
    return EvaluationProtocol(name, (Stage(attack.name, attack),), caveat)
