"""Processes that work on one run together, on one machine or many."""

import atexit
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed

from holdfast.arguments import shown, whole
from holdfast.errors import HoldfastError, RunError, SettingError
from holdfast.words import one_line, plain, reason

__all__ = ["ALONE", "Processes", "processes_of"]

T = TypeVar("T")

# Shares of an audit may take very different times, and whoever is done waits for the others.
_PATIENCE = timedelta(days=7)
_MOST = 2**20


class Processes:
    """Those that work on one run together, as one of them sees it.

    Each does the same calls in the same order, with its own part of the work; what they have found they put together
    by the methods below, which all of them must call. Used as a context manager, it makes an error in one process an
    error in all of them: the others raise it at the next of these calls instead of waiting for ever. Where there is
    one process, everything here is free.

    Parameters
    ----------
    rank, count : int
        Which of them this one is, counted from 0, and how many there are.
    device : torch.device or str, optional
        Where this one computes; without it models stay where they are.

    Raises
    ------
    SettingError
        When there cannot be such a one, or nothing can be computed there.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | str | None = None) -> None:
        self.count = whole("count", count, 1, _MOST)
        self.rank = whole("rank", rank, 0, self.count - 1)
        self.device = None if device is None else _working(device)
        self._over = False

    @classmethod
    def launched(cls) -> Self:
        """Those that ``accelerate launch`` or ``torchrun`` has started; this one alone where neither has.

        Raises
        ------
        RunError
            When they do not find each other, or what the launcher says of them in the environment makes no sense.
        """
        count = _told("WORLD_SIZE", range(1, _MOST + 1), "1")
        if count == 1:
            return cls()
        _told("RANK", range(count))
        _told("LOCAL_RANK", range(count))
        _told("MASTER_PORT", range(2**16))
        from accelerate import PartialState

        # Optimizers import this module, and the defaults of its functions hold on to a group that exists by then: its
        # threads would outlive its end, and now and then abort a process that has done its work.
        import_module("torch.distributed.nn.functional")
        if not distributed.is_initialized():
            atexit.register(_leave)
        try:
            state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        except Exception as error:  # of torch, accelerate and what else the environment sets
            raise RunError(f"the {count} processes do not find each other: {one_line(error)[:200]}") from error
        if state.num_processes != count:
            raise RunError(f"{count} processes were started, but {state.num_processes} can work together here")
        # What accelerate calls cpu:0 and cpu:1 is the same to everything here.
        device = torch.device("cpu") if state.device.type == "cpu" else state.device
        return cls(state.process_index, state.num_processes, device)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.count > 1 and not self._over and (error is None or isinstance(error, Exception)):
            try:
                self._meet(error)
            except HoldfastError:
                # A fault is shown where it is, with its traceback.
                if error is None or isinstance(error, HoldfastError):
                    raise

    def part(self) -> None:
        """Leave together after an error, once the main one has told it: launchers end the others when one leaves."""
        if self.count > 1:
            with suppress(RuntimeError, ValueError):
                distributed.barrier()

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            self._meet()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over the processes in the place of each tensor, the same bits in all of them.

        They are sent together: one exchange for each precision among them.
        """
        self._combine(tensors)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over the processes in the place of each tensor, like :meth:`add`."""
        self._combine(tensors, self.count)

    def align(self, tensors: Sequence[Tensor]) -> None:
        """Put the main process's values in the place of each tensor."""
        if self.count == 1:
            return
        self._meet()
        for tensor in tensors:
            value = tensor.detach().contiguous()
            self._exchange(distributed.broadcast, value, src=0)
            tensor.detach().copy_(value)

    def tell(self, value: T) -> T:
        """What the main process has; tensors in it must be on the CPU."""
        if self.count == 1:
            return value
        self._meet()
        values: list[Any] = [value if self.is_main else None]
        self._exchange(distributed.broadcast_object_list, values, src=0)
        told: T = values[0]
        return told

    def gather(self, value: T) -> list[T]:
        """What each has, by rank; tensors in it must be on the CPU."""
        if self.count == 1:
            return [value]
        self._meet()
        return self._gathered(value)

    def deal(self, items: Sequence[T]) -> Sequence[T]:
        """The part of this one, the items being dealt like cards."""
        return items[self.rank :: self.count]

    def collect(self, results: Sequence[T]) -> list[T]:
        """One result for each item, in the items' order, from what each made of the part it was dealt."""
        parts = self.gather(results)
        rounds = range(max(map(len, parts)))
        return [part[turn] for turn in rounds for part in parts if turn < len(part)]

    def _combine(self, tensors: Sequence[Tensor], divisor: int = 1) -> None:
        if self.count == 1:
            return
        self._meet()
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            some = [tensor.detach() for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in some])
            self._exchange(distributed.all_reduce, flat)
            if divisor > 1:
                flat /= divisor
            for tensor, value in zip(some, flat.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(value.view_as(tensor))

    def _meet(self, error: Exception | None = None) -> None:
        """Before anything is exchanged, raise the first error that there is anywhere."""
        failed = torch.tensor([float(error is not None)], device=self.device)
        self._exchange(distributed.all_reduce, failed)
        if failed.item():
            self._over = True
            raise next(found for found in self._gathered(self._told(error)) if found is not None) from error

    def _told(self, error: Exception | None) -> HoldfastError | None:
        """An error as the other processes can read it."""
        if error is None or isinstance(error, HoldfastError):
            return error
        return RunError(f"process {self.rank} of {self.count} failed: {reason(error)}")

    def _gathered(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.count
        self._exchange(distributed.all_gather_object, values, value)
        return values

    def _exchange(self, operation: Any, *arguments: Any, **options: Any) -> None:
        try:
            operation(*arguments, **options)
        except ValueError as error:  # there is no group of processes, or one of others
            self._over = True
            raise RunError(
                f"process {self.rank} of {self.count} has no others: {one_line(error)[:200]}; start them together, by "
                "torchrun or accelerate launch, and take Processes.launched()"
            ) from error
        except RuntimeError as error:
            self._over = True
            raise RunError(
                f"process {self.rank} of {self.count} lost the others, as when one is killed: what was saved is kept, "
                "repeat the command to resume"
            ) from error


ALONE = Processes()


def processes_of(processes: Any) -> Processes:
    """Processes, as they are handed over.

    Raises
    ------
    SettingError
        When they are none.
    """
    if not isinstance(processes, Processes):
        raise SettingError(f"processes: give what Processes.launched() makes, not {shown(processes)}")
    return processes


def _working(device: Any) -> torch.device:
    """A device on which something can be computed."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except Exception as error:  # each kind of device has its own
        raise SettingError(f"device: nothing can be computed on {shown(device)}: {one_line(error)[:200]}") from error
    return found


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _told(name: str, numbers: range, default: str = "") -> int:
    """A number that the launcher has put into the environment."""
    word = os.environ.get(name, default)
    if not (word.isascii() and word.isdecimal() and len(word) < 10 and int(word) in numbers):
        raise RunError(
            f"{name} in the environment is {plain(word[:40]) or 'missing'}, not a number from {numbers[0]} to "
            f"{numbers[-1]}: start with accelerate launch or torchrun, or unset WORLD_SIZE"
        )
    return int(word)
