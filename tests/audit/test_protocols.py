import json

import pytest
import torch

import holdfast
from helpers.attacks import predict
from helpers.zoo import mlp, uniform
from holdfast import Linf, RunError
from holdfast.attacks import PGD, Stage
from holdfast.attacks.transfer import Diversity, Transfer, VarianceTuning
from holdfast.audit import EvaluationProtocol


def transfer(seed=0, **settings) -> EvaluationProtocol:
    return EvaluationProtocol("transfer", (Stage("transfer", Transfer(mlp(seed=seed), **settings)),), "one attack")


def test_settings_are_plain_and_a_model_among_them_is_named_by_its_content():
    (stage,) = transfer(steps=3, variance=VarianceTuning(samples=2)).to_dict()["stages"]
    settings = json.loads(json.dumps(stage))["settings"]
    surrogate = settings.pop("surrogate")
    assert surrogate["model"] == "Sequential"
    assert settings == {
        "steps": 3,
        "decay": 1.0,
        "step_size": None,
        "objective": "ce",
        "scales": 1,
        "diversity": None,
        "kernel": None,
        "variance": {"samples": 2, "radius": 1.5},
    }
    assert transfer().to_dict() == transfer().to_dict()
    digests = {transfer(seed).to_dict()["stages"][0]["settings"]["surrogate"]["digest"] for seed in (0, 0, 1, 2)}
    assert len(digests) == 3
    (pgd,) = EvaluationProtocol("pgd", (Stage("pgd", PGD(steps=3)),), "one attack").to_dict()["stages"]
    assert pgd["settings"] == {
        "steps": 3,
        "step_size": None,
        "restarts": 1,
        "random_start": True,
        "objective": "ce",
    }
    (stage,) = transfer(diversity=Diversity(0.2)).to_dict()["stages"]
    assert stage["settings"]["diversity"] == {"probability": 0.2, "smallest": 0.9}


def test_an_audit_with_another_surrogate_is_another_audit(tmp_path):
    model, x = mlp(seed=3), uniform(12, 6)
    y = predict(model, x)

    def audit(seed):
        return holdfast.audit(model, (x, y), Linf(0.1), protocol=transfer(seed, steps=2), run=tmp_path / "run")

    first = audit(0)
    assert audit(0).verdicts == first.verdicts
    assert torch.equal(y, predict(model, x))
    with pytest.raises(RunError, match="surrogate"):
        audit(1)
