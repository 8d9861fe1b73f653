"""Bare ascent against PGD, whose iteration it is."""

from functools import partial

import pytest
import torch

from helpers.attacks import EPS, NORMS
from helpers.zoo import mlp, uniform
from holdfast.attacks import PGD, Problem, Rows, climb
from holdfast.models.query import Query
from holdfast.tasks.objectives import cross_entropy


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_ends_where_pgd_stands_before_its_last_look(norm):
    net, x, y = mlp(), uniform(6, 6), torch.arange(6) % 4
    threat = NORMS[norm](10 * EPS[norm])
    attack = PGD(steps=4)
    with Query(net) as query:
        problem = Problem(query, threat, Rows.fresh(threat, torch.arange(6), x, y))
        state = attack.init(problem)
        start = state.z
        for _ in range(4):
            state = attack.step(problem, state)
        forwards = query.forwards
        found = climb(query, threat, x, start, partial(cross_entropy, y=y), steps=4, step_size=state.size)
        assert torch.equal(found, state.z)
        assert query.forwards - forwards == 24
        assert query.backwards == 48
