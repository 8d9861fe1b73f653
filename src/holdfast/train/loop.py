"""The training loop."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.data import Source
from holdfast.errors import DataError, HoldfastError, ModelError, RunError, SettingError
from holdfast.models.borrow import given_copies
from holdfast.models.query import Query
from holdfast.processes import ALONE, Processes
from holdfast.threats import Threat
from holdfast.train.augmentation import crop_flip
from holdfast.train.bounds import certified_accuracy
from holdfast.train.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from holdfast.train.evaluation import evaluate
from holdfast.train.exchange import exchange
from holdfast.train.guard import KEPT, Event, Guard, cost
from holdfast.train.method import Method
from holdfast.train.recipe import Recipe
from holdfast.train.result import Epoch, Progress, TrainingResult
from holdfast.train.state import Groups, State
from holdfast.train.step import Step
from holdfast.words import reason

__all__ = ["fit"]

CHECKPOINT = "checkpoint.safetensors"
# A run that is killed loses at most about this many seconds.
_SAVE_SECONDS = 30.0
_PGD_STEPS = 10
_FEWEST = 10
# What the groups of a checkpoint that hold the guard's good states begin with.
_GOOD = "good"
# Where augmentation's random numbers come from; methods draw from the first few lanes.
_AUGMENTATION = 50


@torch.inference_mode(False)
def fit(
    model: nn.Module,
    source: Source,
    method: Method,
    threat: Threat,
    recipe: Recipe,
    *,
    run: Path | None = None,
    seed: int = 0,
    processes: Processes = ALONE,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainingResult:
    """Train a model in place.

    After every epoch it is attacked on held-out training examples, and the state that is best at what the method is
    after is what the model is left in. Everything random depends on ``seed`` and on the number of the step, so a run
    that was stopped at any moment ends with the same weights as one that was not.

    Where the recipe has a guard and a method of single steps comes to withstand nothing but single steps, training goes
    back to the last good state and on with a method that is harder to overfit; the result's events tell.

    Parameters
    ----------
    model : nn.Module
        Its weights are where training starts; it ends in evaluation mode.
    source : Source
        Training examples, small enough to be held in memory.
    method : Method
        What is minimised, and where.
    threat : Threat
        What the model is to withstand: how held-out examples are attacked.
    recipe : Recipe
        How long and how fast it learns.
    run : Path, optional
        A folder for a checkpoint; the same call on the same folder resumes. Without it nothing is written.
    seed : int
        Of every random draw.
    processes : Processes
        Those that train it together, each a part of every batch; all end with the same weights and the same result.
    on_progress : callable
        Called after every step, in the main process alone.

    Returns
    -------
    TrainingResult

    Raises
    ------
    ModelError
        When the loss is no longer finite, or the model does not fit the data.
    DataError
        When labels cannot be learned: negative ones, or a class without an example.
    RunError
        When the folder holds another run, or cannot be written.
    SettingError
        When the processes cannot have equal parts of a batch.
    """
    return _Training(model, source, method, threat, recipe, run, seed, processes, on_progress).finish()


def _mixed(seed: int, number: int) -> int:
    """A seed of its own for each number; a seed's bits that find no room above come round from below."""
    return ((seed << 32) + (seed >> 32) + number) % 2**64


@dataclass
class _Best:
    """The state of the highest accuracy so far."""

    accuracy: float
    step: int
    weights: dict[str, Tensor]


