"""A forward pass that is followed below autograd."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from holdfast.models.retracing.bridge import Bridge
from holdfast.models.retracing.call import Call
from holdfast.models.retracing.ledger import Ledger, Shadow, anchored
from holdfast.models.retracing.rules import RULES, name_of
from holdfast.models.retracing.sites import Key, Plan, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch._ops import OpOverload

__all__ = ["Experiment", "Recorder", "follow"]

# What makes a tensor of the shape of another, and what overwrites one without reading it.
_MAKERS = frozenset(
    (
        *("empty_like", "full_like", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros"),
        *("ones_like", "rand_like", "randint_like", "randn_like", "zeros_like"),
    )
)
_COPIES = frozenset(("clone", "repeat"))
_DRAWS = frozenset(("cauchy", "exponential", "geometric", "log_normal", "random", "uniform"))

Flip = "Callable[[], tuple[Tensor, Tensor]]"


@dataclass(frozen=True)
class Experiment:
    """Let one step of a model fall the other way, at some of its places.

    Parameters
    ----------
    key : Key
        Which.
    choose : callable
        Which places, a mask, given how far each of them is from falling the other way.
    """

    key: Key
    choose: Callable[[Tensor], Tensor]


class Recorder(TorchDispatchMode):
    """Inside, each operation is repeated on what autograd knows of its operands.

    The model's own run is not touched and sees no autograd: custom backward passes, detached tensors, hooks and
    branches on the grad mode are not there, and what it does in place, by chance or by its values is what it does.

    Parameters
    ----------
    model : nn.Module
        What is run inside.
    plan : dict
        Where which derivatives are replaced. A site that is not in it is judged by the numbers at hand.
    dtype : torch.dtype
        The least precise type in which derivatives are worked out.
    strict : bool
        Whether derivatives are all the true ones.
    relaxed : bool
        Whether the smooth operations that stand in for others give their values too, and not their derivatives alone.
    experiment : Experiment, optional
        A step that is to fall the other way.

    Attributes
    ----------
    found : dict
        The sites that were met.
    lost : list of str
        What was done that no derivative leads through.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        dtype: torch.dtype,
        strict: bool = False,
        relaxed: bool = False,
        experiment: Experiment | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = Ledger(dtype, relaxed)
        self.found: Plan = {}
        self.lost: list[str] = []
        self.path: list[str] = [""]
        self._plan, self._strict, self._experiment = plan, strict, experiment
        self._met: dict[tuple[str, tuple[int, ...]], int] = {}
        self._bridge = Bridge(model, self.ledger, self._settled, self._autograd)
        self._outside = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()

    def __enter__(self) -> Self:
        self._bridge.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._bridge.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        with self._autograd():
            self._bridge.arrive(tensors)
            written = _written(func, args, kwargs)
            known = any(map(self.ledger.holds, written)) or any(
                self.ledger.find(value) is not None for value in tensors
            )
        # Tensors that are turned in place still lie where they did.
        if not known or name_of(func) in _MAKERS or torch.Tag.inplace_view in func.tags:
            result = func(*args, **kwargs)
            self._bridge.made(result)
            return result
        for tensor in written:
            self.ledger.open(tensor)
        result = func(*args, **kwargs)
        call = Call(func, args, kwargs, result, self.ledger, self._settled)
        targets = written or [value for value in _results(result) if isinstance(value, Tensor)]
        with self._autograd():
            shadows = self._shadows(call, targets, bool(written))
            for tensor, shadow in zip(targets, shadows, strict=True):
                if written:
                    constant = tensor.detach().to(self.ledger.carrier(tensor.dtype), copy=True)
                    self.ledger.write(tensor, shadow or Shadow(constant))
                elif shadow is not None:
                    self.ledger.keep(tensor, shadow)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the compiler is loaded, to be told to keep away

    @contextmanager
    def _autograd(self) -> Iterator[None]:
        """With autograd on, as it was before the model and its casts were entered."""
        with torch._C._ForceDispatchKeyGuard(*self._outside), torch._C.DisableTorchFunction(), torch.enable_grad():
            yield

    def _shadows(self, call: Call, targets: Sequence[Tensor], writes: bool) -> list[Shadow | None]:
        name = name_of(call.func)
        if not targets or (writes and name in _DRAWS):
            return [None] * len(targets)
        if (rule := RULES.get(name)) is not None:
            found = rule(call)
            shadows = list(found) if isinstance(found, list) else [found]
        else:
            shadows = self._replayed(call, targets)
        return [self._fitting(shadow, target) for shadow, target in zip(shadows, targets, strict=True)]

    def _replayed(self, call: Call, targets: Sequence[Tensor]) -> list[Shadow | None]:
        """By autograd; straight through where it knows no way and the shape stays."""
        try:
            numbers = call.replayed()
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            numbers = []
        if len(numbers) != len(targets) or not any(number.requires_grad for number in numbers):
            return [self._through(call, target) for target in targets]
        choice = _moved(call) if len(targets) == 1 else None
        return [Shadow(number, choice) if number.requires_grad else None for number in numbers]

    def _through(self, call: Call, target: Tensor) -> Shadow | None:
        sources = [value for value in tree_leaves((call.args, call.kwargs)) if isinstance(value, Tensor)]
        same = [s for v in sources if v.shape == target.shape and (s := self.ledger.find(v)) is not None]
        label = f"{call.func._schema.name.rpartition('::')[2]}, which has no derivative"
        if not same or self._strict:
            self.lost.append(label)
            return None
        self._settled(label, target, 1.0, True, None)
        return call.anchored(same[0].number, target)

    def _fitting(self, shadow: Shadow | None, target: Tensor) -> Shadow | None:
        if shadow is None or not shadow.number.requires_grad:
            return None
        if shadow.number.shape != target.shape:
            return None
        carrier, exact = self.ledger.carrier(target.dtype), target.is_floating_point() or target.is_complex()
        number = shadow.number.to(carrier)
        return Shadow(number if exact or self.ledger.relaxed else anchored(number, target), shadow.choice)

    def _settled(self, kind: str, result: Tensor, scale: float, soft: bool, flip: Any) -> Site:
        shape = tuple(result.shape[1:])
        place = self._met[kind, shape] = self._met.get((kind, shape), -1) + 1
        key = (kind, shape, place)
        site = self._plan.get(key) or Site(kind, self.path[-1], soft, scale, flip is not None)
        self.found[key] = site
        if self._experiment is not None and self._experiment.key == key and flip is not None:
            other, distance = flip()
            result.copy_(torch.where(self._experiment.choose(distance), other.to(result.dtype), result))
        return site.decided(False) if self._strict else site


