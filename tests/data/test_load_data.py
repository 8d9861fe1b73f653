import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from helpers.shared import SHARED, needs_shared
from helpers.sources import assert_same, drain, read
from holdfast.data import Source, from_tensors, load_data
from holdfast.errors import DataError, SettingError

KNOWN = "known are digits, mnist:DIR, npz:FILE, csv:FILE, images:DIR"


def tensors(count=20):
    return torch.arange(2.0 * count).reshape(count, 2), torch.arange(count) % 3


def test_digits_by_name():
    assert load_data("digits").name == "digits test"
    assert len(load_data("digits", split="train")) == 1297


def test_what_is_in_python_already():
    x, y = tensors()
    source = from_tensors(x, y)
    assert load_data(source) is source
    for spec in ((x, y), (x.numpy(), y.numpy()), TensorDataset(x, y)):
        assert_same(read(load_data(spec), 6), read(source, 20))


def test_npz_with_options(tmp_path):
    np.savez(tmp_path / "a.npz", pixels=np.zeros((5, 3, 4, 3), np.uint8), kind=np.arange(5))
    spec = f"npz:{tmp_path}/a.npz?x=pixels&y=kind&layout="
    assert load_data(f"{spec}nhwc").shape == (3, 3, 4)
    assert load_data(f"{spec}nchw").shape == (3, 4, 3)
    assert drain(load_data(f"{spec}nchw")) == 5


@pytest.mark.parametrize("query", ["color=rgb", "layout=", "x"])
def test_npz_with_an_unknown_option(query):
    text = f'npz:a.npz?{query}: option "{query.partition("=")[0]}={query.partition("=")[2]}" is not known; '
    with pytest.raises(DataError, match=re.escape(text) + "use x=NAME, y=NAME or layout=nhwc$"):
        load_data(f"npz:a.npz?{query}")


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=np.zeros((5, 3)), y=np.arange(5))
    assert len(load_data("npz:~/a.npz")) == 5


@pytest.mark.parametrize("spec", ["cifar10", "digits:8", "npz:", "mnist", "csv:", ""])
def test_unknown_names(spec):
    with pytest.raises(DataError) as caught:
        load_data(spec)
    assert str(caught.value) == f'unknown data "{spec}"; {KNOWN}'


def test_a_path_without_prefix_gets_a_suggestion(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((5, 3)), y=np.arange(5))
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "numbers").mkdir()
    (tmp_path / "numbers" / "t10k-images-idx3-ubyte.gz").touch()
    for name, prefix in (("a.npz", "npz"), ("pets", "images"), ("numbers", "mnist")):
        path = tmp_path / name
        with pytest.raises(DataError) as caught:
            load_data(str(path))
        assert str(caught.value) == f'unknown data "{path}"; did you mean {prefix}:{path}? {KNOWN}'


def test_another_kind_of_data():
    with pytest.raises(DataError, match=r"^data given as int; give a string \(digits, .*\), a torch Dataset or a pair"):
        load_data(3)


@pytest.mark.parametrize(
    ("examples", "start", "stop"),
    [
        ("3:9", 3, 9),
        ("3:", 3, 20),
        (":9", 0, 9),
        (":", 0, 20),
        ("15:99", 15, 20),
        (" 3:9 ", 3, 9),
        (slice(3, 9), 3, 9),
        (slice(None), 0, 20),
        (slice(15, None, 1), 15, 20),
        (range(3, 9), 3, 9),
    ],
)
def test_examples_keep_their_positions(examples, start, stop):
    whole = read(load_data(tensors()), 20)
    part = load_data(tensors(), examples=examples)
    assert isinstance(part, Source)
    assert len(part) == stop - start
    assert (part.name, part.shape, part.classes) == (f"tensors[{start}:{stop}]", (2,), None)
    for size in (1, 4, 20):
        assert_same(read(part, size), whole, slice(start, stop))


bounds = st.integers(0, 25)


@given(bounds, bounds, bounds, bounds, st.integers(1, 21))
def test_positions_mean_the_same_in_a_part_of_a_part(a, b, c, d, size):
    source = from_tensors(*tensors())
    positions = [i for i in range(20) if a <= i < b and c <= i < d]
    if a >= min(b, 20):  # no part at all: see test_nothing_selected
        return
    part = load_data(source, examples=slice(a, b))
    assert read(part, size, c, d).index.tolist() == positions
    if positions:
        assert read(load_data(part, examples=slice(c, d)), size).index.tolist() == positions
    else:
        with pytest.raises(DataError, match="select nothing"):
            load_data(part, examples=slice(c, d))


@pytest.mark.parametrize("examples", ["20:", "100:200", "5:5", "9:3", slice(20, 30), range(0)])
def test_nothing_selected(examples):
    with pytest.raises(DataError, match=r"^tensors: examples \d+:\d* select nothing; it has 20 examples, 0:20$"):
        load_data(tensors(), examples=examples)


def test_nothing_selected_of_a_part():
    part = load_data(tensors(), examples="5:9")
    with pytest.raises(DataError, match=r"^tensors\[5:9\]: examples 0:5 select nothing; it has 4 examples, 5:9$"):
        load_data(part, examples="0:5")


@pytest.mark.parametrize(
    "examples", ["1000", "", "-5:", ":-5", "0:10:2", "a:b", "1.5:3", slice(0, 9, 2), slice(-5, None), range(9, 0, -1)]
)
def test_examples_of_another_form(examples):
    text = f'examples {examples!r} are not START:STOP; write "0:1000", "1000:" or ":" (no signs, no step)'
    with pytest.raises(SettingError, match=f"^{re.escape(text)}$"):
        load_data(tensors(), examples=examples)


@pytest.mark.parametrize("scheme", ["", "npz:", "images:", "mnist:"])
@pytest.mark.parametrize("path", ["a\0b", "a\ud800b", "~a\0", "~\udcff/b", "~nobody/a\0"])
def test_paths_that_no_file_can_have(scheme, path):
    with pytest.raises(DataError) as caught:
        load_data(scheme + path)
    assert str(caught.value).isprintable()


def test_importing_data_pulls_in_no_optional_library():
    code = "import sys, holdfast.data; assert not {'PIL', 'sklearn'} & set(sys.modules), 'pulled in'"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_shared
def test_a_part_of_mnist():
    part = load_data(f"mnist:{SHARED}/data/mnist", examples="9000:9100")
    whole = read(load_data(f"mnist:{SHARED}/data/mnist"), 1000)
    assert part.name == "mnist test[9000:9100]"
    assert_same(read(part, 30), whole, slice(9000, 9100))