class _Training:
    """One run: what it learns from, what it has become, and how the two are kept on disk."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        method: Method,
        threat: Threat,
        recipe: Recipe,
        run: Path | None,
        seed: int,
        processes: Processes,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.original, self.threat, self.recipe, self.run, self.seed = method, threat, recipe, run, seed
        self.processes, self.on_progress = processes, on_progress
        model.to(processes.device)
        processes.align([*model.state_dict().values()])
        device = next(model.parameters()).device
        self.data = f"{len(source)} of {source.name}"
        index, x, y = (column.to(device) for column in _read(source))
        if len(y) < _FEWEST:
            raise DataError(
                f"{len(y)} examples are too few to learn from some and judge by others: give {_FEWEST} or more"
            )
        held = _held_out(y, recipe.validation, seed)
        self.held = index[held], x[held], y[held]
        self.index, self.x, self.y = index[~held], x[~held], y[~held]
        self.batch = min(recipe.batch_size, len(self.x))
        self.updates = recipe.epochs * (len(self.x) // self.batch)
        part, rest = divmod(self.batch, processes.count)
        if rest:
            raise SettingError(f"batch_size: {self.batch} examples are not {processes.count} equal parts")
        # What its owner has put into evaluation mode, such as batch norm, stays there, unless it is all of the model.
        self.frozen = [module for module in model.modules() if not module.training] if model.training else []
        self.query = Query(model, batch_size=part)
        with self.query:
            classes = self.query.bare_logits(self.x[:part]).shape[1]
        _check_labels(y, classes)
        # As the query has come to know it: a model with one logit learns as one with two.
        self.model, self.state = model, State.fresh(self.query.model, recipe)
        self.guard: Guard | None = None
        self.best: _Best | None = None
        self.losses: list[float] = []
        self.epochs: list[Epoch] = []
        self._order: tuple[int, Tensor] | None = None
        self.saved, self.due = time.monotonic(), False
        if recipe.guard and method.judged_by == "robust":
            self.guard = self._posted()
        if run is not None:
            self._resume(run / CHECKPOINT)

    @property
    def method(self) -> Method:
        """The one in force."""
        return self.original if self.guard is None else self.guard.method

    @property
    def per_epoch(self) -> int:
        return self.updates // self.recipe.epochs

    def finish(self) -> TrainingResult:
        """Go on to the end, and leave the model in its best state."""
        state, model = self.state, self.state.model
        began, made = time.monotonic(), 0
        # A model's own noise, such as dropout, draws from the global generator, which is given back as it was.
        with torch.random.fork_rng(devices=_devices(model)):
            while state.step < self.updates:
                self.losses.append(self.advance(self._rows(state.step)))
                made, loss = made + 1, self.losses[-1]
                event = self.look()
                ended = state.step % self.per_epoch == 0 and (event is None or event.back_to is None)
                epoch = self.judge() if ended else None
                left = (time.monotonic() - began) / made * (self.updates - state.step)
                if self.processes.is_main:
                    self.on_progress(Progress(state.step, self.updates, loss, epoch, event, left))
                # Only here, between two steps: what an interruption leaves half done is no state of the run.
                if state.step == self.updates or self.due:
                    self.save()
        assert self.best is not None
        model.load_state_dict(self.best.weights)
        model.eval()
        events = () if self.guard is None else tuple(self.guard.events)
        return TrainingResult(self.model, tuple(self.epochs), tuple(self.losses), self.best.step, events)

    def advance(self, rows: Tensor) -> float:
        """One update with the examples ``rows``; its loss."""
        state, recipe = self.state, self.recipe
        progress = state.step / self.updates
        step = Step(
            state.step,
            self.seed,
            self.index[rows],
            recipe.share(progress),
            recipe.label_smoothing,
            state.memory,
            add=self.processes.add,
            reach=recipe.reach,
        )
        x, y = self.x[rows], self.y[rows]
        if recipe.augmentation == "crop-flip":
            # A batch that is replayed stays as it is, under the perturbation that was found for it.
            x = crop_flip(x, replace(step, number=state.step // self.method.replays).draws(lane=_AUGMENTATION))
        torch.manual_seed(_mixed(self.seed, self.processes.rank * self.updates + state.step))
        state.model.train()
        for module in self.frozen:
            module.training = False
        with self._precision():
            with self.query:
                x_adv = self.method.perturb(self.query, x, y, step)
            loss = self._loss(x, x_adv.detach(), y, step)
        state.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        # By the main process's clock, so that all save together.
        late = self.processes.is_main and time.monotonic() - self.saved > _SAVE_SECONDS
        value, due = exchange(state.model, self.processes, loss.item(), late)
        self.due = due > 0
        if not math.isfinite(value):
            kept = "" if self.run is None else f"; the last state that was saved is kept in {self.run}"
            raise ModelError(
                f"the loss became {value} at step {state.step} of {self.updates}: lower the learning rate{kept}"
            )
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.rate(progress)
        state.optimizer.step()
        state.step += 1
        if recipe.average is not None:
            state.average(recipe.average)
        return value

    def _loss(self, x: Tensor, x_adv: Tensor, y: Tensor, step: Step) -> Tensor:
        try:
            # Methods look at an input more than once.
            with given_copies(self.state.model):
                return self.method.loss(self.state.model, x, x_adv, y, step)
        except (HoldfastError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ModelError(
                f"the model failed in training on a batch of shape {tuple(x.shape)}: {reason(error)}"
            ) from error

    def look(self) -> Event | None:
        """Let the guard look, if it is time; where it goes back, what came after is forgotten."""
        state = self.state
        if self.guard is None or (state.step % self.guard.every and state.step < self.updates):
            return None
        event = self.guard.look(state, self.recipe.share(state.step / self.updates), self.seed, self.processes)
        del self.losses[state.step :]
        self.epochs = [epoch for epoch in self.epochs if epoch.step <= state.step]
        if self.best is not None and self.best.step > state.step:
            self.best = None
        return event

    def judge(self) -> Epoch:
        """Attack the held-out examples, and keep the state where it is the best yet."""
        state = self.state
        index, x, y = self.held
        judged, threat = state.judged(), self.threat.at(index)
        found = evaluate(judged, threat, x, y, seed=self.seed, steps=_PGD_STEPS, processes=self.processes)
        if self.method.judged_by == "certified":
            found = replace(found, certified=certified_accuracy(judged, threat, x, y, self.processes))
        losses = self.losses[-self.per_epoch :]
        epoch = Epoch(state.step // self.per_epoch, state.step, sum(losses) / len(losses), found)
        self.epochs.append(epoch)
        accuracy = found.accuracy(self.method.judged_by)
        # Of equals the later one has learned more.
        if self.best is None or accuracy >= self.best.accuracy:
            weights = {name: value.detach().clone() for name, value in judged.state_dict().items()}
            self.best = _Best(accuracy, state.step, weights)
        return epoch

    def save(self) -> None:
        """Write everything to the run's folder, if there is one."""
        if self.run is None:
            return
        self.saved = time.monotonic()
        groups = self._whole(self.state.snapshot())
        good = [] if self.guard is None else [self._whole(kept) for kept in self.guard.good]
        if not self.processes.is_main:
            return
        for number, kept in enumerate(good):
            groups |= {f"{_GOOD} {number} {name}": members for name, members in kept.items()}
        groups["losses"] = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        notes: dict[str, Any] = {"settings": self._settings(), "epochs": [epoch.to_dict() for epoch in self.epochs]}
        if self.guard is not None:
            notes["guard"] = {**self.guard.to_dict(), "good": len(good)}
        if self.best is not None:
            groups["best"] = self.best.weights
            notes["best"] = [self.best.accuracy, self.best.step]
        save_checkpoint(self.run / CHECKPOINT, groups, notes)

    def _resume(self, path: Path) -> None:
        """Go on from what the run's folder holds, if it holds anything."""
        kept = self.processes.tell(load_checkpoint(path) if self.processes.is_main and has_checkpoint(path) else None)
        if kept is None:
            return
        try:
            self._take_up(path, *kept)
        except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(
                f"{path} was damaged or changed ({reason(error)}): give another folder, or delete it to begin anew"
            ) from error

    def _take_up(self, path: Path, groups: Groups, notes: dict[str, Any]) -> None:
        mine, settings = self._settings(), notes["settings"]
        for key in sorted({*mine, *settings}):
            before = settings.get(key)
            if mine.get(key) != before:
                raise RunError(
                    f"{path.parent} holds another run: its {key} was {before}, and now is {mine.get(key)}; give "
                    "another folder, or the same settings to resume"
                )
        self.state.check(groups)
        step, losses = int(groups["step"]["step"]), groups["losses"]["losses"].tolist()
        if not 0 <= step == len(losses) <= self.updates:
            raise ValueError(f"{step} steps of {self.updates}, and {len(losses)} losses")
        if not all(map(math.isfinite, losses)):
            raise ValueError("losses that are not finite")
        epochs = [Epoch.from_dict(epoch) for epoch in notes["epochs"]]
        if [epoch.step for epoch in epochs] != list(range(self.per_epoch, step + 1, self.per_epoch)):
            raise ValueError(f"epochs that do not lead to step {step}")
        best = self._best(groups, notes)
        if best is None and step == self.updates:
            raise ValueError("the best state is missing")
        if self.guard is not None:
            self._restore_guard(self.guard, groups, notes["guard"])
        self.state.check_memory(self._mine(groups), self._first_memory())
        self.state.restore(self._mine(groups))
        self.losses, self.epochs, self.best = losses, epochs, best

    def _first_memory(self) -> dict[str, Tensor]:
        """What the method in force remembers after a first step, of which nothing is left."""
        fresh = self.state.snapshot()
        with torch.random.fork_rng(devices=_devices(self.state.model)):
            self.advance(self._rows(0))
        memory = dict(self.state.memory)
        self.state.restore(fresh)
        return memory

    def _best(self, groups: Groups, notes: dict[str, Any]) -> _Best | None:
        if "best" not in notes:
            return None
        accuracy, step = notes["best"]
        if not 0 <= accuracy <= 1:
            raise ValueError(f"an accuracy of {accuracy!r}")
        if step not in {epoch["step"] for epoch in notes["epochs"]}:
            raise ValueError(f"the best state is that of step {step!r}, which no epoch ended with")
        # It has the tensors of the model, as a state to go back to has.
        self.state.check({**groups, "model": groups["best"]})
        return _Best(float(accuracy), step, {name: value.to(self.x.device) for name, value in groups["best"].items()})

    def _restore_guard(self, guard: Guard, groups: Groups, notes: dict[str, Any]) -> None:
        if notes["good"] not in range(KEPT + 1):
            raise ValueError(f"{notes['good']!r} states to go back to")
        good = []
        for number in range(notes["good"]):
            prefix = f"{_GOOD} {number} "
            kept = {name.removeprefix(prefix): members for name, members in groups.items() if name.startswith(prefix)}
            self.state.check(kept)
            good.append(self._mine(kept))
        guard.restore(notes, good)

    def _whole(self, groups: Groups) -> Groups:
        """A snapshot with what the method remembers in all processes."""
        memories = self.processes.gather({name: value.cpu() for name, value in groups["memory"].items()})
        return groups | {_memory(rank): memory for rank, memory in enumerate(memories)}

    def _mine(self, groups: Groups) -> Groups:
        """The snapshot of this process from that of all."""
        return groups | {"memory": groups.get(_memory(self.processes.rank), {})}

    def _posted(self) -> Guard:
        """A guard at the beginning of the run."""
        rows = self._rows(0)
        step = Step(0, self.seed, self.index[rows], self.recipe.share(0), add=self.processes.add)
        passes = cost(self.original, self.query, self.x[rows], self.y[rows], step)
        return Guard.posted(self.original, self.threat, self.state, self.held, passes * self.batch)

    def _settings(self) -> dict[str, str]:
        """What the trajectory depends on, as a checkpoint keeps it."""
        return {
            "method": repr(self.original),
            "threat": repr(self.threat),
            "recipe": repr(self.recipe),
            "seed": str(self.seed),
            "data": self.data,
            "processes": str(self.processes.count),
        }

    def _rows(self, step: int) -> Tensor:
        """The part of this process in an update's examples: the next of the epoch's order, or the last ones again."""
        batches = len(self.x) // self.batch
        epoch, place = divmod(step // self.method.replays, batches)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mixed(self.seed, epoch))
            self._order = epoch, torch.randperm(len(self.x), generator=generator).to(self.x.device)
        batch = self._order[1][place * self.batch : (place + 1) * self.batch]
        return batch.chunk(self.processes.count)[self.processes.rank]

    def _precision(self) -> AbstractContextManager[object]:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.x.device.type, torch.bfloat16)


