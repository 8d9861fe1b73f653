"""The worst of random choices against looking at each of them."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from helpers.attacks import EPS, NORMS, examples, predict
from helpers.set_attacks import check_set_attack
from helpers.zoo import convnet
from holdfast import SettingError
from holdfast.attacks import WorstOfK, craft
from holdfast.attacks.worst_of_k import worst_of
from holdfast.draws import Draws
from holdfast.models.query import Query
from holdfast.threats import Spatial


def moves(share):
    return Spatial(rotation=share * 6.0, translation=share * 0.15)


def test_shared():
    check_set_attack(WorstOfK(20), moves, forwards=20, backwards=0)


@pytest.mark.parametrize("threat", [moves(1.0), *(NORMS[norm](2 * EPS[norm]) for norm in NORMS)], ids=lambda t: t.name)
def test_breaks_what_one_of_its_choices_breaks(threat):
    model = convnet()
    x, y = examples(model)
    x = x[:12]
    y = predict(model, x)
    looks = [threat.apply(x, threat.sample(x, Draws(3, torch.arange(12), 0, draw))) for draw in range(15)]
    wrong = torch.stack([predict(model, look) != y for look in looks])
    result = craft(WorstOfK(15), model, x, y, threat=threat, seed=3)
    assert torch.equal(result.success, wrong.any(0))
    assert (result.forwards[~result.success] == 16).all()
    first = wrong.double().argmax(0)
    assert torch.equal(result.forwards[result.success], first[result.success] + 3)
    for i in (~result.success).nonzero()[:, 0].tolist():
        logits = torch.stack([model(look)[i] for look in looks])
        others = logits[:, torch.arange(5) != y[i]].amax(1)
        assert float(result.objective[i]) == pytest.approx(float((others - logits[:, y[i]]).max().detach()), abs=1e-5)


def test_the_inner_problem_of_training_takes_the_choice_of_the_highest_loss():
    model = convnet()
    x, y = examples(model)
    threat, draws = moves(1.0), Draws(5, torch.arange(len(x)), 7, 2)
    with Query(model, batch_size=len(x)) as query:
        worst = worst_of(query, threat, x, draws, lambda logits: cross_entropy(logits, y, reduction="none"), 6)
    choices = torch.stack([threat.sample(x, Draws(5, torch.arange(len(x)), 7 + number, 2)) for number in range(6)])
    with torch.no_grad():
        losses = torch.stack([cross_entropy(model(threat.apply(x, z)), y, reduction="none") for z in choices])
    assert torch.equal(worst, choices[losses.argmax(0), torch.arange(len(x))])
    assert len(losses.argmax(0).unique()) > 3


def test_refuses_a_number_that_is_none():
    for k in (0, -1, 2.5, "ten"):
        with pytest.raises(SettingError, match="worst-of-k"):
            WorstOfK(k)
