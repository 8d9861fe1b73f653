"""The training loop."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.data import Source
from holdfast.errors import DataError, HoldfastError, ModelError, RunError
from holdfast.models.query import Query
from holdfast.threats import Threat
from holdfast.train.augmentation import crop_flip
from holdfast.train.checkpoint import load_checkpoint, save_checkpoint
from holdfast.train.evaluation import Evaluation, evaluate
from holdfast.train.method import Method
from holdfast.train.recipe import Recipe
from holdfast.train.result import Epoch, Progress, TrainingResult
from holdfast.train.state import State
from holdfast.train.step import Step

__all__ = ["fit"]

CHECKPOINT = "checkpoint.safetensors"
# A run that is killed loses at most about this many seconds.
_SAVE_SECONDS = 30.0
_PGD_STEPS = 10
# Where augmentation's random numbers come from; methods draw from the first few lanes.
_AUGMENTATION = 50


def fit(
    model: nn.Module,
    source: Source,
    method: Method,
    threat: Threat,
    recipe: Recipe,
    *,
    run: Path | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainingResult:
    """Train a model in place.

    After every epoch it is attacked on held-out training examples, and the state that is best at what the method is
    after is what the model is left in. Everything random depends on ``seed`` and on the number of the step, so a run that was
    stopped at any moment ends with the same weights as one that was not.

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
    on_progress : callable
        Called after every step.

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
    """
    return _Training(model, source, method, threat, recipe, run, seed, on_progress).finish()


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
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.method, self.threat, self.recipe, self.run, self.seed = method, threat, recipe, run, seed
        self.on_progress = on_progress
        device = next(model.parameters()).device
        index, x, y = (column.to(device) for column in _read(source))
        held = _held_out(y, recipe.validation, seed)
        self.held = index[held], x[held], y[held]
        self.index, self.x, self.y = index[~held], x[~held], y[~held]
        self.batch = min(recipe.batch_size, len(self.x))
        self.updates = recipe.epochs * (len(self.x) // self.batch)
        self.query = Query(model, batch_size=self.batch)
        with self.query:
            classes = self.query.bare_logits(self.x[: self.batch]).shape[1]
        _check_labels(y, classes)
        self.state = State.fresh(model, recipe)
        self.best: _Best | None = None
        self.losses: list[float] = []
        self.epochs: list[Epoch] = []
        self._order: tuple[int, Tensor] | None = None
        self.saved = time.monotonic()
        if run is not None:
            self._resume(run / CHECKPOINT)

    @property
    def per_epoch(self) -> int:
        return self.updates // self.recipe.epochs

    def finish(self) -> TrainingResult:
        """Go on to the end, and leave the model in its best state."""
        state, model = self.state, self.state.model
        began, first = time.monotonic(), state.step
        # A model's own noise, such as dropout, draws from the global generator, which is given back as it was.
        with torch.random.fork_rng(devices=_devices(model)):
            try:
                while state.step < self.updates:
                    self.losses.append(self.advance(self._rows(state.step)))
                    evaluation = self.judge() if state.step % self.per_epoch == 0 else None
                    left = (time.monotonic() - began) / (state.step - first) * (self.updates - state.step)
                    self.on_progress(Progress(state.step, self.updates, self.losses[-1], evaluation, left))
                    if time.monotonic() - self.saved > _SAVE_SECONDS:
                        self.save()
            finally:
                self.save()
        assert self.best is not None
        model.load_state_dict(self.best.weights)
        model.eval()
        return TrainingResult(tuple(self.epochs), tuple(self.losses), self.best.step)

    def advance(self, rows: Tensor) -> float:
        """One update with the examples ``rows``; its loss."""
        state, recipe = self.state, self.recipe
        progress = state.step / self.updates
        step = Step(
            state.step, self.seed, self.index[rows], recipe.share(progress), recipe.label_smoothing, state.memory
        )
        x, y = self.x[rows], self.y[rows]
        if recipe.augmentation == "crop-flip":
            x = crop_flip(x, step.draws(lane=_AUGMENTATION))
        torch.manual_seed((self.seed << 32) + state.step)
        state.model.train()
        with self._precision():
            with self.query:
                x_adv = self.method.perturb(self.query, x, y, step)
            loss = self._loss(x, x_adv.detach(), y, step)
        value = loss.item()
        if not torch.isfinite(loss):
            kept = "" if self.run is None else f"; the last good state is kept in {self.run}"
            raise ModelError(
                f"the loss became {value} at step {state.step} of {self.updates}: lower the learning rate{kept}"
            )
        state.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
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
            return self.method.loss(self.state.model, x, x_adv, y, step)
        except (HoldfastError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"the model failed in training on a batch of shape {tuple(x.shape)}: {type(error).__name__}: {reason}"
            ) from error

    def judge(self) -> Evaluation:
        """Attack the held-out examples, and keep the state where it is the best yet."""
        state = self.state
        _, x, y = self.held
        judged = state.judged()
        found = evaluate(judged, self.threat, x, y, seed=self.seed, steps=_PGD_STEPS)
        losses = self.losses[-self.per_epoch :]
        self.epochs.append(Epoch(state.step // self.per_epoch, state.step, sum(losses) / len(losses), found))
        accuracy = found.clean if self.method.judged_by == "clean" else found.multi_step
        # Of equals the later one has learned more.
        if self.best is None or accuracy >= self.best.accuracy:
            weights = {name: value.detach().clone() for name, value in judged.state_dict().items()}
            self.best = _Best(accuracy, state.step, weights)
        return found

    def save(self) -> None:
        """Write everything to the run's folder, if there is one."""
        if self.run is None:
            return
        groups = self.state.snapshot()
        groups["losses"] = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        notes: dict[str, Any] = {"settings": self._settings(), "epochs": [epoch.to_dict() for epoch in self.epochs]}
        if self.best is not None:
            groups["best"] = self.best.weights
            notes["best"] = [self.best.accuracy, self.best.step]
        save_checkpoint(self.run / CHECKPOINT, groups, notes)
        self.saved = time.monotonic()

    def _resume(self, path: Path) -> None:
        """Go on from what the run's folder holds, if it holds anything."""
        if not path.exists():
            return
        groups, notes = load_checkpoint(path)
        mine = self._settings()
        for key, before in notes["settings"].items():
            if mine.get(key) != before:
                raise RunError(
                    f"{path.parent} holds another run: its {key} was {before}, and now is {mine.get(key)}; give "
                    "another folder, or the same settings to resume"
                )
        self.state.restore(groups)
        self.losses = groups["losses"]["losses"].tolist()
        self.epochs = [Epoch.from_dict(epoch) for epoch in notes["epochs"]]
        if "best" in notes:
            device = self.x.device
            weights = {name: value.to(device) for name, value in groups["best"].items()}
            accuracy, step = notes["best"]
            self.best = _Best(accuracy, step, weights)

    def _settings(self) -> dict[str, str]:
        """What the trajectory depends on, as a checkpoint keeps it."""
        return {
            "method": repr(self.method),
            "threat": repr(self.threat),
            "recipe": repr(self.recipe),
            "seed": str(self.seed),
            "training examples": str(len(self.x)),
        }

    def _rows(self, step: int) -> Tensor:
        """The examples of an update: the next of the epoch's order, or those of the last update once more."""
        batches = len(self.x) // self.batch
        epoch, place = divmod(step // self.method.replays, batches)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self.seed << 32) + epoch)
            self._order = epoch, torch.randperm(len(self.x), generator=generator).to(self.x.device)
        return self._order[1][place * self.batch : (place + 1) * self.batch]

    def _precision(self) -> AbstractContextManager[object]:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.x.device.type, torch.bfloat16)


def _read(source: Source) -> tuple[Tensor, Tensor, Tensor]:
    batches = list(source.batches(4096))
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
