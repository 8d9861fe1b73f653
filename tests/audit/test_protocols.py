import json

import pytest
import torch

import holdfast
from helpers.attacks import predict
from helpers.zoo import mlp, random_linear, uniform
from holdfast import L0, L1, L2, Linf, RunError, SettingError
from holdfast.attacks import PGD, Square, Stage
from holdfast.attacks.transfer import Diversity, Transfer, VarianceTuning
from holdfast.audit import EvaluationProtocol
from holdfast.audit.protocols import PROTOCOLS, restrict
from holdfast.audit.protocols.balls import fast, standard


def spoken(result) -> set[str]:
    return {diagnostic.name for diagnostic in result.diagnostics if diagnostic.verdict != "pass"}


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


THREATS = [Linf(0.05), L2(0.2), L1(0.8), L0(2)]


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("name", ["quick", "fast", "blackbox"])
def test_a_named_protocol_runs_under_every_norm(name, threat):
    model, x = mlp(features=12, seed=3), uniform(10, 3, 2, 2)
    result = holdfast.audit(model, (x, predict(model, x)), threat, protocol=name, max_forwards=400)
    assert result.verdicts["broken"] >= 1
    assert [stage.name for stage in result.stages] == [stage.name for stage in PROTOCOLS[name](threat).stages]


def test_standard_has_the_published_stages():
    def attacks(threat):
        return {stage.name: stage.attack for stage in standard(threat).stages}

    for threat in (Linf(0.1), L2(0.1)):
        stages = attacks(threat)
        assert list(stages) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        ce, targeted, fab, square = stages.values()
        assert (ce.steps, ce.restarts, ce.objective, ce.targets) == (100, 1, "ce", 0)
        assert (targeted.steps, targeted.restarts, targeted.objective, targeted.targets) == (100, 1, "dlr", 9)
        assert (fab.steps, fab.restarts, fab.targets) == (100, 1, 9)
        assert (square.queries, square.p, square.restarts, square.schedule) == (5000, 0.8, 1, 10_000)
    ce, targeted, *_ = attacks(L1(1)).values()
    assert (type(ce).__name__, ce.steps, ce.restarts, ce.targets) == ("APGDL1", 100, 5, 0)
    assert (type(targeted).__name__, targeted.objective, targeted.targets) == ("APGDL1", "dlr", 5)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_standard_says_what_few_classes_mean(classes):
    model, x = mlp(classes=classes, seed=2), uniform(4, 6)
    result = holdfast.audit(model, (x, predict(model, x)), Linf(1e-5), protocol="standard")
    assert ("few classes" in spoken(result)) == (classes < 4)
    assert result.verdicts["robust"] == 4
    targets = classes - 1
    least = 4 * (1 + 101 * (1 + targets) + 200 * targets + 5000)
    assert least <= result.cost.forwards <= least + 4 * 3 * targets


def test_fast_costs_little_where_nothing_is_near():
    model, x = mlp(seed=2), uniform(6, 6)
    result = holdfast.audit(model, (x, predict(model, x)), Linf(1e-5), protocol="fast")
    # The walks are for examples whose margin has come down; here it cannot.
    assert result.cost.forwards == 6 * (1 + 60)
    assert result.cost.backwards == 6 * 54
    described = fast(Linf(0.1)).to_dict()["stages"]
    assert [stage.get("polish", {}).get("attack") for stage in described] == [None, None, "AnnealedPGD", "AnnealedPGD"]
    assert len(described[3]["margins"]) == 30
    json.dumps(described)


class Noisy(torch.nn.Module):
    """A linear classifier with noise on its logits that misleads a single pass now and then."""

    def forward(self, x):
        score = (x.flatten(1) - 0.5).sum(1) + 0.15 * torch.randn(len(x))
        return torch.stack([-score, score], 1)


def test_rand_judges_by_most_of_its_passes():
    x = torch.full((20, 4), 0.56)
    y = torch.ones(20, dtype=torch.int64)
    once = holdfast.audit(Noisy(), (x, y), Linf(0.0), protocol=[PGD(steps=20)])
    often = holdfast.audit(Noisy(), (x, y), Linf(0.0), protocol="rand")
    # By its noise alone the model errs once in twenty passes or so, and hardly ever in most of twenty.
    assert once.clean_accuracy < 1.0 or once.robust_accuracy < 1.0
    assert often.robust_accuracy == often.clean_accuracy == 1.0
    assert "random model" in spoken(once)
    assert "random model" not in spoken(often)
    assert holdfast.audit(Noisy(), (x, y), Linf(0.12), protocol="rand").robust_accuracy == 0.0


def test_knowledge_leaves_out_what_needs_more():
    names = {k: [stage.name for stage in restrict(standard(Linf(0.1)), k).stages] for k in ("gradient", "score")}
    assert names == {"gradient": ["apgd-ce", "apgd-t", "fab-t", "square"], "score": ["square"]}
    with pytest.raises(SettingError, match="no attack of protocol standard does with decisions alone: choose blackbox"):
        restrict(standard(Linf(0.1)), "decision")
    with pytest.raises(SettingError, match="unknown knowledge 'none': choose one of gradient, score, decision"):
        restrict(standard(Linf(0.1)), "none")
    # A polish that needs gradients goes with its stage.
    with pytest.raises(SettingError, match="protocol fast"):
        restrict(fast(Linf(0.1)), "score")


