"""The model as a queried thing: the one door through which anything touches it."""

import copy
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from holdfast.arguments import as_float, as_list, is_number, module_of, seed_of, whole
from holdfast.errors import DataError, ModelError, SettingError
from holdfast.models.borrow import borrowed
from holdfast.models.embedding import Lookups
from holdfast.models.gradients import InputGradients, quicker
from holdfast.models.independence import refuse_dependence
from holdfast.models.layout import is_channels_last, lay_out
from holdfast.models.one_logit import OneLogit, is_one_logit
from holdfast.models.overwritten import differentiated
from holdfast.models.precision import first_float
from holdfast.models.probabilities import final_squashing
from holdfast.words import reason

__all__ = ["Answer", "Query", "channel_numbers"]

# Small batches stay in a CPU's cache and waste little on the last, padded one; a GPU wants to be full.
CPU_BATCH, GPU_BATCH = 64, 512

# Of images: grey, in colour, with an alpha channel.
_CHANNELS = (1, 3, 4)
# A call takes many times the memory of its inputs.
_MOST_ROWS, _MOST_BYTES = 2**24, 2**32

# Matrix products work through rows in blocks, and round the rows of a last, incomplete block differently.
_BLOCK = 4
# The smallest shape worth a call of its own where a batch is nearly empty.
_SMALLEST = 8


@dataclass(frozen=True)
class Answer:
    """What the model said to a batch.

    Parameters
    ----------
    logits : Tensor
        ``(N, K)``.
    values : Tensor
        ``(N,)`` the objective.
    grad : Tensor
        ``(N, ...)`` the objective's gradient with respect to each row's input; of whole numbers ``(N, ..., D)``, with
        respect to what the model looks up for each.
    """

    logits: Tensor
    values: Tensor
    grad: Tensor


