"""The loop against its promises."""

import errno
import itertools
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.zoo import seeded, uniform
from holdfast import L2, DataError, HoldfastError, Linf, ModelError, RunError, SettingError
from holdfast.data import from_tensors, load_data
from holdfast.draws import Draws
from holdfast.models.networks import digits_conv
from holdfast.train import ClassWise, Free, PGDTraining, Recipe, Standard, evaluate, fit, loop
from holdfast.train.augmentation import crop_flip
from holdfast.train.checkpoint import load_checkpoint, save_checkpoint


def test_fit_repeats_itself_and_learns():
    source = load_data("digits", split="train", examples="0:300")

    def train():
        torch.manual_seed(3)
        net = digits_conv()
        return net, fit(net, source, Standard(), Linf(0.1), Recipe(6, batch_size=32, validation=30))

    (first, result), (second, again) = train(), train()
    assert (result.losses, result.epochs) == (again.losses, again.epochs)
    assert not first.training
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    batch = next(iter(source.batches(300)))
    assert (first(batch.x).argmax(1) == batch.y).float().mean() > 0.8


def test_a_loss_that_diverges_stops_with_the_step():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    data = from_tensors(torch.rand(64, 4), torch.arange(64) % 2)
    with torch.no_grad():
        net[1].weight.fill_(torch.inf)
    with pytest.raises(ModelError, match="at step 0 of"):
        fit(net, data, Standard(), L2(0.1), Recipe(1, batch_size=8))


class _StoppedError(Exception):
    pass


