"""Files of weights, whole and broken; a file that would run code must not."""

import argparse
import random
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers.shared import SHARED, needs_shared
from holdfast.errors import ModelError
from holdfast.models import load_weights

STATE = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.tensor([0.5, -0.5])}


def message(path):
    with pytest.raises(ModelError) as caught:
        load_weights(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def same(state):
    return state.keys() == STATE.keys() and all(state[key].equal(STATE[key]) for key in STATE)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.safetensors"])
def test_formats(tmp_path, name):
    path = tmp_path / name
    save_file(STATE, path) if name.endswith("safetensors") else torch.save(STATE, path)
    assert same(load_weights(path))
    assert same(load_weights(str(path)))


def test_the_old_format_of_torch(tmp_path):
    torch.save(STATE, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert same(load_weights(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    "content",
    [
        OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"model": STATE},
        {"model_state_dict": STATE},
        [STATE],
        (STATE,),
        [{"state_dict": [OrderedDict(STATE)]}],
        {f"module.{key}": value for key, value in STATE.items()},
        {"state_dict": {f"module.{key}": value for key, value in STATE.items()}},
        {key: nn.Parameter(value) for key, value in STATE.items()},
    ],
    ids=str,
)
def test_wrappings(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    assert same(load_weights(tmp_path / "w.pt"))


def test_a_prefix_that_only_some_keys_have_is_theirs(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert list(load_weights(tmp_path / "w.pt")) == ["module.a", "b"]


def test_a_tensor_called_model_is_a_weight(tmp_path):
    torch.save({"model": torch.ones(1)}, tmp_path / "w.pt")
    assert list(load_weights(tmp_path / "w.pt")) == ["model"]


@needs_shared
@pytest.mark.parametrize("path", sorted((SHARED / "models").glob("*.pt*")), ids=lambda p: p.name)
def test_published_files(path):
    state = load_weights(path)
    assert all(value.device.type == "cpu" for value in state.values())
    assert len(state) >= 8


# --- what can be wrong


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_are_something_else(tmp_path, name):
    path = tmp_path / name
    assert "no such file" in message(path)
    path.write_bytes(b"")
    assert "empty" in message(path)
    path.write_bytes(b"\n<!DOCTYPE html>\n<html><body>404</body></html>")
    assert "HTML page" in message(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "git lfs pull" in message(path)
    path.write_bytes(b"garbage" * 100)
    assert "get it again" in message(path)
    path.unlink()
    path.mkdir()
    assert "is a folder" in message(path)


def test_a_file_cut_short(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-300])
    assert "cut short" in message(path)
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-20])
    assert "cut short" in message(path)
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-8])
    assert "not a whole safetensors file" in message(path)


@pytest.mark.parametrize("name", ["w.pt", "old.pt", "w.safetensors"])
def test_damage_anywhere_is_a_model_error(tmp_path, name):
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=name == "w.pt")
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole[: rng.randrange(8, len(whole))])
        for _ in range(rng.randrange(4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        message(path)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    path, trace = tmp_path / "w.pt", tmp_path / "trace"
    torch.save({"state_dict": STATE, "x": Touch(str(trace))}, path, _use_new_zipfile_serialization=zipped)
    text = message(path)
    assert "run code" in text
    assert "io.open" in text
    assert "model.state_dict()" in text
    assert not trace.exists()


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"args": argparse.Namespace(a=1), "state_dict": STATE}], ids=str)
def test_pickled_objects(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    text = message(tmp_path / "w.pt")
    assert "run code" in text
    assert "Linear" in text or "Namespace" in text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "w.pt")
    assert "TorchScript" in message(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.ones(3), "holds a Tensor, not a state dict"),
        ([STATE, STATE], "holds a list"),
        ({"epoch": 3, "lr": 0.1, "w": torch.ones(1)}, "no state dict: epoch, lr are not tensors"),
        ({"weights": {"epoch": 3}}, "no state dict: weights is not a tensor"),
        ({}, "empty"),
    ],
    ids=str,
)
def test_no_state_dict(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pt")
    assert words in message(tmp_path / "w.pt")
