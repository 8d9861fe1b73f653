"""Which of a checkpoint's state dicts is meant, and whether its names are those of a module."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from holdfast.errors import ModelError
from holdfast.words import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["State", "at_key", "entries", "find_states", "fitting", "renamed", "the_only"]

State = dict[str, Tensor]

_ORDINARY = {"state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params"}
_DEPTH = 2  # keys above a state dict; deeper lie an optimizer's notes on single weights
_LISTS = 100  # lists of one around it
_COMPILED, _PARALLEL = "_orig_mod", "module."
_AVERAGED = "n_averaged"  # kept by torch's AveragedModel beside the weights
_COUNTER = "num_batches_tracked"  # of batch norm; early files are without


def find_states(content: object) -> dict[str, State]:
    """Every state dict in what a file holds.

    Returns
    -------
    dict of str to State
        By the keys above it, joined with ``/``; under ``""`` where it is the whole content.
    """
    return dict(_walk(content, (), set()))


def _walk(content: object, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, State]]:
    content = _unlisted(content)
    if not isinstance(content, dict) or id(content) in seen:  # few bytes can say one thing any number of times
        return
    seen.add(id(content))
    items = entries(content)
    if items and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items.items()):
        yield "/".join(keys), items
    elif len(keys) < _DEPTH:
        for key, value in items.items():
            if isinstance(key, str):
                yield from _walk(value, (*keys, key), seen)


def entries(content: dict[Any, Any]) -> dict[Any, Any]:
    """What a dict from a file holds, as a plain one: a file can give an ordered dict an attribute named ``items``."""
    return dict(dict.items(content))


def _unlisted(content: object) -> object:
    for _ in range(_LISTS):
        if not isinstance(content, list | tuple) or len(content) != 1:
            break
        content = content[0]
    return content


def at_key(content: object, key: str, where: str) -> object:
    """What lies under a key, or under several joined with ``/``.

    Raises
    ------
    ModelError
        When nothing does.
    """
    content = _unlisted(content)
    parts = [key] if isinstance(content, Mapping) and key in content else key.split("/")
    for part in parts:
        if not isinstance(content, Mapping) or part not in content:
            held = one_line(", ".join(list(find_states(content))[:8])) if isinstance(content, Mapping) else ""
            raise ModelError(f"{where}: nothing lies under the key {key}; state dicts lie under {held or 'none'}")
        content = _unlisted(content[part])
    return content


def the_only(states: Mapping[str, State], where: str) -> State:
    """The state dict that is meant when no module tells, with the prefixes of wrappers taken off its names.

    Raises
    ------
    ModelError
        When several may be meant.
    """
    ordinary = [key for key in states if set(key.split("/")) <= _ORDINARY]
    chosen = ordinary[0] if len(ordinary) == 1 else next(iter(states))
    rivals = {
        key: state
        for key, state in states.items()
        if len(ordinary) != 1 or _names(state).keys() == _names(states[chosen]).keys()
    }
    _refuse_rivals(rivals, where)
    return _bare(states[chosen])


def fitting(states: Mapping[str, State], module: Mapping[str, Tensor], where: str) -> State:
    """The state dict that has a module's names and shapes, prefixes aside, with those of wrappers taken off.

    Parameters
    ----------
    states
        Those of the file.
    module
        The module's own state dict.
    where : str
        The file, for errors.

    Returns
    -------
    State
        Where none fits, the one that is meant, for the module's own ``load_state_dict`` to judge.

    Raises
    ------
    ModelError
        When several fit and differ, as trained weights and their average do, or it is unclear which is meant.
    """
    fits = {key: state for key, state in states.items() if _fits(state, module)}
    _refuse_rivals(fits, where)
    return _bare(next(iter(fits.values()))) if fits else the_only(states, where)


def renamed(state: State, module: Mapping[str, Tensor]) -> State | None:
    """The state under the module's names, if a prefix that all names of one side share is all that keeps them apart."""
    theirs, ours = _names(state), _names(module)
    for cut in _common_prefixes(theirs):
        names = {name.removeprefix(cut): key for name, key in theirs.items()}
        if _agree(names, ours):
            return {ours[name]: state[key] for name, key in names.items()}
    for cut in _common_prefixes(ours):
        names = {name.removeprefix(cut): key for name, key in ours.items()}
        if _agree(theirs, names):
            return {names[name]: state[key] for name, key in theirs.items()}
    return None


def _fits(state: State, module: Mapping[str, Tensor]) -> bool:
    same = renamed(state, module)
    return same is not None and all(is_lazy(module[key]) or same[key].shape == module[key].shape for key in same)


def _refuse_rivals(states: Mapping[str, State], where: str) -> None:
    if all(_same(one, other) for one, other in pairwise(states.values())):
        return
    keys = one_line(", ".join(key or "the whole" for key in list(states)[:8]))
    raise ModelError(
        f"{where}: holds {len(states)} state dicts that may be meant, {keys}; "
        "name one with --weights-key KEY (from Python: weights_key)"
    )


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def _agree(file: Mapping[str, str], module: Mapping[str, str]) -> bool:
    """Whether the names are the same, but for counters that files from before there were any do not have."""
    return file.keys() <= module.keys() and all(name.endswith(_COUNTER) for name in module.keys() - file.keys())


def _names(state: Iterable[str]) -> dict[str, str]:
    """A state dict's keys, by their names without what wrappers put before them."""
    keys = list(state)
    names = {".".join(part for part in key.split(".") if part != _COMPILED): key for key in keys}
    if len(names) < len(keys):  # two became one
        names = {key: key for key in keys}
    while (weights := [name for name in names if name != _AVERAGED]) and all(map(_is_parallel, weights)):
        names = {name.removeprefix(_PARALLEL): names[name] for name in weights}
    return names


def _is_parallel(name: str) -> bool:
    return name.startswith(_PARALLEL)


def _bare(state: State) -> State:
    return {name: state[key] for name, key in _names(state).items()}


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """The dotted prefixes that all names share, the empty one first."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return ["".join(f"{part}." for part in shared[:count]) for count in range(len(shared) + 1)]
