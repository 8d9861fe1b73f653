"""An audit of a model that hides or falsifies its gradients ends with the number of the network underneath."""

import json

import pytest
import torch
from torch import nn

import holdfast
from helpers.networks import ordinary_digits
from holdfast import PGD, Linf, load_data
from holdfast.testing import ZOO

EXAMPLES, EPS = "0:40", 0.1
# Enough for every attack that follows gradients, and no more: those without take thousands of queries.
QUERIES = 700


DEFAULTS = {"examples": EXAMPLES, "protocol": "quick", "max_forwards": QUERIES}


def audit(model: nn.Module, **settings):
    return holdfast.audit(model, "digits", Linf(EPS), **DEFAULTS | settings)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return ordinary_digits()


@pytest.fixture(scope="module")
def fitting() -> torch.Tensor:
    return next(iter(load_data("digits", split="train", examples="0:300").batches(300))).x


@pytest.fixture(scope="module")
def bare(network: nn.Module) -> float:
    return audit(network).robust_accuracy


@pytest.mark.parametrize("name", ["flipped gradient", "ones for a gradient", "detach", "tensor hook"])
def test_a_false_backward_pass_changes_no_number(name, network, fitting, bare):
    """Outputs are the network's, and so is what its true gradients find, to what the first attacks happened to do."""
    result = audit(ZOO[name].wrap(network, fitting))
    assert result.adapted is not None
    assert result.adapted.before >= bare + 0.05
    assert abs(result.robust_accuracy - bare) <= 1 / 40
    assert set(result.adapted.reasons) <= {d.name for d in result.diagnostics if d.verdict == "fail"}


def test_honest_networks_keep_to_the_protocol(network):
    result = audit(network)
    assert result.adapted is None
    assert [stage.name for stage in result.stages] == ["fgsm", "pgd", "apgd-ce", "apgd-t"]
    assert "fail" not in {d.verdict for d in result.diagnostics}


def test_no_adapting_is_the_protocol_and_nothing_else(network, fitting):
    result = audit(ZOO["flipped gradient"].wrap(network, fitting), adapt=False)
    assert result.adapted is None
    assert [stage.name for stage in result.stages] == ["fgsm", "pgd", "apgd-ce", "apgd-t"]
    with pytest.raises(holdfast.ModelError, match="no gradient reaches"):
        audit(ZOO["inputs as bytes"].wrap(network, fitting), adapt=False)


def test_what_has_no_gradient_is_attacked_without_the_stages_that_need_one(network, fitting):
    result = audit(ZOO["inputs as bytes"].wrap(network, fitting), protocol=[PGD()])
    assert result.adapted.before == result.clean_accuracy
    assert "pgd" not in {stage.name for stage in result.stages}
    assert result.robust_accuracy < result.clean_accuracy


def test_a_stopped_run_goes_on_with_the_same_stages(network, fitting, tmp_path):
    model = ZOO["flipped gradient"].wrap(network, fitting)
    whole = audit(model, run=tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.decided > 12:
            raise StoppedError

    with pytest.raises(StoppedError):
        audit(model, run=tmp_path / "half", on_progress=stop)
    again = audit(model, run=tmp_path / "half")
    assert again.stages == whole.stages
    assert again.verdicts == whole.verdicts
    kept = json.loads((tmp_path / "half" / "audit.json").read_text())
    assert kept["adapted"]["before"] == again.adapted.before
    with pytest.raises(holdfast.RunError, match="adapt was true and is now false"):
        audit(model, run=tmp_path / "half", adapt=False)
