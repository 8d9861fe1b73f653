"""Every way to name a model, and every way to name it wrongly."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.onnx_graphs import node, save
from helpers.shared import SHARED, needs_shared
from holdfast.errors import ModelError
from holdfast.models import OnnxModule, load_model

NETS = """
from torch import nn

def net():
    return nn.Linear(3, 2)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

number = 7
"""


@pytest.fixture
def nets(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def message(spec, weights=None, named=None, **settings):
    with pytest.raises(ModelError) as caught:
        load_model(spec, weights, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert str(named or weights or str(spec).rpartition(":")[0] or spec) in text
    return text


def write(path, source):
    path.write_text(source)
    return path


# --- modules and factories


def test_a_module_is_returned_itself(tmp_path):
    module = nn.Linear(3, 2)
    assert load_model(module) is module
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    assert load_model(module, tmp_path / "w.pt") is module
    assert module.weight.equal(torch.load(tmp_path / "w.pt")["weight"])


def test_factory_in_a_file(nets):
    before = list(sys.path)
    assert isinstance(load_model(f"{nets}:net"), nn.Linear)
    assert type(load_model(f"{nets}:Net")).__name__ == "Net"
    assert sys.path == before
    assert "nets" not in sys.modules


def test_factory_in_a_module(nets, monkeypatch):
    monkeypatch.syspath_prepend(nets.parent)
    nets.rename(nets.parent / "my_nets.py")
    assert isinstance(load_model("my_nets:net"), nn.Linear)
    assert isinstance(load_model("torch.nn:Identity"), nn.Identity)


def test_files_beside_it_are_importable_and_not_mixed_up(tmp_path):
    for name, size in (("one", 4), ("two", 5)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "sizes.py", f"SIZE = {size}\n")
        write(tmp_path / name / "late.py", "from sizes import SIZE\n")
        source = "from torch import nn\nimport sizes\n"
        source += "def net():\n    import late\n    return nn.Linear(sizes.SIZE, late.SIZE)\n"
        write(tmp_path / name / "model.py", source)
    assert load_model(f"{tmp_path}/one/model.py:net").weight.shape == (4, 4)
    assert load_model(f"{tmp_path}/two/model.py:net").weight.shape == (5, 5)
    assert not {"sizes", "late", "model"} & set(sys.modules)


def test_a_file_may_shadow_a_library(tmp_path):
    path = write(tmp_path / "json.py", "from dataclasses import dataclass\nfrom torch import nn\n" + NETS)
    assert isinstance(load_model(f"{path}:net"), nn.Linear)


def test_a_relative_path(nets, monkeypatch):
    monkeypatch.chdir(nets.parent)
    assert isinstance(load_model("nets.py:net"), nn.Linear)


@needs_shared
@pytest.mark.parametrize(
    ("weights", "factory", "shape"),
    [
        ("advertorch_lenet5_clean.pt", "mnist_lenet5", (1, 28, 28)),
        ("convexadv_linf0.1.pth", "mnist_conv_small", (1, 28, 28)),
        ("fast_adv_fgsm_linf0.3.pth", "mnist_conv_small", (1, 28, 28)),
        ("abcrown_mnist_conv_small_nat.pth", "mnist_conv_small_natural", (1, 28, 28)),
        ("fashion_convexadv_linf0.1.pth", "fashion_conv_small", (1, 28, 28)),
        ("abcrown_resnet2b.pth", "cifar_resnet2b", (3, 32, 32)),
        ("abcrown_cifar_conv_small_pgd.pth", "cifar_conv_small", (3, 32, 32)),
        ("oval21_cifar_base_kw.pth", "cifar_base_kw", (3, 32, 32)),
    ],
)
def test_published_networks(weights, factory, shape):
    models = SHARED / "models"
    module = load_model(f"{models / 'nets.py'}:{factory}", models / weights)
    assert module(torch.rand(2, *shape)).shape == (2, 10)


def test_missing_sources(tmp_path, nets):
    assert "no such file" in message(f"{tmp_path}/none.py:net")
    assert "no module named 'no_such_package'" in message("no_such_package.nets:net")
    assert "neither a Python file" in message("some/folder:net")
    assert message(f"{nets}:nett").endswith("has no function 'nett'; there are net, Net")
    assert "has no function 'number'" in message(f"{nets}:number")
    assert "which function" in message(nets, named=nets)
    empty = write(tmp_path / "empty.py", "x = 1\n")
    assert "defines no function" in message(f"{empty}:net")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def net():\n    x = {}\n    return x['a\\nb']\n", "raised KeyError: 'a\\nb' (bad.py:3)"),
        ("def net():\n    raise ValueError('two\\n  lines')\n", "raised ValueError: two lines (bad.py:2)"),
        ("import json\ndef net():\n    return json.loads('{')\n", "JSONDecodeError: Expecting property name"),
        ("def net(size):\n    pass\n", "raised TypeError: net() missing 1 required positional argument: 'size'"),
        ("def net():\n    import sys\n    sys.exit('stop')\n", "raised SystemExit: stop (bad.py:3)"),
        ("\n1 / 0\ndef net(): pass\n", "importing it raised ZeroDivisionError: division by zero (bad.py:2)"),
        ("def net(:\n", "importing it raised SyntaxError: invalid syntax (bad.py, line 1) (bad.py:1)"),
        ("import no_such_helper\n", "raised ModuleNotFoundError: No module named 'no_such_helper' (bad.py:1)"),
        ("def net():\n    return 3\n", "returned a int, not a torch.nn.Module"),
        ("from torch import nn\ndef net():\n    return nn.ReLU\n", "not a torch.nn.Module; return an instance of it"),
    ],
)
def test_factories_that_fail(tmp_path, source, words):
    path = write(tmp_path / "bad.py", source)
    before = set(sys.modules)
    assert words in message(f"{path}:net")
    assert not any("bad" in name and "import" in words for name in set(sys.modules) - before)


def test_the_cause_is_chained_and_the_line_is_the_users(tmp_path):
    path = write(tmp_path / "bad.py", "import json\ndef net():\n    return json.loads('{')\n")
    with pytest.raises(ModelError, match=r"\(bad\.py:3\)") as caught:
        load_model(f"{path}:net")
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_imported_module_that_fails(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "broken_one.py", "import no_such_helper\n")
    write(tmp_path / "broken_two.py", "1 / 0\n")
    assert "No module named 'no_such_helper' (broken_one.py:1)" in message("broken_one:net")
    assert "raised ZeroDivisionError: division by zero (broken_two.py:1)" in message("broken_two:net")


# --- weights that do not fit


def test_misfits(tmp_path, nets):
    weights = tmp_path / "w.pt"
    torch.save({"weight": torch.ones(2, 4), "extra": torch.ones(1)}, weights)
    text = message(f"{nets}:net", weights)
    assert "does not fit Linear" in text
    assert "1 missing: bias" in text
    assert "1 unexpected: extra" in text
    assert "1 of another shape: weight is [2, 4], not [2, 3]" in text
    assert "(of 2 in the file)" in text
    torch.save({f"layer.{i}": torch.ones(1) for i in range(40)}, weights)
    text = message(f"{nets}:net", weights)
    assert "2 missing: weight, bias" in text
    assert "40 unexpected: layer.0, layer.1, layer.2, ..." in text
    torch.save(
        {"weight": torch.ones(2, 3), "bias": torch.ones(2), "a\nb": torch.ones(1), 'c"d': torch.ones(1)}, weights
    )
    assert '2 unexpected: a b, c"d (of 4 in the file)' in message(f"{nets}:net", weights)


class Inner(nn.Module):
    """Loads its weights into the network inside, as a wrapper that normalises does."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        return self.net.load_state_dict(state_dict, strict=strict, assign=assign)


