"""Protocols by name, each with the attacks that suit the threat's kind of set."""

from collections.abc import Callable, Mapping
from functools import partial

from holdfast.audit.protocols import balls, others, patches, spatial, tables
from holdfast.audit.protocols.protocol import EvaluationProtocol, endless, restrict
from holdfast.errors import SettingError
from holdfast.threats import Ball, Patch, Spatial, Table, Then, Threat

__all__ = ["PROTOCOLS", "EvaluationProtocol", "endless", "protocol_for", "restrict"]

Protocols = Mapping[str, Callable[[Threat], EvaluationProtocol]]

# By kind of set; one that is none of these is drawn from.
_KINDS: Mapping[type, Protocols] = {
    Ball: balls.PROTOCOLS,
    Patch: patches.PROTOCOLS,
    Table: tables.PROTOCOLS,
    Spatial: spatial.PROTOCOLS,
    Then: spatial.AND_BALL,
}


def protocol_for(name: str, threat: Threat) -> EvaluationProtocol:
    """The protocol of that name against a threat.

    Raises
    ------
    SettingError
        When there is none for its kind of set.
    """
    known = next((protocols for kind, protocols in _KINDS.items() if isinstance(threat, kind)), others.PROTOCOLS)
    if name not in known:
        raise SettingError(f"protocol {name} is not for {threat.name}: choose one of {', '.join(known)}")
    return known[name](threat)


PROTOCOLS: Protocols = {name: partial(protocol_for, name) for name in balls.PROTOCOLS}
