"""Properties as questions: all of them, in tensors of one shape, that fit into memory."""

import sys

import pytest
import torch
from torch import nn

from helpers.vnnlib import text
from holdfast import DataError
from holdfast.certify.questions import Questions, WithInputs
from holdfast.certify.vnnlib import parse_vnnlib

PROP = text([0, 0], [1, 1], "(or (<= Y_0 0.5) (and (<= Y_0 X_1) (>= Y_0 0)))", 1)


def test_inputs_behind_outputs():
    prop = parse_vnnlib(PROP)
    model = WithInputs(nn.Linear(2, 1), prop.read)
    x = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    v = model(x)
    assert torch.equal(v, torch.cat([model.model(x), x[:, 1:]], 1))
    questions = Questions.of(prop)
    y, second = v[0].tolist()
    excess = questions.excess(torch.tensor([y, second], dtype=torch.float64).expand(2, -1))
    assert excess.tolist() == [[y - 0.5, -torch.inf], [y - second, -y]]


def test_images_are_flattened_in_c_order():
    model = WithInputs(nn.Flatten(), (0, 3))
    x = torch.arange(4.0).view(1, 2, 2)
    assert model(x).tolist() == [[0, 1, 2, 3, 0, 3]]


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(sys.modules["holdfast.certify.questions"], "_MOST_NUMBERS", 10)
    with pytest.raises(DataError, match="2 alternatives of 2 inputs and 2 inequalities"):
        Questions.of(parse_vnnlib(PROP))
