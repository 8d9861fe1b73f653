"""Pickles of weights, looked through before they are read: refused in a line, or left to the reader."""

import contextlib
import pickletools
import random
from collections import OrderedDict

import pytest
import torch

from holdfast.errors import ModelError
from holdfast.models.pickles import check_pickles

CODES = [code.code.encode("latin-1") for code in pickletools.opcodes]


def test_instructions_at_random(tmp_path):
    path, r = tmp_path / "w.pt", random.Random(0)
    for _ in range(500):
        arguments = (bytes(r.choices([0, 1, 2, 10, 46], k=r.choice([0, 0, 0, 1, 2, 4]))) for _ in range(12))
        path.write_bytes(b"".join(r.choice(CODES) + argument for argument in arguments))
        with contextlib.suppress(ModelError):
            check_pickles(path)


@pytest.mark.parametrize(
    "code",
    [
        b"K\x01R.",  # a call of one value
        b"K\x01\x86.",  # a pair of one value
        b"\x8d" + (2**45).to_bytes(8, "little"),  # a word longer than memory
        b"(a.",
        b"h\x07.",
    ],
)
def test_what_the_reader_itself_will_refuse_is_left_to_it(tmp_path, code):
    path = tmp_path / "w.pt"
    path.write_bytes(b"\x80\x02" + code)
    check_pickles(path)


def test_what_has_no_end_is_refused(tmp_path):
    path, inner = tmp_path / "w.pt", [torch.zeros(1)]
    for _ in range(40):
        inner = [inner, inner]
    torch.save(inner, path)
    with pytest.raises(ModelError, match="holds more than 10000000 values"):
        check_pickles(path)
    inner = []
    inner.append(inner)
    torch.save(inner, path)
    with pytest.raises(ModelError, match="a container that holds itself"):
        check_pickles(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_let_through(tmp_path, zipped):
    path, shared = tmp_path / "w.pt", torch.rand(3, 4)
    state = OrderedDict(a=shared, b=shared.t(), c=torch.nn.Parameter(shared))
    torch.save(
        {"model": state, "optimizer": [{"lr": 0.1, "params": [0, 1]}]}, path, _use_new_zipfile_serialization=zipped
    )
    check_pickles(path)
