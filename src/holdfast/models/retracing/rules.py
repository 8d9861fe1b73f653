"""Which rule says what stands in for the derivative of an operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.models.retracing import choices, logic, lookups, slopes, steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch._ops import OpOverload

    from holdfast.models.retracing.call import Call
    from holdfast.models.retracing.ledger import Shadow

__all__ = ["RULES", "name_of"]

RULES: dict[str, Callable[[Call], Shadow | list[Shadow | None] | None]] = {
    **steps.RULES,
    **logic.RULES,
    **slopes.RULES,
    **choices.RULES,
    **lookups.RULES,
}

_OPERATORS = {"__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor"}
_OPERATORS.update({"__iand__": "bitwise_and", "__ior__": "bitwise_or", "__ixor__": "bitwise_xor"})


def name_of(func: OpOverload) -> str:
    """What an operation does, under one name whether it makes a new tensor or overwrites one."""
    name = str(func._schema.name).rpartition("::")[2]
    return _OPERATORS.get(name) or (name if name.startswith("__") else name.removesuffix("_"))
