"""Random search over patches: the optimum of linear models, and proposals that stay what they should be."""

import pytest
import torch

from helpers.attacks import check_company, check_counts, check_forms, check_knowledge, examples, predict
from helpers.tiny import Fn
from helpers.zoo import convnet, uniform
from holdfast import SettingError
from holdfast.attacks import PatchRS, craft
from holdfast.engine import Problem
from holdfast.threats import Linf, Patch


def test_keeps_the_promises_of_every_attack():
    model, attack, threat = convnet(), PatchRS(queries=12), Patch(1, 1)
    x, y = examples(model)
    result = craft(attack, model, x, y, threat=threat)
    assert torch.equal(predict(model, result.x_adv) != y, result.success)
    assert 4 < int(result.success.sum()) < len(x)
    assert bool(threat.admits(result.x_adv, x).all())
    check_forms(attack, model, threat, x, y, result)
    check_company(attack, model, threat, x[:16], y[:16])
    check_counts(attack, model, threat, x, y, 12, 0, exact=True)
    check_knowledge(attack, model, threat, x, y, result)


def test_comes_to_the_best_content_of_a_linear_model_and_often_to_the_best_place():
    x, threat = uniform(6, 2, 5, 6), Patch(2, 3)
    weight = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    model = Fn(lambda x: torch.stack([1000 + 0 * x.sum((1, 2, 3)), (x * weight).sum((1, 2, 3))], 1))
    result = craft(PatchRS(queries=500), model, x, torch.zeros(6, dtype=torch.int64), threat=threat)
    best = (weight * x).sum((1, 2, 3))[:, None] + threat.gains(x, weight.expand_as(x)) - 1000
    away = (best - result.objective[:, None]).abs()
    assert float(away.amin(1).max()) < 1e-3
    assert int((away.argmin(1) == best.argmax(1)).sum()) >= 2


def test_a_proposal_paints_a_window_or_moves_the_patch(monkeypatch):
    seen, look = [], Problem.evaluate
    monkeypatch.setattr(
        Problem, "evaluate", lambda problem, z, objective: seen.append(z) or look(problem, z, objective)
    )
    # Nothing raises the margin, so that every proposal starts from the same choice.
    model = Fn(lambda x: torch.stack([1 + 0 * x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3))], 1))
    x, threat = uniform(1, 2, 9, 9), Patch(4, 5, (-1, 3))
    craft(PatchRS(queries=400, alpha=1.0), model, x, torch.zeros(1, dtype=torch.int64), threat=threat)
    start, moved = seen[0][0], 0
    assert set(start[2:].tolist()) <= {-1.0, 3.0}
    assert torch.equal(start[2:].view(2, 4, 5), start[2:].view(2, 4, 5)[:, :1].expand(2, 4, 5))
    areas = []
    for number, (z,) in enumerate(seen[1:], 1):
        assert bool(threat.contains(x, z[None]))
        assert torch.equal(threat.project(z[None], x)[0], z)
        if not torch.equal(z[:2], start[:2]):
            moved += 1
            assert torch.equal(z[2:], start[2:])
            assert bool(((z[:2] - start[:2]).abs() <= 9 * (1 - number / 400)).all())
        else:
            changed = (z != start)[2:].view(2, 4, 5).any(0)
            areas.append((number, int(changed.any(1).sum() * changed.any(0).sum())))
            assert len(z[2:].view(2, 20)[:, changed.flatten()].unique(dim=1).T) <= 1  # one colour
    assert 15 < moved < 40
    assert max(area for number, area in areas) == 2 * 3
    assert max(area for number, area in areas if number > 100) == 1


def test_restarts_and_settings():
    model = convnet()
    x, y = examples(model)
    once, twice = (craft(PatchRS(8, restarts=n), model, x, y, threat=Patch(1)) for n in (1, 2))
    assert bool((once.success <= twice.success).all())
    assert int(once.success.sum()) < int(twice.success.sum())
    with pytest.raises(SettingError, match=r"patch-rs: queries and restarts must be positive and alpha in \(0, 1\]"):
        PatchRS(alpha=0)
    with pytest.raises(SettingError, match=r"patch-rs moves a patch over images, and linf:0.1 is none"):
        craft(PatchRS(), model, x, y, threat=Linf(0.1))
