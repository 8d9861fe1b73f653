"""Networks by name."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from holdfast import ModelError, load_model
from holdfast.models.architectures import is_network, make_network
from holdfast.models.load import needs_trust
from holdfast.models.networks import NETWORKS

PARAMETERS = {"mlp": 269_322, "conv-small": 166_406, "lenet5": 648_226}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_the_shapes_that_they_are_made_for(name):
    residual = "resnet" in name
    for shape, classes in (((1, 28, 28), 10), ((3, 32, 32), 7)):
        if residual and shape[1] == 28 and name == "preact-resnet18":
            continue
        with torch.device("meta"):
            net = make_network(name, shape, classes)
            assert net(torch.empty(2, *shape)).shape == (2, classes)
    if name in PARAMETERS:
        assert sum(p.numel() for p in make_network(name, (1, 28, 28), 10).parameters()) == PARAMETERS[name]


def test_residual_networks_are_as_deep_and_as_wide_as_their_names_say():
    with torch.device("meta"):
        preact, wide = (make_network(name, (3, 32, 32), 10) for name in ("preact-resnet18", "wide-resnet-28-10"))
    # 18 counts the linear layer and not the 1x1 convolutions around blocks, 28 counts those and not the linear one.
    for net, large, small, parameters in ((preact, 17, 3, 11.17e6), (wide, 25, 3, 36.48e6)):
        kernels = [module.kernel_size for module in net.modules() if isinstance(module, nn.Conv2d)]
        assert (kernels.count((3, 3)), kernels.count((1, 1))) == (large, small)
        assert sum(p.numel() for p in net.parameters()) == pytest.approx(parameters, rel=1e-3)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ModelError, match=r"conv-small takes images .* not inputs of shape \(30,\)"):
        make_network("conv-small", (30,), 2)
    with pytest.raises(ModelError, match="choose one of mlp, conv-small"):
        make_network("convsmall", (1, 28, 28), 10)


def test_networks_of_other_libraries_get_what_they_ask_for(monkeypatch):
    calls = {}

    def fake(package, **members):
        module = ModuleType(package)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, package, module)

    def made(**settings):
        calls.update(settings)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, settings.get("num_classes") or settings["num_labels"]))

    class Classifier(nn.Module):
        def __init__(self, name, **settings):
            super().__init__()
            self.net = made(name=name, **settings)

        def forward(self, x):
            return SimpleNamespace(logits=self.net(x))

    fake("timm", create_model=lambda name, **settings: made(name=name, **settings))
    fake("torchvision", models=SimpleNamespace(get_model=lambda name, **settings: made(name=name, **settings)))
    fake("transformers", AutoModelForImageClassification=SimpleNamespace(from_pretrained=Classifier))
    for name in ("timm:tiny", "torchvision:tiny", "hf:some/tiny"):
        assert is_network(name)
        assert make_network(name, (3, 2, 2), 5)(torch.rand(4, 3, 2, 2)).shape == (4, 5)
        assert calls["name"] == name.partition(":")[2]


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="needs the library timm"):
        make_network("timm:tiny", (3, 8, 8), 2)


def test_the_folder_of_a_training_run_is_a_model(tmp_path):
    net = make_network("mlp", (1, 4, 4), 3)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    about = {"network": {"name": "mlp", "shape": [1, 4, 4], "classes": 3}}
    (tmp_path / "train.json").write_text(json.dumps(about))
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(load_model(tmp_path)(x), net(x))
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(ModelError, match="not the record of a training run"):
        load_model(tmp_path)


def test_a_run_whose_network_is_made_by_code_asks_for_trust(tmp_path):
    (tmp_path / "nets.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(3, 2)\n")
    net = nn.Linear(3, 2)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    name = f"{tmp_path / 'nets.py'}:net"
    about = {"network": {"name": name, "shape": [3], "classes": 2}}
    (tmp_path / "train.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=rf"--trust .*: --model {name} --weights {tmp_path}/weights.safetensors$"):
        load_model(tmp_path)
    assert load_model(tmp_path, trust=True).weight.equal(net.weight)
    assert load_model(name, tmp_path / "weights.safetensors").weight.equal(net.weight)
    assert all(needs_trust(of) for of in ("hf:some/tiny", name, "os:abort"))
    assert not any(needs_trust(of) for of in ("mlp", "timm:tiny", "torchvision:tiny"))