class Picky(nn.Module):
    def load_state_dict(self, state_dict, strict=True, assign=False):
        raise AssertionError("only\nversion 2 weights")


def test_a_load_state_dict_of_its_own(tmp_path):
    weights = tmp_path / "w.pt"
    torch.save(nn.Linear(3, 2).state_dict(), weights)
    assert load_model(Inner(), weights).net.weight.equal(torch.load(weights)["weight"])
    assert "AssertionError: only version 2 weights" in message(Picky(), weights)
    torch.save({"weight": torch.ones(2, 3)}, weights)
    assert "does not fit Inner: 1 missing: bias" in message(Inner(), weights)


# --- other files


def test_onnx(tmp_path):
    path = save(tmp_path / "net.onnx", [node("Relu")], (1, 3))
    assert isinstance(load_model(path), OnnxModule)
    assert isinstance(load_model(str(path)), OnnxModule)
    assert "carries its own weights" in message(path, "w.pt")
    assert "no such file" in message(tmp_path / "none.onnx")


def test_unknown_kinds(tmp_path):
    assert "file.py:factory" in message("net.h5")
    assert "says nothing about the network" in message("weights.pth")
    assert "net.onnx" in message("net")
    assert "not a kind of model" in message("C:\\nets\\net.keras", named="net.keras")


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 2), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.linear(x))


def exported(path: Path, module, example, free=True):
    shapes = ({0: torch.export.Dim("batch")},) * len(example) if free else None
    torch.export.save(torch.export.export(module, example, dynamic_shapes=shapes), path)
    return path


def test_exported_program(tmp_path):
    module = Dropped().eval()
    path = exported(tmp_path / "net.pt2", module, (torch.rand(2, 3),))
    loaded = load_model(path, trust=True)
    assert not loaded.training
    x = torch.rand(5, 3)
    for _ in range(2):
        assert loaded(x).equal(module(x))
        assert loaded.train().training
        assert not loaded.eval().training
    (gradient,) = torch.autograd.grad(loaded(x.requires_grad_()).sum(), x)
    assert gradient.allclose(module.linear.weight.sum(0).expand(5, 3))
    loaded.requires_grad_(False)
    assert loaded.double()(x.double()).dtype == torch.float64
    assert "carries its own weights" in message(path, "w.pt")


class Two(nn.Module):
    def forward(self, x, y):
        return x + y, x - y


def test_exported_programs_that_cannot_be_used(tmp_path):
    path = tmp_path / "net.pt2"
    text = message(exported(path, nn.Linear(3, 2), (torch.rand(4, 3),), free=False), trust=True)
    assert "batches of exactly 4" in text
    assert "torch.export.Dim" in text
    assert "training mode" in message(exported(path, Dropped().train(), (torch.rand(2, 3),)), trust=True)
    assert "training mode" in message(exported(path, nn.BatchNorm1d(3).train(), (torch.rand(2, 3),)), trust=True)
    assert "2 inputs and 2 outputs" in message(exported(path, Two(), (torch.rand(2, 3),) * 2), trust=True)
    path.write_bytes(b"PK\x03\x04 not a program")
    assert "not a program that this torch" in message(path, trust=True)
    assert "no such file" in message(tmp_path / "none.pt2")
