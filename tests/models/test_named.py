"""Every network that training knows by name is one to load, to audit and to certify."""

import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from holdfast import ModelError, load_model
from holdfast.cli.main import app
from holdfast.models.architectures import make_network
from holdfast.models.networks import NETWORKS

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights, of 10 classes, a name each; made when asked for."""
    folder, made = tmp_path_factory.mktemp("networks"), {}

    def of(name: str, classes: int = 10):
        if (name, classes) not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                network = make_network(name, SHAPE, classes).eval()
            file = folder / f"{name}-{classes}.safetensors"
            save_file(network.state_dict(), file)
            made[name, classes] = network, file
        return made[name, classes]

    return of


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("classes", [2, 10])
def test_its_logits_come_back(weights, name, classes):
    network, file = weights(name, classes)
    state = torch.random.get_rng_state()
    loaded = load_model(name, file, shape=SHAPE).eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    x = torch.rand(3, *SHAPE)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("command", ["audit", "certify", "attack"])
def test_every_command_takes_it(weights, tmp_path, name, command):
    _, file = weights(name)
    options = {
        "audit": ["audit", "--max-forwards", "0"],
        "certify": ["certify", "--method", "ibp"],
        "attack": ["attack", "fgsm", "--out", str(tmp_path / "out")],
    }[command]
    data = ["--data", "digits", "--examples", "0:3", "--batch-size", "4", "--threat", "linf:0.01"]
    result = CliRunner().invoke(app, [*options, "--model", name, "--weights", str(file), *data])
    assert result.exit_code == 0, result.output


def test_networks_of_other_libraries_too(monkeypatch, tmp_path):
    timm = ModuleType("timm")
    timm.create_model = lambda name, num_classes, in_chans: nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    monkeypatch.setitem(sys.modules, "timm", timm)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model("timm:flat", tmp_path / "w.safetensors", shape=SHAPE)
    assert torch.equal(loaded[1].weight, network[1].weight)


def test_what_is_missing_is_said(weights, tmp_path):
    _, file = weights("mlp")
    with pytest.raises(ModelError, match=r"^mlp: a network by name comes without weights; give a file of them"):
        load_model("mlp", shape=SHAPE)
    with pytest.raises(ModelError, match=r"^mlp: a network by name is made for a shape of inputs"):
        load_model("mlp", file)
    with pytest.raises(ModelError, match=r"mlp-10.safetensors: does not fit .*1.weight is \[256, 64\], not"):
        load_model("mlp", file, shape=(1, 9, 9))
    with pytest.raises(ModelError, match="does not fit Sequential"):
        load_model("lenet5", file, shape=SHAPE)
    with pytest.raises(ModelError, match=r"conv-small takes images .* not inputs of shape \(64,\)"):
        load_model("conv-small", file, shape=(64,))
    with pytest.raises(ModelError, match=r"mlpp: not a kind of model that is known; .*mlp, conv-small"):
        load_model("mlpp", file, shape=SHAPE)
