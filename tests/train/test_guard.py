"""The guard: what it notices, what it does then, and that nothing else changes."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from helpers.shared import SHARED, needs_shared
from holdfast import Linf
from holdfast.data import from_tensors, load_data
from holdfast.models.architectures import make_network
from holdfast.models.query import Query
from holdfast.processes import ALONE
from holdfast.train import (
    AWP,
    FGSMRS,
    IBP,
    NFGSM,
    TRADES,
    ClassWise,
    Evaluation,
    FGSMTraining,
    Free,
    GradAlign,
    Method,
    PGDTraining,
    Recipe,
    Standard,
    Step,
    evaluate,
    fit,
    guard,
    loop,
)
from holdfast.train.escalation import escalation, title
from holdfast.train.guard import Event, Guard, cost
from holdfast.train.state import State

SMALL, LARGE = Linf("8/255"), Linf(0.3)
FINE = Evaluation(0.9, 0.8, 0.7, 0.8, (0.7, 0.7))
COLLAPSED = Evaluation(0.9, 0.9, 0.0, 0.1, (0.0, 0.0))


def blobs(count=96):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 2
    return (torch.rand(count, 6, generator=generator) * 0.6 + 0.4 * y[:, None]), y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def posted(method, threat=LARGE):
    """A guard over 40 examples, and the state that it watches."""
    state = State.fresh(network(), Recipe(1))
    x, y = blobs(40)
    return Guard.posted(method, threat, state, (torch.arange(40), x, y), passes=200.0), state


@pytest.fixture
def sees(monkeypatch):
    """Lets a guard see what a test says: by its step and by how many collapses there have been."""

    def script(told, otherwise=FINE):
        look = Guard.look

        def scripted(self, state, *rest):
            found = told.get((state.step, self.rung), otherwise)
            monkeypatch.setattr(guard, "evaluate", lambda *arguments, **settings: found)
            return look(self, state, *rest)

        monkeypatch.setattr(Guard, "look", scripted)

    return script


def look(watch, state, monkeypatch, single, multi, share=1.0):
    found = Evaluation(0.9, single, multi, 0.5, ())
    monkeypatch.setattr(guard, "evaluate", lambda *arguments, **settings: found)
    state.step += watch.every
    return watch.look(state, share, 0, ALONE)


def test_each_method_escalates_for_the_same_threat():
    noisy = escalation(FGSMTraining(SMALL))
    assert [type(method) for method in noisy] == [FGSMRS, NFGSM, GradAlign, *[PGDTraining] * 3]
    # Noise that is not small against the box drowns the inputs, and a penalty to match the budget all learning.
    assert [type(method) for method in escalation(FGSMTraining(LARGE))] == [FGSMRS, *[PGDTraining] * 3]
    assert escalation(NFGSM(SMALL))[:2] == (NFGSM(SMALL, step_size=0.8), NFGSM(SMALL, noise=3.0, step_size=0.8))
    assert [type(method) for method in escalation(NFGSM(LARGE))] == [PGDTraining] * 3
    assert escalation(FGSMRS(SMALL))[0] == FGSMRS(SMALL, step_size=1.0)
    assert escalation(GradAlign(SMALL, weight=0.5))[0] == GradAlign(SMALL, weight=2.0)
    steps = [2, 3, 5]
    for method in (FGSMTraining(SMALL), FGSMRS(LARGE), NFGSM(LARGE), GradAlign(SMALL), Free(SMALL)):
        rungs = escalation(method)
        assert [rung.steps for rung in rungs[-3:]] == steps
        assert all(rung.threat is method.threat for rung in rungs)
    wrapped = escalation(AWP(ClassWise(FGSMTraining(SMALL), power=0.3), gamma=0.02))
    assert wrapped == tuple(AWP(ClassWise(method, power=0.3), gamma=0.02) for method in noisy)
    for method in (PGDTraining(SMALL), TRADES(SMALL), IBP(SMALL), Standard(), AWP(TRADES(SMALL))):
        assert escalation(method) == ()


def test_a_method_is_called_what_its_user_calls_it():
    assert title(AWP(FGSMRS(SMALL))) == "awp:fgsm-rs (step_size 1.25)"
    assert title(PGDTraining(SMALL, steps=2)) == "pgd (steps 2)"


def test_a_collapse_is_seen_at_once_and_a_healthy_gap_never(monkeypatch):
    watch, state = posted(FGSMTraining(LARGE))
    for single, multi in [(0.3, 0.2), (0.5, 0.35), (0.55, 0.5), (0.7, 0.5), *[(0.7, 0.6)] * 9, (0.9, 0.71), (0.8, 0.7)]:
        assert look(watch, state, monkeypatch, single, multi) is None
    event = look(watch, state, monkeypatch, 0.95, 0.3)
    assert (event.step, event.back_to) == (16 * watch.every, state.step) == (16 * watch.every, 15 * watch.every)
    assert type(watch.method) is FGSMRS
    assert "fgsm-rs (step_size 1.25)" in str(event)
    assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_a_gap_is_no_collapse_while_robustness_grows(monkeypatch):
    watch, state = posted(FGSMTraining(LARGE))
    for robust in (0.1, 0.2, 0.3, 0.4):
        assert look(watch, state, monkeypatch, robust + 0.4, robust) is None
    # But no state to go back to.
    assert look(watch, state, monkeypatch, 0.8, 0.4).back_to == 0


def test_a_drop_counts_where_budgets_have_not_grown_as_much(monkeypatch):
    watch, state = posted(FGSMTraining(LARGE))
    for share, robust in [(0.2, 0.95), (0.6, 0.7), (1.0, 0.45), (1.0, 0.65), (1.0, 0.5)]:
        assert look(watch, state, monkeypatch, robust + 0.05, robust, share) is None
    assert look(watch, state, monkeypatch, 0.45, 0.4).back_to == 5 * watch.every


def test_repeated_collapses_lead_farther_back_and_then_to_the_end(monkeypatch):
    watch, state = posted(FGSMTraining(LARGE))
    for robust in (0.7, 0.7, 0.7):
        assert look(watch, state, monkeypatch, 0.8, robust) is None
    every, methods = watch.every, len(watch.methods)
    events = []
    for _ in range(methods):
        # The first look at a new method tells where it begins.
        found = [look(watch, state, monkeypatch, 0.9, 0.0) for _ in range(2)]
        events += [event for event in found if event]
    assert [event.back_to for event in events] == [3 * every, *[2 * every] * (methods - 2), None]
    assert events[-1].method == "pgd (steps 5)"
    assert "nothing is left" in str(events[-1])
    assert [look(watch, state, monkeypatch, 0.9, 0.0) for _ in range(3)] == [None] * 3


def test_a_method_of_many_steps_is_only_watched(monkeypatch):
    watch, state = posted(PGDTraining(LARGE))
    before = state.model[0].weight.detach().clone()
    assert not watch.good
    with torch.no_grad():
        state.model[0].weight.zero_()
    found = [look(watch, state, monkeypatch, 0.9, 0.1) for _ in range(4)]
    assert [event and event.back_to for event in found] == [None, None, None, None]
    assert [event is None for event in found] == [True, False, True, True]
    assert watch.method == PGDTraining(LARGE)
    assert not torch.equal(state.model[0].weight, before)


@pytest.mark.parametrize(
    ("method", "passes"), [(FGSMTraining(LARGE), 2), (FGSMRS(LARGE), 2), (PGDTraining(LARGE), 8), (Free(LARGE), 1)]
)
@pytest.mark.parametrize("batch", [8, 32, 100, 512])
def test_it_costs_at_most_3_percent(method, passes, batch):
    model = network().eval()
    x, y = blobs(2000)
    found = cost(method, Query(model, batch_size=batch), x[:batch], y[:batch], Step(0, 0, torch.arange(batch)))
    assert found == passes
    watch = Guard.posted(method, LARGE, State.fresh(model, Recipe(1)), (torch.arange(2000), x, y), passes * batch)
    forwards, backwards = [], []
    model.register_forward_hook(lambda module, inputs, logits: forwards.append(len(logits)))
    model[0].register_full_backward_hook(lambda module, inputs, outputs: backwards.append(len(outputs[0])))
    evaluate(model, watch.threat, watch.x, watch.y, seed=0, steps=10)
    assert (sum(forwards) + sum(backwards)) / 2 <= 0.03 * watch.every * batch * passes
    assert watch.every >= 200


@dataclass(frozen=True)
class Switching:
    """One method up to a step, and another from then on."""

    before: Method
    after: Method
    at: int
    replays = 1
    judged_by = "robust"

    def _now(self, step):
        return self.before if step.number < self.at else self.after

    def perturb(self, query, x, y, step):
        return self._now(step).perturb(query, x, y, step)

    def loss(self, model, x, x_adv, y, step):
        return self._now(step).loss(model, x, x_adv, y, step)


RECIPE = Recipe(6, batch_size=11, average=0.9, warmup=0.3, lr=0.02)
METHOD = ClassWise(FGSMTraining(LARGE))


def train(method, recipe=RECIPE, run=None, on_progress=lambda progress: None):
    model = network()
    result = fit(model, from_tensors(*blobs()), method, LARGE, recipe, run=run, seed=5, on_progress=on_progress)
    return model, result


def same(first, second):
    (model, result), (other, again) = first, second
    assert (result.losses, result.epochs, result.best_step) == (again.losses, again.epochs, again.best_step)
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_going_back_is_as_if_nothing_had_been_since(sees, monkeypatch):
    # 7 updates an epoch: what is undone, from 10 to 15, has the end of one in it.
    monkeypatch.setattr(guard, "_STEPS", 5)
    monkeypatch.setattr(guard, "_COST", 100.0)
    sees({(15, 0): COLLAPSED})
    steps = []
    mended = train(METHOD, on_progress=lambda progress: steps.append(progress.step))
    (event,) = mended[1].events
    assert (event.step, event.back_to, event.method) == (15, 10, "class-wise:fgsm-rs (step_size 1.25)")
    assert steps == [*range(1, 15), *range(10, 43)]
    unguarded = replace(RECIPE, guard=False)
    same(mended, train(Switching(METHOD, ClassWise(FGSMRS(LARGE)), at=10), unguarded))
    assert mended[1].to_dict()["events"] == [event.to_dict()]


def test_a_guard_that_sees_nothing_changes_nothing(sees):
    monkeypatched = train(METHOD)
    same(monkeypatched, train(METHOD, replace(RECIPE, guard=False)))
    assert monkeypatched[1].events == ()


@pytest.mark.parametrize("killed", [3, 12, 17, 20, 33, 44])
def test_a_run_that_was_killed_ends_as_one_that_was_not(sees, monkeypatch, tmp_path, killed):
    monkeypatch.setattr(guard, "_STEPS", 5)
    monkeypatch.setattr(guard, "_COST", 100.0)
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)
    sees({(15, 0): COLLAPSED, (15, 1): COLLAPSED, (20, 1): COLLAPSED, (30, 2): COLLAPSED})
    whole = train(METHOD)
    assert [event.back_to for event in whole[1].events] == [10, 5, 25]
    seen = []

    def kill(progress):
        seen.append(progress)
        if len(seen) == killed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(METHOD, run=tmp_path, on_progress=kill)
    resumed = train(METHOD, run=tmp_path)
    same(resumed, whole)
    assert resumed[1].events == whole[1].events


@pytest.mark.slow
@needs_shared
def test_single_steps_collapse_without_it_and_are_mended_with_it(monkeypatch):
    # So short a run has to be looked at more often than would be worth its while.
    monkeypatch.setattr(guard, "_STEPS", 100)
    monkeypatch.setattr(guard, "_COST", 1.0)
    source = load_data(f"mnist:{SHARED / 'data' / 'mnist'}", split="train", examples="0:6000")
    recipe = Recipe(5, batch_size=50, lr=5e-3, clip=1.0, warmup=0.3, validation=300)

    def trained(recipe):
        torch.manual_seed(0)
        network = make_network("conv-small", source.shape, 10)
        return fit(network, source, FGSMTraining(LARGE), LARGE, recipe)

    collapsed = trained(replace(recipe, guard=False)).epochs[-1].evaluation
    assert collapsed.gap > 0.4
    result = trained(recipe)
    mended = result.epochs[-1].evaluation
    assert result.events[0].evaluation.gap > 0.3
    assert mended.multi_step > collapsed.multi_step + 0.2
    assert mended.gap < 0.3
