"""Audits under sets that are no norm balls: whole, resumed, and held against what the set gives."""

import sqlite3

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from helpers.zoo import seeded
from holdfast.certify import DoublyMasked, Masks
from holdfast.draws import Draws
from holdfast.threats import Linf, Patch, Spatial, Table
from holdfast.threats.table import Column, Rules, parse_relation

SIDE, COUNT = 6, 12


def images():
    x = torch.rand(400, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 8), nn.ReLU(), nn.Linear(8, 3)), 1)
    with torch.no_grad():
        top, y = model(x).topk(2, dim=1)
    order = (top[:, 0] - top[:, 1]).argsort(descending=True)
    chosen = torch.cat([order[: COUNT // 2], order[-COUNT // 2 :]])
    labels = y[chosen, 0]
    labels[0] = (labels[0] + 1) % 3  # one that is wrong
    return model, x[chosen], labels


def defended():
    model, x, _ = images()
    whole = DoublyMasked(model, Masks(SIDE, SIDE, 1, 4))
    with torch.no_grad():
        return whole, x, whole(x).argmax(1)


def rows():
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), 3)
    x = torch.randint(0, 6, (COUNT, 3), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


RULES = Rules(
    tuple(Column(name, kind="integer", move="both", lower=0, upper=8) for name in "abc"),
    relations=(parse_relation("a <= 12"), parse_relation("a + b <= 14")),
)

CASES = {
    "rotation": (images, Spatial(rotation=15), "crown"),
    "whole moves": (images, Spatial(translation=1, whole=True), "complete"),
    "rotation, then a ball": (images, Spatial(rotation=3).then(Linf(0.01)), "crown"),
    "patch": (images, Patch(1), "complete"),
    "patch against double masks": (defended, Patch(1), "own"),
    "table": (rows, Table(RULES, "l1", 2.0), "complete"),
}


def verdicts(folder):
    with sqlite3.connect(folder / "run.sqlite") as store:
        return store.execute("SELECT idx, verdict, certified, distance FROM examples ORDER BY idx").fetchall()


@pytest.mark.parametrize(("data", "threat", "method"), CASES.values(), ids=CASES.keys())
def test_the_bracket_holds_and_a_run_resumes(tmp_path, data, threat, method):
    model, x, y = data()

    def audit(folder, **settings):
        certify = holdfast.Certification(method, seconds=20.0)
        return holdfast.audit(
            model, (x, y), threat, protocol="quick", certify=certify, run=folder, save_inputs=True, **settings
        )

    result = audit(tmp_path / "whole")
    lower, upper = result.bracket
    assert 0 <= lower <= upper <= result.clean_accuracy
    assert result.threat["name"] == threat.name
    found = verdicts(tmp_path / "whole")
    inputs = np.load(tmp_path / "whole" / "adversarial.npz")
    with torch.no_grad():
        for index, verdict, certified, distance in found:
            here, one = threat.at(torch.tensor([index])), x[index : index + 1]
            if verdict == "broken":
                row = list(inputs["index"]).index(index)
                x_adv = torch.from_numpy(inputs["x"][row])[None]
                assert int(model(x_adv).argmax()) != int(y[index])
                assert distance <= float(here.budget(one)) * (1 + 1e-5)
                if hasattr(here, "admits"):
                    assert bool(here.admits(x_adv, one))
            elif certified:
                for draw in range(20):
                    z = here.sample(one, Draws(9, torch.tensor([index]), 0, draw))
                    assert int(model(here.apply(one, z)).argmax()) == int(y[index])
    # The same again changes nothing; of a run that lost some rows the rest is made again.
    assert audit(tmp_path / "whole").model_dump(exclude={"cost"}) == result.model_dump(exclude={"cost"})
    with sqlite3.connect(tmp_path / "whole" / "run.sqlite") as store:
        store.execute("DELETE FROM inputs WHERE idx % 3 = 0")
        store.execute("DELETE FROM examples WHERE idx % 3 = 0")
    again = audit(tmp_path / "whole")
    assert again.bracket == result.bracket
    assert verdicts(tmp_path / "whole") == found
