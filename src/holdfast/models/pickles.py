"""How much a pickle of weights would make, told from its instructions before any of them is carried out.

``torch.load(weights_only=True)`` keeps a file from running code, and lets it ask for any amount of memory and time: a
container that holds another one twice, forty levels deep, takes a few hundred bytes and is walked through for ever.
"""

from __future__ import annotations

import pickletools
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

__all__ = ["ZIP", "check_pickles"]

ZIP = b"PK\x03\x04"  # how torch.load tells its two formats apart
_RECORD = "data.pkl"  # the pickle of a zip file; torch finds it by its name in letters of either case
_STREAM = 5  # pickles that a file of the old format begins with
_MOST = 10**7  # values, each counted as often as it is met on a way through all containers
_DEEPEST = 1000  # containers in one another
_MARK = "MARK"
# How many values an instruction takes off the stack to make one of them; those up to a mark where it says so.
_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1}
_GROWS = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TO_A_MARK = {"APPENDS", "SETITEMS", "ADDITEMS"}
_GETS, _PUTS = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}
_ELSEWHERE = "_rebuild_device_tensor_from"  # functions that copy a tensor, in full, to where it is wanted


@dataclass(eq=False)
class _Value:
    """What an instruction would make: the values in it, or a word or number."""

    parts: list[_Value] = field(default_factory=list)
    plain: object = None


class _AmissError(Exception):
    """An instruction that the stack does not allow, which the reader itself will say best."""


def check_pickles(path: Path) -> None:
    """Refuse a file that ``torch.save`` may have written if reading it would take memory or time without end.

    Raises
    ------
    ModelError
        When its containers hold themselves, or would be more than :data:`_MOST` values written out or nested more than
        :data:`_DEEPEST` deep; when memory is asked for by a number alone.
    """
    with path.open("rb") as file:
        for stream in _streams(file):
            try:
                fault = _fault(stream)
            except (_AmissError, ValueError, KeyError, IndexError, MemoryError):  # no pickle, or one cut short
                return
            if fault is not None:
                raise ModelError(f"{path}: {fault}; save only `model.state_dict()`")


def _streams(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Where the pickles of a file lie, one after the other."""
    zipped = file.read(len(ZIP)) == ZIP
    file.seek(0)
    if not zipped:
        for _ in range(_STREAM):
            yield file
        return
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.filename.lower().endswith(_RECORD):
                with archive.open(member) as stream:
                    yield stream


def _fault(stream: IO[bytes]) -> str | None:
    """What would have no end; None where nothing would."""
    stack: list[Any] = []
    memo: dict[Any, _Value] = {}
    containers: list[_Value] = []
    for code, argument, _ in pickletools.genops(stream):
        name = code.name
        if name == _MARK:
            stack.append(_MARK)
        elif name in _GETS:
            stack.append(memo[argument])
        elif name in _PUTS:
            memo[argument] = _top(stack)
        elif name == "MEMOIZE":
            memo[len(memo)] = _top(stack)
        elif name in _GROWS or name in _TO_A_MARK:
            parts = _taken(stack, _GROWS.get(name))
            _top(stack).parts += parts
        elif name in _TAKES or pickletools.markobject in code.stack_before:
            parts = _taken(stack, _TAKES.get(name))
            if name in {"REDUCE", "NEWOBJ"} and (fault := _fault_of_call(*parts)):
                return fault
            containers.append(_Value(parts))
            stack.append(containers[-1])
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(_top(stack))
        elif name == "STOP":
            return _fault_of_containers(containers)
        elif len(code.stack_after) == 1 and not code.stack_before:
            stack.append(_Value(plain=argument))
            if name.startswith("EMPTY"):
                containers.append(stack[-1])
        elif code.stack_before or code.stack_after:
            raise _AmissError
    return None


def _top(stack: list[Any]) -> _Value:
    if not isinstance(stack[-1], _Value):
        raise _AmissError
    return stack[-1]


def _taken(stack: list[Any], count: int | None) -> list[_Value]:
    """Take values off a stack, those above the last mark where no count is given."""
    if count is None:
        count = next((place for place, value in enumerate(reversed(stack)) if value is _MARK), len(stack))
        parts = stack[len(stack) - count :]
        del stack[len(stack) - count - 1 :]
    else:
        parts = stack[-count:]
        del stack[-count:]
        if len(parts) < count:
            raise _AmissError
    if _MARK in parts:
        raise _AmissError
    return parts


def _fault_of_call(function: _Value, arguments: _Value) -> str | None:
    name = str(function.plain).split(" ")[-1]
    if name.startswith(_ELSEWHERE):
        return "holds tensors of another device than the CPU"
    sized = arguments.parts if name.endswith("Tensor") else [part for part in arguments.parts if _is_number(part)]
    if sized and name.endswith(("Tensor", "bytearray")):
        return f"asks {name[:40]} for memory by its size, which no weights do"
    return None


def _is_number(value: _Value) -> bool:
    return isinstance(value.plain, int)


def _fault_of_containers(containers: list[_Value]) -> str | None:
    """Whether containers hold themselves, or are many or deep, written out."""
    known: dict[_Value, tuple[int, int]] = {}  # of each, how many values it comes to and how deep it is
    open_: set[_Value] = set()
    for container in containers:
        waiting = [container]
        while waiting:
            value = waiting[-1]
            if value in known:
                waiting.pop()
            elif value in open_:
                inner = [known[part] for part in value.parts if part.parts]
                known[value] = (
                    1 + len(value.parts) + sum(count for count, _ in inner),
                    1 + max((depth for _, depth in inner), default=0),
                )
                if known[value][0] > _MOST or known[value][1] > _DEEPEST:
                    return f"holds more than {_MOST} values, written out, or containers nested {_DEEPEST} deep"
            else:
                open_.add(value)
                inner_open = [part for part in value.parts if part.parts and part not in known]
                if any(part in open_ for part in inner_open):
                    return "holds a container that holds itself"
                waiting += inner_open
    return None