class Query:
    """A model that can be asked and not changed.

    Use it as a context manager: inside, the model is in evaluation mode with frozen parameters; outside it is as it
    was, bit for bit, and so is the global random state. Every call runs the model on exactly ``batch_size`` rows (more
    than one are rounded up to a multiple of 4), the missing ones padded, so that a row's arithmetic does not depend on
    its neighbours; padding is not counted. Where a trial on the first inputs shows that logits and gradients are bit
    for bit the same in batches of a half, a quarter and so on, down to 8 rows, the smallest shape that holds the rows
    is run.

    Floating point inputs are taken in the query's precision. Whole numbers, such as words or bytes, go to the model as
    they are. They have no gradient: it is that with respect to what the model looks up for them, in an
    ``nn.Embedding`` say, and :meth:`embedded` tells what that is.

    Parameters
    ----------
    model : nn.Module
        Maps ``(N, ...)`` inputs to ``(N, K)`` logits; or to one logit each, which is read as class 1 where it is
        positive, see :class:`~holdfast.models.OneLogit`.
    mean, std : sequence of float, optional
        A normalisation to put before the model, a number a channel (dimension 1), so that budgets and boxes are those
        of raw inputs.
    batch_size : int, optional
        Rows a call; 64 on a CPU and 512 on a GPU by default.
    seed : int
        The seed of the global generator while the model is in use, for models that draw noise of their own.

    Raises
    ------
    SettingError
        When the batch size or a scale is not positive, or the seed does not fit into 64 bits.

    Attributes
    ----------
    model : nn.Module
        As given; from the first answer on in a :class:`~holdfast.models.OneLogit` where that is a single logit.
    forwards, backwards : int
        Examples passed through the model and back, all calls together.
    dtype : torch.dtype
        The precision of inputs, gradients and logits outside the model: float64 for a float64 model, else float32.
    inner_dtype : torch.dtype
        That of the model itself.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if batch_size is not None:
            batch_size = whole("batch_size", batch_size, -_MOST_ROWS, _MOST_ROWS)
            if batch_size < 1:
                raise SettingError(f"batch_size: a call of the model needs at least 1 row, got {batch_size}")
        mean, std = (channel_numbers(name, given) for name, given in (("mean", mean), ("std", std)))
        if std is not None and not all(scale > 0 for scale in std):
            raise SettingError(f"std: the scale of a normalisation must be positive, got {std}")
        seed = seed_of(seed)
        self.model = module_of(model)
        self.forwards = 0
        self.backwards = 0
        self.channels_last = False
        self._back: AbstractContextManager[object] = nullcontext()
        self._seed = seed
        self._stack = ExitStack()
        self._classes: int | None = None
        self._shapes: tuple[int, ...] = ()
        first = first_float(model, torch.zeros(()))
        self.device = first.device
        self.batch_size = batch_size or (GPU_BATCH if self.device.type == "cuda" else CPU_BATCH)
        self.inner_dtype = first.dtype
        self.dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self._mean, self._std = (None if v is None else torch.tensor(v, dtype=torch.float64) for v in (mean, std))

    def __enter__(self) -> Self:
        self._stack.enter_context(borrowed(self.model, self._seed))
        if self.device.type == "cpu":
            _keep_memory()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def prepare(self, x: Tensor) -> Tensor:
        """Inputs on the model's device, in the query's precision and layout; whole numbers stay what they are."""
        # Autograd keeps nothing that was made in inference mode.
        x = x.clone() if x.is_inference() else x.detach()
        return lay_out(self._taken(x), self.channels_last)

    def bare_logits(self, x: Tensor) -> Tensor:
        """``(N, K)`` logits of the model as it is: what verdicts are taken from.

        Raises
        ------
        ModelError
            When the model raises, or its output is not a tensor ``(N, K)`` of logits.
        """
        x = lay_out(self._taken(x.detach()), channels_last=False)
        first = self._classes is None
        watch = _Watch()
        starts = range(0, len(x), self.batch_size)
        # What a model makes at its first call and keeps must be of use under gradients later, as a tensor made in
        # inference mode is not. Answers are copied, since some models hand out one tensor again and again.
        with torch.no_grad() if first else torch.inference_mode(), watch if first else nullcontext():
            parts = [x[start : start + self.batch_size] for start in starts]
            rows = [self._forward(self._pad(part))[: len(part)].clone() for part in parts]
        logits = torch.cat(rows)
        self.forwards += len(x)
        if first:
            # Pooling in the default format is what costs most in small networks on a CPU, and nothing else tells the
            # formats apart as reliably. The rule looks at the network and not at a clock: a choice by timing would
            # round differently from one run to the next.
            self.channels_last = watch.pools and x.device.type == "cpu"
            self._back = InputGradients() if watch.quickens or self.channels_last else nullcontext()
            self._shapes = self._equivalent_shapes(x[: self.batch_size])
            self._refuse_dependence(x)
            self._refuse_probabilities(logits, x)
        return logits

    def logits(self, x: Tensor) -> Tensor:
        """``(N, K)`` logits of at most ``batch_size`` rows, in the search's layout."""
        with torch.inference_mode():
            logits = self._forward(self._pad(self.prepare(x)))[: len(x)]
        self.forwards += len(x)
        return logits.clone()

    def gradient(self, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Answer:
        """Logits, objective and its gradient for at most ``batch_size`` rows.

        The objectives are summed, never averaged, so a row's gradient is its own. Where a gradient is not finite, it
        is 0: the search stands still there instead of being lost.

        Raises
        ------
        ModelError
            When no gradient reaches the input.
        """
        answer = self.bare_gradient(x, objective)
        # One number tells whether any is not finite (or their sum overflows, which costs nothing but the repair).
        if not math.isfinite(answer.grad.sum().item()):
            return replace(answer, grad=answer.grad.nan_to_num(0.0, 0.0, 0.0))
        return answer

    def bare_gradient(self, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Answer:
        """What :meth:`gradient` tells, with what is not finite as autograd gave it."""
        logits, values, grad = differentiated(partial(self._gradient, x, objective))
        self.forwards += len(x)
        self.backwards += len(x)
        return Answer(logits.detach(), values.detach(), grad)

    def doubled(self) -> "Query":
        """A query of a copy of the model in float64, that counts for itself; a context manager like this one.

        Where a copy cannot be had, or fails in that precision, whatever its code raises is raised here or when it is
        asked. Of a model that computes in float64 already it is a copy like any other.
        """
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model).double()
        twin.dtype = twin.inner_dtype = torch.float64
        twin.forwards = twin.backwards = 0
        twin._stack = ExitStack()
        return twin

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, K)`` logits of at most ``batch_size`` rows, and ``(N, K, ...)`` the gradient of each.

        Raises
        ------
        ModelError
            When no gradient reaches the input.
        """
        logits, parts = differentiated(partial(self._jacobian, x))
        self.forwards += len(x)
        self.backwards += len(parts) * len(x)
        return logits.detach(), torch.stack(parts, dim=1)

    def embedded(self, x: Tensor) -> Tensor:
        """``(N, ..., D)`` what the model looks up for whole numbers, of at most ``batch_size`` rows; a forward pass.

        It is what gradients are taken with respect to: to first order, an objective gains by other numbers in place of
        ``x`` the sum of ``gradient * (embedded of those - embedded of x)``. Where a model asks several tables, their
        columns stand side by side; a number that it does not look up has zeros.

        Raises
        ------
        ModelError
            When it looks up none.
        """
        embedded = self._embedded(x)
        self.forwards += len(x)
        if embedded is None:
            raise ModelError(_no_lookup(x))
        return embedded

    def _embedded(self, x: Tensor) -> Tensor | None:
        rows = self._pad(self.prepare(x))
        with torch.no_grad(), Lookups(rows) as lookups:
            self._forward(rows)
        return None if lookups.embedded is None else _first(lookups.embedded, len(x)).to(self.dtype)

    def _gradient(self, x: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            logits, gradient = self._differentiable(self._pad(self.prepare(x)))
            logits = _first(logits, len(x))
            values = objective(logits)
            _require_gradient(values, x)
            grad = gradient(values)
        return logits, values, _first(grad, len(x))

    def _jacobian(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            logits, gradient = self._differentiable(self._pad(self.prepare(x)))
            logits = _first(logits, len(x))
            _require_gradient(logits, x)
            parts = [
                _first(gradient(column, retain_graph=True), len(x)).nan_to_num(0.0, 0.0, 0.0)
                for column in logits.unbind(1)
            ]
        return logits, parts

    def _differentiable(self, x: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
        """Logits of rows that fill a shape, and what gives the gradient of values that are made of them."""
        if x.is_floating_point():
            x.requires_grad_(True)
            with self._back:
                return self._forward(x), partial(_input_gradient, x)
        with self._back, Lookups(x) as lookups:
            logits = self._forward(x)
        return logits, lambda values, **options: lookups.gradient(values, **options).to(self.dtype)

    def _equivalent_shapes(self, x: Tensor) -> tuple[int, ...]:
        """Batch sizes below the whole one, rising, in which the model computes the very same numbers."""
        whole = self._whole
        x = x[torch.arange(whole, device=x.device) % len(x)] if len(x) else x
        sizes = [whole >> halvings for halvings in range(1, whole.bit_length()) if whole >> halvings >= _SMALLEST]
        if not len(x) or not sizes or any(size % _BLOCK for size in sizes):
            return ()
        same: list[int] = []
        # A model that fails in another shape, or on the way back to its input, is asked in the whole one.
        with suppress(Exception):
            expected = self._trial(x, whole)
            for size in sizes:
                if not all(map(torch.equal, self._trial(x, size), expected)):
                    break
                same.append(size)
        return tuple(reversed(same))

    def _refuse_dependence(self, x: Tensor) -> None:
        """Refuse a model whose rows are not independent of each other, in the smallest shape that is in use.

        In larger ones they have been seen to be the same.
        """

        def ask(model: nn.Module, rows: Tensor) -> Tensor:
            with torch.inference_mode():
                return self._forward(rows, model).clone()

        shape = min(self._shapes, default=self._whole)
        if len(x):
            rows = x[torch.arange(shape, device=x.device) % len(x)]
            refuse_dependence(self.model, ask, rows, self.inner_dtype)

    def _trial(self, x: Tensor, size: int) -> tuple[Tensor, ...]:
        """Logits of the bare model and of the search, and the gradient of their sum, asked ``size`` rows at a time."""
        parts = []
        for rows in x.split(size):
            with torch.inference_mode():
                bare = self._forward(rows).clone()
            with torch.enable_grad():
                logits, gradient = self._differentiable(self.prepare(rows).clone())
                weighted = (logits * torch.arange(1, logits.shape[1] + 1, device=logits.device)).sum()
                grad = gradient(weighted) if weighted.requires_grad else torch.zeros_like(rows)
            parts.append((bare, logits.detach(), grad))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @property
    def _whole(self) -> int:
        return self.batch_size if self.batch_size == 1 else -(-self.batch_size // _BLOCK) * _BLOCK

    def _pad(self, x: Tensor) -> Tensor:
        if len(x) > self.batch_size:
            raise ValueError(f"{len(x)} rows in one call, but the query's batch size is {self.batch_size}")
        shape = next((shape for shape in self._shapes if shape >= len(x)), self._whole)
        if shape * x[:1].nbytes > _MOST_BYTES:
            raise SettingError(
                f"batch_size: {shape} inputs of shape {tuple(x.shape[1:])} take {shape * x[:1].nbytes / 2**30:.0f} GiB "
                "a call; give a smaller one"
            )
        missing = shape - len(x)
        if missing == 0 or len(x) == 0:
            return x
        return lay_out(torch.cat([x, x[:1].expand(missing, *x.shape[1:])]), is_channels_last(x))

    def _taken(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)

    def _forward(self, x: Tensor, model: nn.Module | None = None) -> Tensor:
        inputs = self._normalize(x)
        inputs = inputs.to(self.inner_dtype) if x.is_floating_point() else inputs
        # Some models work in place on their input: they get a copy.
        inputs = inputs.clone() if inputs is x else inputs
        try:
            logits = (self.model if model is None else model)(inputs)
        except (ModelError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ModelError(
                f"the model failed on an input batch of shape {tuple(x.shape)}: {reason(error)}{_input_cure(x)}"
            ) from error
        if self._classes is None and is_one_logit(logits, len(x)):
            self.model = OneLogit(self.model)
            logits = self.model.read(logits)
        return self._checked(logits, len(x))

    def _refuse_probabilities(self, logits: Tensor, x: Tensor) -> None:
        one = isinstance(self.model, OneLogit)

        def outputs(logits: Tensor) -> Tensor:
            return logits.sum(1, keepdim=True) if one else logits  # beside one logit stands a 0

        def ask(x: Tensor) -> Tensor:
            with torch.no_grad():
                parts = [self._forward(self._pad(part))[: len(part)] for part in x.split(self.batch_size)]
            return outputs(torch.cat(parts))

        def ask_behind(embedded: Tensor) -> Tensor:
            """What is said of the first inputs, were something else looked up for them."""
            rows = self._pad(self.prepare(x[torch.arange(len(embedded), device=x.device) % len(x)]))
            with torch.no_grad(), Lookups(rows, self._pad(embedded)):
                return outputs(self._forward(rows)[: len(embedded)])

        if x.is_floating_point():
            last = final_squashing(outputs(logits), x, ask, self.inner_dtype)
        elif (embedded := self._embedded(x[: self.batch_size])) is not None:
            last = final_squashing(outputs(logits), embedded, ask_behind, self.inner_dtype)
        else:
            return  # multiples of whole numbers may be none that the model knows
        if last is not None:
            reading = " (what is left is read as one logit, class 1 where it is positive)" if one else ""
            raise ModelError(
                "the model returns probabilities, not logits: of an nn.Sequential take model[:-1], of any other remove "
                f"its final {last}{reading}; on probabilities the attacks' gradients vanish and the model would look "
                "more robust than it is"
            )

    def _normalize(self, x: Tensor) -> Tensor:
        def channels(values: Tensor) -> Tensor:
            if values.numel() not in (1, x.shape[1]):
                raise DataError(f"mean/std: {values.numel()} numbers for inputs with {x.shape[1]} channels")
            return values.to(x).reshape(1, -1, *[1] * (x.dim() - 2))

        if not x.is_floating_point() and (self._mean is not None or self._std is not None):
            raise DataError(
                f"mean/std: the inputs are whole numbers ({x.dtype}), which cannot be normalised: leave it out"
            )
        if self._mean is not None:
            x = x - channels(self._mean)
        return x if self._std is None else x / channels(self._std)

    def _checked(self, logits: object, rows: int) -> Tensor:
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"the model returned a {type(logits).__name__}, not a tensor of logits (N, K): wrap it in a module "
                "that returns the logits alone"
            )
        if logits.dim() != 2 or logits.shape[0] != rows or logits.shape[1] < 2:
            raise ModelError(
                f"the model returned a tensor of shape {tuple(logits.shape)} for {rows} inputs; logits must be (N, K), "
                f"a row for each input and a column for each class{_cure(logits, rows)}"
            )
        if self._classes not in (None, logits.shape[1]):
            raise ModelError(f"the model returned {logits.shape[1]} logits after {self._classes} before")
        self._classes = logits.shape[1]
        return logits.to(self.dtype)


def channel_numbers(name: str, values: Iterable[float] | None) -> tuple[float, ...] | None:
    """The numbers of a normalisation, one a channel.

    Raises
    ------
    SettingError
        When they are none.
    """
    if values is None:
        return None
    numbers = as_list(values)
    if numbers is None or not all(is_number(number) and math.isfinite(as_float(number)) for number in numbers):
        raise SettingError(f"{name}: a tuple of finite numbers is needed, one a channel, such as (0.5,)")
    return tuple(map(float, numbers))


def _keep_memory() -> None:
    """Let large tensors be made again from the memory of those before.

    glibc gives large blocks back to the system when they are freed, and to get them again, page by page, takes longer
    than small networks compute. It stops doing so for blocks no larger than one of at most 32 MB that it has seen
    freed. Elsewhere this does nothing; the block itself is never touched and costs no memory.
    """
    torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8)


def _first(x: Tensor, count: int) -> Tensor:
    return x if len(x) == count else x[:count]


def _input_cure(x: Tensor) -> str:
    """What may help a model that failed on whole numbers, or on images whose channels seem to come last."""
    if not x.is_floating_point():
        return f"; it was given {x.dtype}: give floating point numbers to a model that does not look its input up"
    if x.dim() != 4 or x.shape[1] in _CHANNELS or x.shape[3] not in _CHANNELS:
        return ""
    return "; channels seem to come last: give images as (N, C, H, W), by x.permute(0, 3, 1, 2)"


def _cure(outputs: Tensor, rows: int) -> str:
    """How a model may come to return what is no matrix of logits."""
    if not outputs.is_floating_point():
        return f": it returns {outputs.dtype}; return the scores of which it takes the largest"
    if outputs.dim() > 2 and outputs.shape[0] == rows:
        return ": flatten or average what its last layer returns"
    return ": it must keep the first dimension, which counts inputs" if outputs.shape[:1] != (rows,) else ""


def _input_gradient(x: Tensor, values: Tensor, retain_graph: bool = False) -> Tensor:
    """``(N, ...)`` the gradient of the sum of some values with respect to the input."""
    ones = torch.ones_like(values)
    (grad,) = torch.autograd.grad(values, x, ones, allow_unused=True, retain_graph=retain_graph)
    return torch.zeros_like(x) if grad is None else grad


def _no_lookup(x: Tensor) -> str:
    return (
        f"the model reads whole numbers ({x.dtype}), and none of them was seen to be looked up: look the input itself "
        "up, by nn.Embedding, nn.EmbeddingBag, a tensor that is indexed, or torch.nn.functional.one_hot"
    )


def _require_gradient(values: Tensor, x: Tensor) -> None:
    if not values.requires_grad and not x.is_floating_point():
        raise ModelError(
            f"no gradient reaches what the model looks up (a detach or no_grad behind it?), or {_no_lookup(x)}"
        )
    if not values.requires_grad:
        raise ModelError(
            "no gradient reaches the model's input (a detach, rounding, no_grad or NumPy on the way?): gradient "
            "attacks cannot be run on it"
        )


class _Watch(TorchFunctionMode):
    """Notes whether a forward pass pools 2-d feature maps, and whether a convolution has a quicker input gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = False
        self.quickens = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.pools = self.pools or "pool2d" in getattr(func, "__name__", "")
        self.quickens = self.quickens or (func is torch.conv2d and not kwargs and quicker(*args) is not None)
        return func(*args, **(kwargs or {}))
