"""Training in two processes against training in one."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.processes import together
from holdfast import Linf, ModelError, Processes, RunError, SettingError, load_data
from holdfast.processes import ALONE
from holdfast.train import AWP, ClassWise, Free, Method, PGDTraining, Progress, Recipe, fit, loop

THREAT = Linf(0.1)
METHODS = {
    "pgd": PGDTraining(THREAT, steps=2),
    "free": Free(THREAT, replays=2),
    # What these two do depends on the whole batch.
    "awp": AWP(PGDTraining(THREAT, steps=2)),
    "classwise": ClassWise(PGDTraining(THREAT, steps=2)),
}
KILLED_AT = 7


def network(norm: bool) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(128, 10))


def learn(processes: Processes, method: Method, norm: bool = False, run: Path | None = None, batch: int = 60, **more):
    model = network(norm)
    if processes.rank:
        # Whatever the others start from, they go on from what the main one has.
        with torch.no_grad():
            model[0].weight.add_(1)
    source = load_data("digits", split="train", examples="0:330")
    recipe = Recipe(3, batch_size=batch, validation=30, lr=1e-2, average=0.9)
    result = fit(model, source, method, THREAT, recipe, run=run, processes=processes, **more)
    # Compared as text: numbers that are not known differ from themselves.
    return (
        result.losses,
        repr(result.epochs),
        {name: value.detach().clone() for name, value in model.state_dict().items()},
    )


def learn_all(processes: Processes) -> dict[str, tuple]:
    return {name: learn(processes, method) for name, method in METHODS.items()}


@pytest.fixture(scope="module")
def both() -> list[dict[str, tuple]]:
    return together(learn_all)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_take_the_steps_of_one(both, name):
    (losses, epochs, weights), (others, same, twins) = (found[name] for found in both)
    assert (losses, epochs) == (others, same)
    assert all(map(torch.equal, weights.values(), twins.values()))
    alone, _, alone_weights = learn(ALONE, METHODS[name])
    assert len(losses) == len(alone) == 15
    # But for rounding, which signs of tiny gradients may enlarge.
    assert losses == pytest.approx(alone, abs=1e-3)
    for mine, theirs in zip(weights.values(), alone_weights.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-2)


def test_batch_norm_is_the_same_everywhere():
    (losses, epochs, first), (others, same, second) = together(learn, METHODS["pgd"], True)
    assert (losses, epochs) == (others, same)
    assert all(map(torch.equal, first.values(), second.values()))
    assert first["1.num_batches_tracked"] > 0
    # Each normalises its own part of a batch, so the curve is near, not the same; the means are those of the batch.
    alone, _, weights = learn(ALONE, METHODS["pgd"], True)
    assert losses == pytest.approx(alone, abs=0.15)
    torch.testing.assert_close(first["1.running_mean"], weights["1.running_mean"], rtol=0, atol=0.1)


def learn_and_die(processes: Processes, run: Path) -> None:
    loop._SAVE_SECONDS = 0

    def watch(progress: Progress) -> None:
        if progress.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    learn(processes, METHODS["free"], run=run, on_progress=watch)


def test_killed_and_resumed_ends_the_same(both, tmp_path):
    first, second = together(learn_and_die, tmp_path)
    assert first is None
    assert isinstance(second, RunError)
    # In one process it would be another trajectory.
    with pytest.raises(RunError, match="its processes was 2, and now is 1"):
        learn(ALONE, METHODS["free"], run=tmp_path)
    for resumed in together(learn, METHODS["free"], False, tmp_path):
        losses, epochs, weights = resumed
        assert (losses, epochs) == both[0]["free"][:2]
        assert all(map(torch.equal, weights.values(), both[0]["free"][2].values()))


class Lost(nn.Sequential):
    """NaN in training, in the second process alone."""

    def forward(self, x):
        return super().forward(x) * (torch.nan if self.training and os.environ["RANK"] == "1" else 1.0)


def diverge(processes: Processes) -> None:
    source = load_data("digits", split="train", examples="0:330")
    model = Lost(*network(False))
    fit(model, source, METHODS["pgd"], THREAT, Recipe(1, batch_size=60, validation=30), processes=processes)


def test_a_loss_that_diverges_in_one_process_stops_all():
    for error in together(diverge):
        assert isinstance(error, ModelError)
        assert "the loss became nan at step 0" in str(error)


def test_parts_of_a_batch_must_be_equal():
    for error in together(learn, METHODS["pgd"], False, None, 61):
        assert isinstance(error, SettingError)
        assert "61 examples are not 2 equal parts" in str(error)
