"""Whatever lies in a file, holdfast meets it with one line: no traceback, no executed byte, bounded memory and time."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from helpers.hostile import CORPUS, FACTORY, TRAINING, png, program
from helpers.sources import drain
from holdfast.audit.custom import find_protocol
from holdfast.data import load_data
from holdfast.errors import HoldfastError
from holdfast.models import load_model, load_weights
from holdfast.threats import Linf
from holdfast.train import train

pytest.importorskip("PIL")
SECONDS, MEGABYTES = 5, 300


def line(error):
    """The one line that an error says."""
    text = str(error.value)
    assert text
    assert len(text.splitlines()) == 1
    return text


# --- the corpus


@pytest.fixture(scope="module")
def accounts(tmp_path_factory):
    """What the command line made of every file of the corpus, in a process of its own."""
    root = tmp_path_factory.mktemp("corpus")
    command = [sys.executable, "-m", "helpers.hostile", str(root)]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True, env=env)
    assert not done.stderr
    return {account["name"]: account for account in json.loads(done.stdout)}


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
def test_the_command_line_meets_it_with_one_line(accounts, hostile):
    found = accounts[hostile.name]
    assert not found["ran"]
    assert found["raised"] is None
    assert found["error"].startswith("holdfast: ")
    assert len(found["error"].splitlines()) == 1
    assert not found["output"]
    assert found["code"] == hostile.code
    assert found["seconds"] < SECONDS


def test_the_command_line_needs_no_memory_for_it(accounts):
    peaks = [account["megabytes"] for account in accounts.values()]
    assert peaks[-1] - peaks[0] < MEGABYTES


READ = {
    "model": load_model,
    "trusted": lambda argument: load_model(argument, trust=True),
    "data": lambda argument: drain(load_data(argument)),
    "protocol": lambda argument: find_protocol(argument, Linf(0.1)),
    "resumed": lambda argument: train("mlp", "digits", Linf(0.1), run=argument, **TRAINING),
    "learner": lambda argument: train(argument, "digits", Linf(0.1), **TRAINING),
}


@pytest.mark.parametrize(
    "hostile", [hostile for hostile in CORPUS if hostile.what != "smoothed"], ids=lambda hostile: hostile.name
)
def test_python_meets_it_with_one_line(tmp_path, hostile):
    folder, trace = tmp_path / "folder", tmp_path / "trace"
    folder.mkdir()
    argument = hostile.write(folder, trace)
    namespace = {}
    exec(FACTORY, namespace)
    read = READ.get(hostile.what, lambda argument: load_model(namespace["net"](), argument))
    with pytest.raises(HoldfastError) as error:
        read(argument)
    line(error)
    assert error.value.exit_code == hostile.code
    assert not trace.exists()


def test_a_program_that_is_trusted_does_run(tmp_path):
    """The traps are live: what is refused above runs its command once it is trusted."""
    (hostile,) = (hostile for hostile in CORPUS if hostile.name == "a_run_that_names_code")
    with pytest.raises(HoldfastError):
        load_model(hostile.write(tmp_path, tmp_path / "trace"), trust=True)
    assert (tmp_path / "trace").exists()
    (tmp_path / "whole.pt2").write_bytes(program())
    assert load_model(tmp_path / "whole.pt2", trust=True)(torch.rand(3, 1, 8, 8)).shape == (3, 10)


# --- any damage to a whole file


def torch_file(**options):
    file = io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(6.0), "b": torch.ones(2)}, "epoch": 3}, file, **options)
    return file.getvalue()


def npz_file(save_arrays):
    file = io.BytesIO()
    save_arrays(file, x=np.arange(24, dtype=np.float32).reshape(4, 6), y=np.arange(4))
    return file.getvalue()


def read_weights(folder, content, name="w.pt"):
    (folder / name).write_bytes(content)
    load_weights(folder / name)


def read_npz(folder, content):
    (folder / "d.npz").write_bytes(content)
    drain(load_data(f"npz:{folder / 'd.npz'}"))


def read_idx(folder, content, ending=""):
    (folder / f"t10k-images-idx3-ubyte{ending}").write_bytes(content)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 2) + bytes(2))
    drain(load_data(f"mnist:{folder}"))


def read_image(folder, content):
    (folder / "class").mkdir(exist_ok=True)
    (folder / "class" / "0").write_bytes(content)
    drain(load_data(f"images:{folder}"))


def image_file(form):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 4, 3), np.uint8)).save(file, form)
    return file.getvalue()


IDX = struct.pack(">4I", 2051, 2, 3, 3) + bytes(range(18))
WHOLE = {
    "torch": (read_weights, torch_file()),
    "old torch": (read_weights, torch_file(_use_new_zipfile_serialization=False)),
    "safetensors": (
        lambda folder, content: read_weights(folder, content, "w.safetensors"),
        save({"w": torch.arange(6.0), "b": torch.ones(2)}),
    ),
    "npz": (read_npz, npz_file(np.savez)),
    "compressed npz": (read_npz, npz_file(np.savez_compressed)),
    "idx": (read_idx, IDX),
    "idx.gz": (lambda folder, content: read_idx(folder, content, ".gz"), gzip.compress(IDX, mtime=0)),
    "png": (read_image, png(8, 8, bytes(8 * 25))),
} | {form: (read_image, image_file(form)) for form in ("JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")}

EDIT = st.tuples(st.sampled_from(["set", "cut", "insert", "number"]), st.integers(0, 2**16), st.integers(0, 2**32 - 1))


def damaged(content, edits):
    """The content after some edits: a byte changed, the end cut off, bytes put in, four bytes made any number."""
    content = bytearray(content)
    for kind, place, value in edits:
        at = place % (len(content) + 1)
        if kind == "set" and at < len(content):
            content[at] = value % 256
        elif kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = struct.pack("<I", value)
        elif kind == "number":
            content[at : at + 4] = struct.pack("<I", value)
    return bytes(content)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_read(tmp_path, name):
    read, content = WHOLE[name]
    read(tmp_path, content)


def refusal(read, folder, content) -> str:
    """The line that refuses a file; none where it is whole still."""
    try:
        read(folder, content)
    except HoldfastError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name):
    read, content = WHOLE[name]

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(st.lists(EDIT, min_size=1, max_size=4))
    def check(edits):
        assert len(refusal(read, tmp_path, damaged(content, edits)).splitlines()) <= 1

    check()


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(NAMES.filter(lambda name: name not in (".", "..")), st.integers(0, 3), max_size=4))
def test_folders_of_classes_of_any_name(tmp_path_factory, folders):
    root = tmp_path_factory.mktemp("classes")
    for name, count in folders.items():
        (root / name).mkdir(exist_ok=True)
        for number in range(count):
            (root / name / str(number)).write_bytes(png(2, 2, bytes(2 * 7)))
    seen = {name: count for name, count in folders.items() if not name.startswith(".")}
    if any(seen.values()):
        source = load_data(f"images:{root}")
        assert source.classes == tuple(sorted(seen))
        assert len(source) == sum(seen.values())
        assert drain(source) == len(source)
    else:
        with pytest.raises(HoldfastError):
            load_data(f"images:{root}")
