"""Protocols by name, from a file, or from a list of attacks."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from holdfast.arguments import choice, shown
from holdfast.attacks import (
    APGD,
    APGDL1,
    BIM,
    CW,
    DDN,
    EAD,
    FAB,
    FGSM,
    FMN,
    MIFGSM,
    NES,
    PGD,
    SPSA,
    AnnealedPGD,
    ContractingPGD,
    DeepFool,
    Evolution,
    Grid,
    HopSkipJump,
    PatchPGD,
    PatchRS,
    Ray,
    RefinedGrid,
    ShrinkingBall,
    SigmaZero,
    SparseRS,
    Square,
    WorstOfK,
)
from holdfast.audit.protocols import PROTOCOLS, EvaluationProtocol
from holdfast.engine import Attack, Stage
from holdfast.errors import SettingError
from holdfast.files import read_text
from holdfast.settings import build
from holdfast.threats import Threat

__all__ = ["ATTACKS", "find_protocol", "single"]

# Those whose settings are numbers and names; a transfer attack needs a model, and is for Python alone.
ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "bim": BIM,
    "mifgsm": MIFGSM,
    "pgd": PGD,
    "annealed-pgd": AnnealedPGD,
    "contracting-pgd": ContractingPGD,
    "apgd": APGD,
    "apgd-l1": APGDL1,
    "fab": FAB,
    "deepfool": DeepFool,
    "ddn": DDN,
    "fmn": FMN,
    "cw": CW,
    "ead": EAD,
    "sigma-zero": SigmaZero,
    "ray": Ray,
    "shrinking-ball": ShrinkingBall,
    "square": Square,
    "nes": NES,
    "spsa": SPSA,
    "sparse-rs": SparseRS,
    "evolution": Evolution,
    "patch-pgd": PatchPGD,
    "patch-rs": PatchRS,
    "hopskipjump": HopSkipJump,
    "worst-of-k": WorstOfK,
    "grid": Grid,
    "refined-grid": RefinedGrid,
}


def find_protocol(
    protocol: str | Path | EvaluationProtocol | Sequence[Attack | Stage], threat: Threat
) -> EvaluationProtocol:
    """The protocol that is meant: by name, in a TOML file, or as a list of attacks.

    Raises
    ------
    SettingError
        When there is none of that name, the file cannot be read or is no protocol, or the list is empty.
    """
    if isinstance(protocol, EvaluationProtocol):
        return protocol
    if isinstance(protocol, str) and protocol in PROTOCOLS:
        return PROTOCOLS[protocol](threat)
    if isinstance(protocol, Path) or (isinstance(protocol, str) and protocol.endswith(".toml")):
        return _from_file(Path(protocol))
    if isinstance(protocol, str) or (isinstance(protocol, list | tuple) and not protocol):
        names = ", ".join(PROTOCOLS)
        raise SettingError(f"unknown protocol {protocol!r}: choose one of {names}, a .toml file or a list of attacks")
    if not isinstance(protocol, list | tuple) or not all(hasattr(entry, "name") for entry in protocol):
        raise SettingError("protocol: give a name, a .toml file or a list of attacks, such as [PGD()]")
    stages = [entry if isinstance(entry, Stage) else Stage(entry.name, entry) for entry in protocol]
    return _custom("custom", stages)


def single(name: str, settings: Mapping[str, Any]) -> EvaluationProtocol:
    """A protocol of one attack, its settings as numbers or text.

    Raises
    ------
    SettingError
        When there is no such attack or setting, or a value does not fit.
    """
    if not isinstance(settings, Mapping):
        raise SettingError(f"settings: give a dict from names to values, not {shown(settings)}")
    attack = _attack(name, settings)
    caveat = f"the work of {name} alone: what it did not break may fall to another attack"
    return EvaluationProtocol(name, (Stage(attack.name, attack),), caveat)


def _attack(name: str, settings: Mapping[str, Any]) -> Attack:
    attack: Attack = build(ATTACKS[choice("attack", name, ATTACKS)], name, settings)
    return attack


class _AttackEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    attack: str
    settings: dict[str, Any] = {}

    def build(self) -> Attack:
        return _attack(self.attack, self.settings)


class _StageEntry(_AttackEntry):
    name: str | None = None
    polish: _AttackEntry | None = None
    margins: tuple[Annotated[float, Field(gt=0)], ...] = ()

    def stage(self) -> Stage:
        attack = self.build()
        polish = None if self.polish is None else self.polish.build()
        return Stage(self.name or attack.name, attack, polish, self.margins)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    stages: list[_StageEntry] = Field(min_length=1)
    name: str | None = None
    caveat: str | None = None
    samples: int = Field(1, ge=1)


def _from_file(path: Path) -> EvaluationProtocol:
    try:
        content = _File.model_validate(tomllib.loads(read_text(path, SettingError)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SettingError(f"{path}: {place}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:  # tomllib's own, and numbers and lists without end
        raise SettingError(f"{path}: not a TOML file: {error}") from None
    stages = [entry.stage() for entry in content.stages]
    return _custom(content.name or path.stem, stages, content.caveat, content.samples)


def _custom(name: str, stages: list[Stage], caveat: str | None = None, samples: int = 1) -> EvaluationProtocol:
    """A user's own protocol; stages of one name are numbered, since results tell them apart by it."""
    names = [stage.name for stage in stages]
    named = tuple(
        replace(stage, name=f"{stage.name}-{names[: place + 1].count(stage.name)}")
        if names.count(stage.name) > 1
        else stage
        for place, stage in enumerate(stages)
    )
    return EvaluationProtocol(name, named, caveat or f"{name} is a protocol of your own", samples)