def follow(model: nn.Module, x: Tensor, recorder: Recorder) -> tuple[Tensor, Tensor | None]:
    """Run a model inside a recorder: what it answers, and the same with its derivative, if it has one."""
    value = x.detach().clone()
    with torch.enable_grad():
        number = x.to(recorder.ledger.carrier(x.dtype)).clone()
    recorder.ledger.keep(value, Shadow(number))
    with torch.no_grad(), recorder:
        answer = model(value)
    if not isinstance(answer, Tensor):
        raise TypeError(f"the model returned a {type(answer).__name__}")
    with torch.enable_grad():
        shadow = recorder.ledger.find(answer)
    return answer, None if shadow is None else shadow.number


def _moved(call: Call) -> Callable[[], Tensor] | None:
    """The smooth shares of choices that an operation only moves about."""
    shadow = call.shadow(call.args[0]) if call.args else None
    if shadow is None or shadow.choice is None or not (call.func.is_view or name_of(call.func) in _COPIES):
        return None
    shares = shadow.choice
    return lambda: torch.vmap(lambda share: call.func(share, *call.args[1:], **call.kwargs), -1, -1)(shares())


def _results(result: Any) -> list[Any]:
    return list(result) if isinstance(result, list | tuple) else [result]


def _written(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation overwrites."""
    found: list[Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [part for part in tree_leaves(value) if isinstance(part, Tensor)]
    return found
