"""Defensive distillation: its loss by hand, and what it is worth."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.attacks import snapshot
from helpers.training import network, perturbed
from helpers.zoo import Wrapped, mlp, uniform
from holdfast import FGSM, PGD, Linf, SettingError
from holdfast.attacks import craft
from holdfast.data import load_data
from holdfast.models.networks import digits_conv
from holdfast.train import Distillation, Recipe, Standard, Step, fit

X, Y, STEP = uniform(5, 6, dtype=torch.float64), torch.arange(5) % 4, Step(0, 0, torch.arange(5))


def softmax(row):
    largest = max(row)
    powers = [math.exp(z - largest) for z in row]
    return [power / sum(powers) for power in powers]


def test_the_student_learns_its_teachers_soft_labels_at_the_same_temperature():
    net, teacher = mlp().double(), mlp(seed=1).double()
    total = 0.0
    for mine, soft in zip((net(X) / 0.5).tolist(), (teacher(X) / 0.5).tolist(), strict=True):
        total -= sum(p * math.log(q) for p, q in zip(softmax(soft), softmax(mine), strict=True))
    method = Distillation(teacher, temperature=0.5)
    assert perturbed(method, net, X, Y, STEP) is X
    assert method.loss(net, X, X, Y, STEP).item() == pytest.approx(total / 5, rel=1e-12)


def test_the_teacher_is_asked_in_evaluation_mode_and_given_back():
    teacher, student, x = network(), mlp(), X.float()
    before = snapshot(teacher)
    torch.autograd.backward(Distillation(teacher).loss(student, x, x, Y, STEP))
    assert snapshot(teacher) == before
    soft = (teacher.eval()(x) / 20).softmax(1)
    expected = functional.cross_entropy(student(x) / 20, soft)
    torch.testing.assert_close(Distillation(teacher).loss(student, x, x, Y, STEP), expected)


def test_it_stops_attacks_on_the_cross_entropy_and_no_others():
    source, threat = load_data("digits", split="train", examples="0:500"), Linf(0.15)
    recipe = Recipe(8, batch_size=32, lr=0.01, validation=20)
    torch.manual_seed(0)
    teacher, student = digits_conv(), digits_conv()
    fit(teacher, source, Standard(temperature=100.0), threat, recipe)
    fit(student, source, Distillation(teacher, temperature=100.0), threat, recipe)
    test = next(iter(load_data("digits", split="test").batches(100)))

    def withstands(attack, model):
        return 1 - craft(attack, model, test.x, test.y, threat=threat).success.float().mean()

    assert (student(test.x).argmax(1) == test.y).float().mean() > 0.8
    x = test.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(functional.cross_entropy(student(x), test.y), x)
    assert (grad.flatten(1) == 0).all(1).float().mean() > 0.6
    assert withstands(FGSM(), student) > 0.6
    assert withstands(PGD(steps=10, objective="margin"), student) < 0.2
    # The temperature gives attacks on the cross-entropy their gradient back.
    assert withstands(PGD(steps=10), Wrapped(student, lambda logits: logits / 100)) < 0.2


def test_a_temperature_is_positive():
    with pytest.raises(SettingError, match=r"^distillation: temperature must be positive, got -1$"):
        Distillation(nn.Identity(), temperature=-1)