def _clusters(count=240, classes=3, seed=0):
    """Points around the corners of a triangle, inside the unit square."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    corners = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.5, 0.8]])
    return from_tensors((corners[y] + 0.08 * torch.randn(count, 2, generator=generator)).clamp(0, 1), y)


def _small(seed=1):
    """A network with everything that a checkpoint has to hold: batch statistics and noise of its own."""
    return seeded(
        lambda: nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)), seed
    )


RECIPE = Recipe(3, batch_size=32, lr=0.02, average=0.9, warmup=0.5, clip=1.0, validation=40)


@pytest.mark.parametrize("stop", [2, 6, 12])
@pytest.mark.parametrize("method", [PGDTraining(Linf(0.05), steps=2), Free(Linf(0.05), replays=2)], ids=["pgd", "free"])
def test_a_run_that_was_killed_ends_with_the_same_weights(method, stop, tmp_path, monkeypatch):
    source, threat = _clusters(), Linf(0.05)
    whole = fit(_small(), source, method, threat, RECIPE)

    def kill(progress):
        if progress.step == stop:
            raise _StoppedError

    # A checkpoint after every step, so that something is there to go on from.
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1)
    with pytest.raises(_StoppedError):
        fit(_small(), source, method, threat, RECIPE, run=tmp_path, on_progress=kill)
    steps = []
    # What the network was before does not matter: the checkpoint has it all.
    again = fit(_small(seed=7), source, method, threat, RECIPE, run=tmp_path, on_progress=lambda now: steps.append(now))
    assert steps[0].step == stop
    assert again.losses == whole.losses
    assert again.epochs == whole.epochs
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_the_best_state_is_what_remains():
    found = fit(_small(), _clusters(), PGDTraining(Linf(0.05), steps=2), Linf(0.05), RECIPE)
    robust = [epoch.evaluation.multi_step for epoch in found.epochs]
    assert found.best.evaluation.multi_step == max(robust)
    assert found.best_step == max(epoch.step for epoch in found.epochs if epoch.evaluation.multi_step == max(robust))
    assert not found.model.training


def test_ordinary_training_is_judged_by_clean_accuracy():
    # Under a budget this large nothing is robust, and of equals the last would remain.
    found = fit(_small(), _clusters(), Standard(), Linf(0.9), replace(RECIPE, epochs=4, lr=0.05))
    clean = [epoch.evaluation.clean for epoch in found.epochs]
    assert found.best.evaluation.clean == max(clean)


def test_held_out_examples_are_attacked_with_budgets_of_their_own(monkeypatch):
    x, seen = uniform(40, 6), []

    def watched(model, threat, x, y, **more):
        seen.append(threat.budget(x).equal(x[:, 0]))
        return evaluate(model, threat, x, y, **more)

    monkeypatch.setattr(loop, "evaluate", watched)
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 2)))
    fit(net, from_tensors(x, torch.arange(40) % 2), Standard(), Linf(x[:, 0]), Recipe(epochs=1, batch_size=16))
    assert seen == [True]


def test_every_example_is_learned_from_once_an_epoch_and_none_that_is_held_out():
    seen = []

    class Watching(Standard):
        def loss(self, model, x, x_adv, y, step):
            seen.append(step.index)
            return super().loss(model, x, x_adv, y, step)

    fit(_small(), _clusters(), Watching(), Linf(0.05), Recipe(2, batch_size=50, validation=40))
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    for epoch in (first, second):
        assert len(epoch) == len(epoch.unique()) == 200
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)


def test_budgets_of_training_grow_to_their_reach():
    budgets = []

    class Watching(Standard):
        def perturb(self, query, x, y, step):
            budgets.append(float(step.around(Linf(0.1), x).budget(x)[0]))
            return x

    fit(_small(), _clusters(), Watching(), Linf(0.1), Recipe(1, batch_size=48, warmup=0.5, reach=1.2, validation=48))
    assert budgets == pytest.approx([0, 0.06, 0.12, 0.12])


def test_the_average_is_what_its_formula_says():
    weights = []

    class Watching(Standard):
        def loss(self, model, x, x_adv, y, step):
            weights.append(model[0].weight.detach().clone())
            return super().loss(model, x, x_adv, y, step)

    net = _small()
    start = net[0].weight.detach().clone()
    found = fit(net, _clusters(), Watching(), Linf(0.05), Recipe(1, batch_size=48, average=0.5, validation=48))
    plain = _small()
    fit(plain, _clusters(), Standard(), Linf(0.05), Recipe(1, batch_size=48, validation=48))
    assert torch.equal(weights[0], start)
    average = start
    for step, weight in enumerate([*weights[1:], plain[0].weight.detach()], 1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(found.model[0].weight.detach(), average)


def test_gradients_longer_than_the_clip_are_shortened():
    source = _clusters()
    before, after = _small(), _small()
    start = before[0].weight.detach().clone()
    fit(after, source, Standard(), Linf(0.05), Recipe(1, 192, "sgd", 1.0, "constant", clip=1e-6, validation=48))
    # One step of Nesterov's momentum goes 1.9 times the gradient.
    assert (after[0].weight - start).norm() <= 1.9e-6 + 1e-7


BAD = {
    "a label out of range": (lambda: from_tensors(torch.rand(40, 2), torch.arange(40) % 4), {}, "label 3 is outside"),
    "a class missing": (lambda: from_tensors(torch.rand(40, 2), torch.arange(40) % 2), {}, "class 2 has no training"),
    "a batch of one": (lambda: _clusters(40), {"batch_size": 1}, "failed in training on a batch of shape"),
    "too few": (lambda: from_tensors(torch.rand(3, 2), torch.arange(3)), {}, "examples"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case):
    make, recipe, message = BAD[case]
    with pytest.raises(HoldfastError, match=message) as caught:
        fit(_small(), make(), Standard(), Linf(0.05), Recipe(1, **recipe))
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_run_is_refused(tmp_path):
    fit(_small(), _clusters(), Standard(), Linf(0.05), RECIPE, run=tmp_path)
    with pytest.raises(RunError, match="its recipe was"):
        fit(_small(), _clusters(), Standard(), Linf(0.05), replace(RECIPE, lr=0.5), run=tmp_path)
    with pytest.raises(ModelError, match="another architecture"):
        fit(nn.Linear(2, 3), _clusters(), Standard(), Linf(0.05), RECIPE, run=tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match="no checkpoint"):
        fit(_small(), _clusters(), Standard(), Linf(0.05), RECIPE, run=tmp_path)


MEMORIES = {
    "missing": lambda memory: memory.clear(),
    "shape": lambda memory: memory.update({key: value[..., :1] for key, value in memory.items()}),
    "type": lambda memory: memory.update({key: value.half() for key, value in memory.items()}),
    "not finite": lambda memory: [value.fill_(torch.nan) for value in memory.values()],
}


@pytest.mark.parametrize("method", [Free(Linf(0.05), replays=2), ClassWise(Standard())], ids=["free", "classwise"])
def test_a_memory_that_the_method_cannot_have_is_refused(tmp_path, method):
    recipe = replace(RECIPE, guard=False)
    run = partial(fit, source=_clusters(), method=method, threat=Linf(0.05), recipe=recipe, run=tmp_path)
    whole, net = run(_small()), _small()
    before = [value.clone() for value in net.state_dict().values()]
    groups, notes = load_checkpoint(tmp_path / "checkpoint.safetensors")
    for spoil in MEMORIES.values():
        spoiled = {name: value.clone() for name, value in groups["memory"].items()}
        spoil(spoiled)
        save_checkpoint(tmp_path / "checkpoint.safetensors", {**groups, "memory": spoiled}, notes)
        with pytest.raises(RunError, match="of the method's memory, "):
            run(net)
        # Looking at what the method remembers has left no trace.
        assert all(map(torch.equal, before, net.state_dict().values()))
    save_checkpoint(tmp_path / "checkpoint.safetensors", groups, notes)
    assert run(_small()).losses == whole.losses


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"model": {"weight": torch.ones(3)}}, {"note": 1})
    monkeypatch.setattr(Path, "replace", _full)
    with pytest.raises(RunError, match="No space left"):
        save_checkpoint(path, {"model": {"weight": torch.zeros(3)}}, {"note": 2})
    groups, notes = load_checkpoint(path)
    assert notes == {"note": 1}
    assert torch.equal(groups["model"]["weight"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def _full(self, target):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_learning_rates_and_budgets_follow_their_schedules():
    recipe = Recipe(10, lr=2.0, peak=0.25, warmup=0.5)
    assert [recipe.rate(progress) for progress in (0.0, 0.125, 0.25, 0.625, 1.0)] == [0, 1, 2, 1, 0]
    assert [recipe.share(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [0, 0.5, 1, 1]
    assert Recipe(10, lr=2.0, schedule="cosine").rate(0.5) == pytest.approx(1)
    assert [Recipe(10, lr=2.0, schedule="steps").rate(p) for p in (0.4, 0.6, 0.8)] == pytest.approx([2, 0.2, 0.02])
    assert Recipe(10, lr=2.0, schedule="constant").rate(0.9) == 2


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": -1.0}, {"schedule": "sometimes"}, {"precision": "fp16"}, {"warmup": 2.0}]
)
def test_recipes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        Recipe(**{"epochs": 1, **wrong})


def test_augmentation_shifts_and_mirrors():
    x = uniform(64, 2, 9, 9)
    index = torch.arange(64)
    changed = crop_flip(x, Draws(3, index, 50, 7))
    assert torch.equal(changed[5:9], crop_flip(x[5:9], Draws(3, index[5:9], 50, 7)))
    padded = functional.pad(x, (4, 4, 4, 4))
    kinds = set()
    for before, after in zip(padded, changed, strict=True):
        found = {
            (down, right, mirrored)
            for down, right, mirrored in itertools.product(range(9), range(9), (False, True))
            if torch.equal(before[:, down : down + 9, right : right + 9], after.flip(2) if mirrored else after)
        }
        assert len(found) == 1
        kinds |= found
    assert len(kinds) > 40
    assert {mirrored for _, _, mirrored in kinds} == {False, True}


def test_evaluation_counts_what_brute_force_counts():
    # On a linear network PGD ends at the worst corner, so every accuracy is known.
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    x, eps = uniform(60, 4), 0.1
    y = torch.where(uniform(60, seed=3) < 0.8, net(x).argmax(1), 1 - net(x).argmax(1))
    found = evaluate(net, Linf(eps, box=None), x, y, seed=0)
    w = net[1].weight[1] - net[1].weight[0]
    margin = (2 * y - 1) * (net(x)[:, 1] - net(x)[:, 0])
    robust = margin > eps * w.abs().sum()
    assert found.clean == pytest.approx(float((margin > 0).double().mean()))
    assert found.single_step == found.multi_step == pytest.approx(float(robust.double().mean()))
    assert found.alignment == pytest.approx(1, abs=1e-5)
    assert found.per_class == pytest.approx([float(robust[y == label].double().mean()) for label in (0, 1)])


def test_what_is_frozen_stays_frozen():
    net = _small().train()
    net[1].eval()
    before = net[1].running_mean.clone()
    fit(net, _clusters(), Standard(), Linf(0.05), Recipe(1, batch_size=48, validation=48))
    assert torch.equal(net[1].running_mean, before)
    thawed = _small()
    fit(thawed, _clusters(), Standard(), Linf(0.05), Recipe(1, batch_size=48, validation=48))
    assert not torch.equal(thawed[1].running_mean, before)


def test_alignment_is_measured_on_confident_examples_too():
    # Gradients shorter than 1e-8, which a floor in the denominator would call unaligned.
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with torch.no_grad():
        net[1].bias += torch.tensor([30.0, 0.0])
    found = evaluate(net, Linf(0.01, box=None), uniform(8, 4), torch.zeros(8, dtype=torch.int64), seed=0)
    assert found.alignment == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_of_no_class_are_not_judged(label):
    with pytest.raises(DataError, match=rf"^example 2 has label {label}, but the model knows classes 0 to 2$"):
        evaluate(_small(), Linf(0.05), uniform(3, 2), torch.tensor([0, 1, label]), seed=0)


def test_one_example_is_enough_to_judge_by():
    found = fit(_small(), _clusters(), Standard(), Linf(0.05), Recipe(1, batch_size=48, validation=1))
    assert found.best.evaluation.clean in (0, 1)