def _memory(rank: int) -> str:
    """The group of a checkpoint that holds what the method remembers in one of the processes."""
    return f"memory {rank}" if rank else "memory"


def _read(source: Source) -> tuple[Tensor, Tensor, Tensor]:
    batches = list(source.batches(256))
    index, x, y = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("index", "x", "y"))
    return index, x, y


def _check_labels(y: Tensor, classes: int) -> None:
    """Refuse labels from which nothing, or not everything, can be learned."""
    wrong = ((y < 0) | (y >= classes)).nonzero()[:, 0]
    if len(wrong):
        raise DataError(f"label {int(y[wrong[0]])} is outside the model's classes, 0 to {classes - 1}: mend the labels")
    missing = (y.bincount(minlength=classes) == 0).nonzero()[:, 0]
    if len(missing):
        raise DataError(
            f"class {int(missing[0])} has no training example, but the model knows {classes} classes: give data of "
            "every class, or a model with fewer"
        )


def _held_out(y: Tensor, count: int, seed: int) -> Tensor:
    """``(N,)`` bool, examples that are not learned from: some at random, at most a fifth."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(y), generator=generator)[: min(count, len(y) // 5)]
    return torch.zeros_like(y, dtype=torch.bool).index_fill_(0, chosen.to(y.device), True)


def _devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
