"""Training methods by name."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from holdfast.errors import SettingError
from holdfast.settings import build, names
from holdfast.threats import Threat
from holdfast.train.awp import AWP
from holdfast.train.classwise import ClassWise
from holdfast.train.crown_ibp import CROWNIBP
from holdfast.train.distillation import Distillation
from holdfast.train.fgsm import FGSMTraining
from holdfast.train.fgsm_rs import FGSMRS
from holdfast.train.free import Free
from holdfast.train.gaussian import Gaussian
from holdfast.train.gradalign import GradAlign
from holdfast.train.gradient_penalty import GradientPenalty
from holdfast.train.ibp import IBP
from holdfast.train.mart import MART
from holdfast.train.method import Method
from holdfast.train.mtl_ibp import MTLIBP
from holdfast.train.nfgsm import NFGSM
from holdfast.train.pgd import PGDTraining
from holdfast.train.sabr import SABR
from holdfast.train.smoothadv import SmoothAdv
from holdfast.train.standard import Standard
from holdfast.train.trades import TRADES
from holdfast.train.worst_of_k import WorstOfKTraining

__all__ = ["CERTIFIED", "METHODS", "WRAPPERS", "make_method"]

METHODS: Mapping[str, type] = {
    "standard": Standard,
    "fgsm": FGSMTraining,
    "fgsm-rs": FGSMRS,
    "n-fgsm": NFGSM,
    "free": Free,
    "gradalign": GradAlign,
    "pgd": PGDTraining,
    "trades": TRADES,
    "mart": MART,
    "gradient-penalty": GradientPenalty,
    "distillation": Distillation,
    "gaussian": Gaussian,
    "smoothadv": SmoothAdv,
    "ibp": IBP,
    "crown-ibp": CROWNIBP,
    "sabr": SABR,
    "mtl-ibp": MTLIBP,
    "worst-of-k": WorstOfKTraining,
}
# Written before the method that they go around: "awp:trades".
WRAPPERS: Mapping[str, type] = {"awp": AWP, "class-wise": ClassWise}
# Methods that train a bound, so that much can be proved afterwards.
CERTIFIED = frozenset({"ibp", "crown-ibp", "sabr", "mtl-ibp"})
# What a method needs and is no setting of its user's.
_GIVEN = ("threat", "teacher", "inner")


def make_method(
    name: str, threat: Threat, settings: Mapping[str, Any] | None = None, teacher: nn.Module | None = None
) -> Method:
    """The method that is called ``name``.

    Parameters
    ----------
    name : str
        Such as ``"pgd"``; or a wrapper and what it goes around, such as ``"awp:trades"``.
    threat : Threat
        What it trains against.
    settings : mapping, optional
        Of the method and of its wrappers, each going to the first that has one of that name.
    teacher : nn.Module, optional
        What distillation learns from.

    Raises
    ------
    SettingError
        When there is no such method or setting, or a value does not fit.
    """
    outer, _, inner = name.partition(":")
    settings = settings or {}
    if inner:
        if outer not in WRAPPERS:
            raise SettingError(f"{name}: {outer!r} goes around no other method; {' and '.join(WRAPPERS)} do")
        mine = {key: value for key, value in settings.items() if key in names(WRAPPERS[outer], *_GIVEN)}
        rest = {key: value for key, value in settings.items() if key not in mine}
        return _made(WRAPPERS[outer], outer, mine, inner=make_method(inner, threat, rest, teacher))
    if name in WRAPPERS:
        raise SettingError(f"{name} goes around another method: write {name}:pgd")
    if name not in METHODS:
        raise SettingError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return _made(METHODS[name], name, settings, threat=threat, teacher=teacher)


def _made(kind: type, name: str, settings: Mapping[str, Any], **given: Any) -> Method:
    needed = {field.name for field in fields(kind)} & given.keys()
    method: Method = build(kind, name, settings, **{key: given[key] for key in needed})
    return method