@pytest.mark.parametrize(("knowledge", "stages"), [("score", ["square", "hopskipjump"]), ("decision", ["hopskipjump"])])
def test_black_box_audits_ask_for_no_gradient(knowledge, stages):
    model = mlp(seed=3)

    class Sealed(torch.nn.Module):
        def forward(self, x):
            return model(x.detach()).detach()

    x = uniform(10, 6)
    y = predict(model, x)
    result = holdfast.audit(Sealed(), (x, y), Linf(0.15), knowledge=knowledge, max_forwards=300)
    assert [stage.name for stage in result.stages] == stages
    assert result.cost.backwards == 0
    assert result.verdicts["broken"] >= 2
    assert result.knowledge.startswith("black box")
    # The clean prediction and the verification are the auditor's own.
    assert result.cost.forwards <= 10 * 302
    clean = holdfast.audit(Sealed(), (x, y), Linf(0.15), knowledge=knowledge, max_forwards=0)
    assert clean.robust_accuracy == clean.clean_accuracy == 1.0
    assert clean.cost.forwards == 10


def test_a_protocol_without_gradients_says_so_itself():
    model, x = mlp(seed=3), uniform(6, 6)
    data = (x, predict(model, x))
    assert holdfast.audit(model, data, Linf(0.1), protocol="blackbox", max_forwards=50).knowledge.startswith("black")
    assert holdfast.audit(model, data, Linf(0.1)).knowledge.startswith("white")
    assert "class alone" in holdfast.audit(model, data, L2("inf"), knowledge="score", max_forwards=200).knowledge
    with pytest.raises(SettingError, match="no attack without gradients looks for the nearest input in l1"):
        holdfast.audit(model, data, L1("inf"), knowledge="score")


def test_budgets_of_their_own_finite_and_not():
    model, x = mlp(seed=3), uniform(6, 6)
    data = (x, predict(model, x))
    eps = torch.tensor([0.1, float("inf"), 0.2, 0.0, 0.3, 0.1])
    result = holdfast.audit(model, data, Linf(eps))
    assert result.protocol["name"] == "nearest"
    assert result.curve is None
    assert result.threat["eps"][1] is None
    assert holdfast.audit(model, data, Linf(eps.clamp_max(1)), protocol="quick").examples == 6


class Hiding(torch.nn.Module):
    """A linear classifier behind a rounding, with a ripple whose gradient points nowhere."""

    def forward(self, x):
        score = (x * 40).round().div(40).sub(0.5).sum(1) + 1e-6 * (x * 1000).sin().sum(1)
        return torch.stack([-score, score], 1)


def test_a_black_box_that_beats_the_white_box_is_told():
    x = uniform(30, 4) * 0.2 + 0.5
    y = torch.ones(30, dtype=torch.int64)
    result = holdfast.audit(Hiding(), (x, y), Linf(0.15), protocol=[PGD(steps=10), Square(queries=200)])
    assert "black box beats white box" in spoken(result)
    honest, x = random_linear(6, 2), uniform(30, 6)
    y = predict(honest, x)
    result = holdfast.audit(honest, (x, y), Linf(0.1), protocol=[PGD(objective="margin"), Square(queries=200)])
    assert "black box beats white box" not in spoken(result)


@pytest.mark.parametrize("norm", [Linf, L2, L1], ids=lambda norm: norm.__name__)
def test_one_run_gives_the_whole_curve(norm, tmp_path):
    model, x = mlp(seed=6), uniform(24, 6, seed=6)
    y = predict(model, x)
    y[5] = (y[5] + 1) % 4
    result = holdfast.audit(model, (x, y), norm("inf"), run=tmp_path)
    assert result.protocol["name"] == "nearest"
    assert result.curve[0] == (0.0, 23 / 24)
    shares = [share for _, share in result.curve]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == result.robust_accuracy
    assert result.robust_accuracy_at(-1) == result.robust_accuracy_at(0) == 23 / 24
    for place in (4, 10, 18):
        budget, share = result.curve[place]
        assert result.robust_accuracy_at(budget) == share
        # At its budgets it lies where attacks of fixed budget do, but for an example that either may miss.
        bound = holdfast.audit(model, (x, y), norm(1.0001 * budget), protocol="fast")
        assert abs(share - bound.robust_accuracy) < 1.5 / 24
    with pytest.raises(SettingError, match="run it under an infinite one"):
        holdfast.audit(model, (x, y), norm(0.1), examples="0:2").robust_accuracy_at(0.1)
    with pytest.raises(SettingError, match="searches inside a budget"):
        holdfast.audit(model, (x, y), norm("inf"), protocol="quick")
