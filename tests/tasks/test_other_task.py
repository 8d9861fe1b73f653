"""A task that is not classification goes through the engine as it is: four pixels, each of one class or the other."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch.nn import functional

from helpers.attacks import assert_same
from helpers.zoo import linear, uniform
from holdfast.attacks import APGD, FGSM, MIFGSM, PGD
from holdfast.data import Batch
from holdfast.engine import Stage, drive
from holdfast.errors import DataError, SettingError
from holdfast.models import Query
from holdfast.threats import Linf

PIXELS, FEATURES, COUNT = 4, 6, 60


@dataclass(frozen=True)
class Segmentation:
    """Answers are ``(N, 4)``, positive where a pixel is of class 1; labels say it of each pixel."""

    threshold: float = 0.5

    def check(self, index, answer, y, target):
        if y.shape != answer.shape:
            raise DataError(f"example {int(index[0])} has {y[0].numel()} labels for {answer.shape[1]} pixels")

    def prediction(self, answer):
        return (answer > 0).long()

    def wrong(self, answer, y, target):
        wrong = self.prediction(answer) != y if target is None else self.prediction(answer) == target
        return (wrong | answer.isnan()).to(answer.dtype).mean(1)

    def objective(self, name, y, target):
        def towards(answer):
            return answer * (1 - 2 * y if target is None else 2 * target - 1)

        if name == "margin":  # of so many pixels as make too large a share
            return lambda answer: towards(answer).sort(1, descending=True).values[:, int(PIXELS * self.threshold)]
        if name == "ce":
            return lambda answer: functional.softplus(towards(answer)).sum(1)
        raise SettingError(f"unknown objective {name!r}: choose ce or margin")


def model():
    weight = 2 * uniform(PIXELS, FEATURES, seed=1, dtype=torch.float64) - 1
    return linear(weight, -weight.sum(1) / 2)


def examples():
    x = uniform(COUNT, FEATURES, seed=2)
    answer = model()(x.double()).detach()
    y = (answer > 0).long()
    y[::7, 0] = 1 - y[::7, 0]  # one pixel of these is wrong as it is
    y[::20] = 1 - y[::20]  # and all but that of these
    return x, y


def run(*attacks, task=None, eps=0.12, target=None, batch_size=16, source=16, samples=1):
    x, y = examples()
    with Query(model(), batch_size=batch_size) as query:
        stages = [Stage(f"{number}", attack) for number, attack in enumerate(attacks)]
        batches = [Batch(i, x[i], y[i]) for i in torch.arange(COUNT).split(source)]
        task = Segmentation() if task is None else task
        steps = drive(query, Linf(eps), stages, batches, task=task, target=target, samples=samples)
        return {outcome.index: outcome for some in steps for outcome in some}


def shares(x):
    """The share of each example that is wrong at an input, by hand."""
    answer = model()(x.double()).detach().numpy()
    return ((answer > 0) != (examples()[1].numpy() == 1)).mean(1)


def reached(eps, count):
    """``(N,)`` the best that an adversary can do for the worst of any ``count`` pixels: a linear program for each."""
    x, y = (part.numpy().astype(float) for part in examples())
    layer = model()[1]
    weight, bias = (part.detach().numpy() for part in (layer.weight, layer.bias))
    best = []
    for row, label in zip(x, y, strict=True):
        signs = 1 - 2 * label
        bounds = [(max(0.0, v - eps), min(1.0, v + eps)) for v in row] + [(None, None)]
        found = [
            -linprog(
                [0.0] * FEATURES + [-1.0],
                A_ub=np.c_[-signs[some, None] * weight[some], np.ones(count)],
                b_ub=signs[some] * bias[some],
                bounds=bounds,
            ).fun
            for some in map(list, combinations(range(PIXELS), count))
        ]
        best.append(max(found))
    return np.array(best)


STRONG = (PGD(steps=30, restarts=4, objective="margin"), PGD(steps=20, objective="ce"))


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("eps", [0.05, 0.12])
def test_those_are_broken_that_can_be(threshold, eps):
    """All but a few of the others that can be by a hair: of several pixels the margin is not concave."""
    outcomes = run(*STRONG, task=Segmentation(threshold), eps=eps)
    possible = reached(eps, int(PIXELS * threshold) + 1)
    broken = np.array([outcomes[i].verdict != "robust" for i in range(COUNT)])
    assert 0 < broken.sum() < COUNT
    assert not (broken & (possible < -1e-6)).any()
    assert broken[possible > 0.1].all()
    assert (broken == (possible > 0)).mean() > 0.9


def test_an_outcome_says_how_much_is_wrong():
    outcomes = run(*STRONG)
    x, y = examples()
    found = torch.stack([outcomes[i].x_adv for i in range(COUNT)])
    assert float((found - x).abs().max()) <= 0.12 + 1e-6
    clean, attacked = shares(x), shares(found)
    most = np.max([(reached(0.12, count) > -1e-6) * count / PIXELS for count in range(1, PIXELS + 1)], axis=0)
    verdicts = set()
    for i, outcome in outcomes.items():
        verdicts.add(outcome.verdict)
        assert outcome.label == y[i].tolist()
        assert outcome.clean_prediction == (model()(x[i : i + 1].double())[0] > 0).long().tolist()
        assert outcome.clean_wrong == clean[i]
        assert clean[i] <= outcome.attacked_wrong <= most[i]
        assert (outcome.attacked_wrong > 0.5) == (outcome.verdict in ("broken", "misclassified"))
        if outcome.verdict in ("broken", "misclassified"):
            assert outcome.attacked_wrong == attacked[i]
    assert verdicts == {"robust", "broken", "misclassified"}
    # What stands is not whole: pixels of it are wrong, clean and more of them attacked.
    standing = [outcome for outcome in outcomes.values() if outcome.verdict == "robust"]
    assert any(outcome.clean_wrong > 0 for outcome in standing)
    assert any(outcome.clean_wrong < outcome.attacked_wrong for outcome in standing)


def test_what_stands_is_as_wrong_as_it_was_seen_to_be():
    """By its two looks, at the clean input and at a single step, where nothing is ever enough to be broken."""
    x, y = examples()
    inputs = x.double().requires_grad_(True)
    rise = Segmentation().objective("ce", y, None)(model()(inputs)).sum()
    stepped = (x + 0.12 * torch.autograd.grad(rise, inputs)[0].sign()).clamp(0, 1)
    outcomes = run(FGSM(), task=Segmentation(0.75))
    seen = np.maximum(shares(x), shares(stepped))
    standing = [i for i in range(COUNT) if outcomes[i].verdict == "robust"]
    assert [outcomes[i].attacked_wrong for i in standing] == seen[standing].tolist()
    assert (seen > shares(x))[standing].sum() > 10


@pytest.mark.parametrize(
    "attack", [PGD(steps=20, objective="margin"), MIFGSM(steps=20), APGD(steps=20, objective="ce")]
)
def test_attacks_know_nothing_of_it(attack):
    outcomes = run(attack)
    assert any(outcome.verdict == "broken" for outcome in outcomes.values())
    assert_same(run(attack, source=60), outcomes)


def test_a_target_that_is_all_that_is_wrong():
    _, y = examples()
    assert_same(run(*STRONG, target=1 - y), run(*STRONG))


def test_of_several_looks_more_than_half_must_see_it_broken():
    attack = PGD(steps=10)
    once, often = run(attack), run(attack, samples=3)
    for i, outcome in once.items():
        assert (outcome.verdict, outcome.clean_wrong) == (often[i].verdict, often[i].clean_wrong)
        assert (outcome.attacked_wrong, outcome.clean_prediction) == (
            often[i].attacked_wrong,
            often[i].clean_prediction,
        )


def test_labels_that_do_not_fit():
    x, _ = examples()
    with Query(model(), batch_size=16) as query:
        batch = Batch(torch.arange(5, 10), x[:5], torch.zeros(5, 3, dtype=torch.long))
        with pytest.raises(DataError, match="example 5 has 3 labels for 4 pixels"):
            list(drive(query, Linf(0.1), [Stage("pgd", PGD())], [batch], task=Segmentation()))


def test_an_objective_that_it_lacks():
    with pytest.raises(SettingError, match="unknown objective 'dlr': choose ce or margin"):
        run(PGD(objective="dlr"))
