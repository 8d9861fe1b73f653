"""Files built to break their readers, one of a kind, and what each of them must be met with.

Each ``write`` gets an empty folder and a path that no code in the file may bring into being, and returns the argument
that names the file: ``--model``, ``--weights``, ``--data`` or ``--protocol``, or the folder of a run. Run as a program
in a folder, this module has the command line read them all, and prints what became of it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import sys
import time
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save_file
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CODES = {"model": 3, "trusted": 3, "weights": 3, "learner": 3, "data": 4, "protocol": 2, "resumed": 5, "smoothed": 5}
"""What is hostile, and the exit code that it must be met with."""


@dataclass(frozen=True)
class Hostile:
    """A file that must be met with one line, whatever is done with it."""

    what: str
    name: str
    write: Callable[[Path, Path], str]

    @property
    def code(self) -> int:
        return CODES[self.what]


CORPUS: list[Hostile] = []


def _hostile(what: str) -> Callable[[Callable[[Path, Path], str]], Callable[[Path, Path], str]]:
    def keep(write: Callable[[Path, Path], str]) -> Callable[[Path, Path], str]:
        CORPUS.append(Hostile(what, write.__name__, write))
        return write

    return keep


def _each(what: str, contents: Mapping[str, object], write: Callable[[Path, Path, Any], str]) -> None:
    for name, content in contents.items():
        CORPUS.append(Hostile(what, name, lambda folder, trace, content=content: write(folder, trace, content)))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def _saved(path: Path, content: object, **options: Any) -> str:
    torch.save(content, path, **options)
    return str(path)


def _rezipped(source: bytes, path: Path, edit: Callable[[str, bytes], bytes | None], method: int = 0) -> str:
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(path, "w", method) as new:
        for name in old.namelist():
            if (content := edit(name, old.read(name))) is not None:
                new.writestr(name, content)
    return str(path)


# --- weights

_STATE = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}


def _torch_file() -> bytes:
    file = io.BytesIO()
    torch.save(_STATE, file)
    return file.getvalue()


@_hostile("weights")
def weights_that_run_a_command(folder: Path, trace: Path) -> str:
    return _saved(folder / "w.pt", {"state_dict": _STATE, "x": Touch(trace)})


@_hostile("weights")
def weights_that_run_a_command_in_the_old_format(folder: Path, trace: Path) -> str:
    return _saved(folder / "w.pt", {"x": Touch(trace)}, _use_new_zipfile_serialization=False)


@_hostile("weights")
def a_bare_pickle_of_a_command(folder: Path, trace: Path) -> str:
    (folder / "w.pth").write_bytes(pickle.dumps(Touch(trace)))
    return str(folder / "w.pth")


@_hostile("weights")
def a_list_that_holds_itself(folder: Path, trace: Path) -> str:
    content: list[Any] = []
    content.append(content)
    return _saved(folder / "w.pt", content)


@_hostile("weights")
def a_state_dict_that_holds_itself(folder: Path, trace: Path) -> str:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    return _saved(folder / "w.pt", content)


def _pickled(folder: Path, trace: Path, code: bytes) -> str:
    return _rezipped(_torch_file(), folder / "w.pt", lambda name, old: code if name.endswith("data.pkl") else old)


def _doubled(make: bytes, begin: bytes) -> bytes:
    """Forty containers, each of which holds the one before twice."""
    return b")q\0" + b"".join(begin + b"h%ch%c" % (i, i) + make + b"q%c" % (i + 1) for i in range(40))


_each(
    "weights",
    {
        "tuples_without_end": b"\x80\x02)" + b"\x85" * 10**5 + b".",
        "lists_without_end": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        "marks_without_end": b"\x80\x02" + b"(" * 10**5 + b".",
        "a_number_of_2_gb": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
        "a_string_of_4_gb": b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b".",
        "bytes_of_an_exbibyte": b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 2**60) + b"\x85R.",
        "a_tensor_of_an_exbibyte": b"\x80\x02ctorch\nTensor\n\x8a\x08" + struct.pack("<q", 2**58) + b"\x85R.",
        "bytes_of_a_gigabyte_a_hundred_times": b"\x80\x02]("
        + 100 * (b"cbuiltins\nbytearray\n\x8a\x04" + struct.pack("<i", 2**30) + b"\x85R")
        + b"e.",
        "a_tensor_of_a_size": b"\x80\x02ctorch\nTensor\nctorch\nSize\nK\x07K\x07\x86\x85R\x85R.",
        "a_key_of_doubled_tuples": b"\x80\x02}" + _doubled(b"\x86", b"") + b"K\x01s.",
        "doubled_lists_in_a_message": b"\x80\x02" + _doubled(b"e", b"](") + b")R.",
        "lists_that_double_after_they_were_shared": b"\x80\x02"
        + b"".join(b"]q%c" % i for i in range(40))
        + b"".join(b"h%c(h%ch%ce" % (i + 1, i, i) for i in reversed(range(39)))
        + b"h\x27)R.",
        "a_dict_that_hides_its_items": b"\x80\x02ccollections\nOrderedDict\n)RX\1\0\0\0aK\1s}X\5\0\0\0itemsK\1sb.",
        "no_pickle": b"",
    },
    _pickled,
)


@_hostile("weights")
def weights_that_show_one_number_as_many(folder: Path, trace: Path) -> str:
    states = [{"1.weight": torch.ones(1).expand(10**7, 10**7), "1.bias": torch.zeros(10)} for _ in range(2)]
    return _saved(folder / "w.pt", {"model": states[0], "ema": states[1]})


@_hostile("weights")
def weights_that_show_one_storage_many_times(folder: Path, trace: Path) -> str:
    storage = torch.zeros(2**20)
    return _saved(folder / "w.pt", {f"{number}.weight": storage for number in range(2000)})


@_hostile("weights")
def weights_of_a_name_of_dots(folder: Path, trace: Path) -> str:
    return _saved(folder / "w.pt", {"." * 10**5: torch.zeros(1), "." * 10**5 + "x": torch.zeros(1)})


@_hostile("weights")
def weights_in_nested_tensors(folder: Path, trace: Path) -> str:
    with warnings.catch_warnings(action="ignore"):
        nested = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)])
        return _saved(folder / "w.pt", {"1.weight": nested, "1.bias": torch.zeros(10)})


@_hostile("weights")
def a_storage_of_an_exbibyte(folder: Path, trace: Path) -> str:
    one = struct.pack("<BH", 0x4D, 640)  # how pickle writes the length of the larger storage
    huge = b"\x8a\x08" + struct.pack("<q", 2**58)
    return _rezipped(_torch_file(), folder / "w.pt", lambda _, old: old.replace(one, huge))


@_hostile("weights")
def a_zip_bomb_of_weights(folder: Path, trace: Path) -> str:
    """Six members of 1 GiB each, of which the directory tells; none of them is inflated."""
    path = folder / "w.pt"
    _bomb(path, {"archive/data.pkl": b"\x80\x02}."}, [f"archive/data/{number}" for number in range(6)])
    return str(path)


def _bomb(path: Path, members: Mapping[str, bytes], bombs: list[str]) -> None:
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = zeros.compress(bytes(2**20)) + zeros.flush()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name in bombs:
            archive.writestr(name, bytes(2**20))
    # The directory, which readers go by, says that each bomb has 1 GiB.
    content = path.read_bytes()
    content = content.replace(struct.pack("<II", len(packed), 2**20), struct.pack("<II", len(packed), 2**30))
    path.write_bytes(content)


def _safetensors(folder: Path, trace: Path, content: bytes) -> str:
    (folder / "w.safetensors").write_bytes(content)
    return str(folder / "w.safetensors")


def _tensor(shape: list[int], end: int, dtype: str = "F32", body: bytes = b"") -> bytes:
    header = json.dumps({"1.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header + body


_each(
    "weights",
    {
        "safetensors_of_4_tib": _tensor([2**40], 2**42),
        "safetensors_of_no_int64": _tensor([0, 2**63], 0),
        "safetensors_that_overflow": _tensor([2**62, 4, 0], 0),
        "safetensors_of_4_bits": _tensor([8], 4, "F4", bytes(4)),
        "safetensors_of_an_unknown_type": _tensor([1], 4, "Q7", bytes(4)),
        "safetensors_without_end": struct.pack("<Q", 2**63),
        "safetensors_of_brackets": struct.pack("<Q", 10**5) + b"[" * 10**5,
    },
    _safetensors,
)


@_hostile("weights")
def a_sparse_file_of_a_tebibyte(folder: Path, trace: Path) -> str:
    with (folder / "w.safetensors").open("wb") as file:
        file.truncate(2**40)
    return str(folder / "w.safetensors")


@_hostile("weights")
def weights_from_a_pipe(folder: Path, trace: Path) -> str:
    os.mkfifo(folder / "w.pt")
    return str(folder / "w.pt")


@_hostile("weights")
def weights_from_a_device(folder: Path, trace: Path) -> str:
    return "/dev/zero"


@_hostile("weights")
def weights_behind_a_loop_of_links(folder: Path, trace: Path) -> str:
    (folder / "w.pt").symlink_to(folder / "w.pt")
    return str(folder / "w.pt")


@_hostile("weights")
def weights_of_a_name_without_end(folder: Path, trace: Path) -> str:
    return str(folder / ("w" * 5000 + ".pt"))


@_hostile("weights")
def weights_of_a_name_that_is_no_text(folder: Path, trace: Path) -> str:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.pt"))
    path.write_bytes(b"x")
    return str(path)


# --- models


def _program() -> bytes:
    batch = torch.export.Dim("batch")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    file = io.BytesIO()
    torch.export.save(torch.export.export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},)), file)
    return file.getvalue()


_PROGRAM: list[bytes] = []


def program() -> bytes:
    """A whole ``.pt2`` file, made once."""
    if not _PROGRAM:
        _PROGRAM.append(_program())
    return _PROGRAM[0]


def _pickle_of(trace: Path) -> bytes:
    file = io.BytesIO()
    torch.save(Touch(trace), file)
    return file.getvalue()


@_hostile("model")
def a_program_with_a_pickled_example(folder: Path, trace: Path) -> str:
    return _rezipped(
        program(), folder / "net.pt2", lambda name, old: _pickle_of(trace) if "sample_inputs" in name else old
    )


@_hostile("model")
def a_program_with_a_pickled_weight(folder: Path, trace: Path) -> str:
    def edit(name: str, old: bytes) -> bytes:
        if name.endswith("weight_0"):
            return _pickle_of(trace)
        return old.replace(b'"use_pickle": false', b'"use_pickle": true') if "weights_config" in name else old

    return _rezipped(program(), folder / "net.pt2", edit)


@_hostile("model")
def a_program_with_a_shape_that_is_evaluated(folder: Path, trace: Path) -> str:
    command = f"__import__('os').system('touch {trace}')"

    def edit(name: str, old: bytes) -> bytes:
        if not name.endswith("model.json"):
            return old
        return json.dumps(_with_expression(json.loads(old), command)).encode()

    return _rezipped(program(), folder / "net.pt2", edit)


def _with_expression(value: Any, command: str) -> Any:
    if isinstance(value, dict):
        return {k: command if k == "expr_str" else _with_expression(v, command) for k, v in value.items()}
    return [_with_expression(v, command) for v in value] if isinstance(value, list) else value


@_hostile("model")
def a_run_that_names_code(folder: Path, trace: Path) -> str:
    (folder / "evil.py").write_text(f"import os\nos.system('touch {trace}')\n")
    about = {"network": {"name": f"{folder / 'evil.py'}:net", "shape": [1, 8, 8], "classes": 10}}
    (folder / "train.json").write_text(json.dumps(about))
    return str(folder)


def _record(folder: Path, trace: Path, content: str) -> str:
    (folder / "train.json").write_text(content)
    return str(folder)


def _network(**changes: Any) -> str:
    return json.dumps({"network": {"name": "mlp", "shape": [1, 8, 8], "classes": 10} | changes})


_each(
    "model",
    {
        "a_run_of_a_tebibyte": _network(shape=[1, 2**15, 2**15]),
        "a_run_of_an_exbibyte": _network(classes=2**53),
        "a_run_of_no_size": _network(shape=[1, -8, 8]),
        "a_run_of_no_dimensions": _network(name="conv-small", shape=[]),
        "a_run_of_infinite_classes": _network(classes=float("inf")),
        "a_run_of_brackets": "[" * 10**5,
        "a_run_of_digits": '{"network": ' + "9" * 10**4 + "}",
        "a_run_from_the_hub": _network(name="hf:nobody/nothing"),
    },
    _record,
)


@_hostile("model")
def a_model_from_a_pipe(folder: Path, trace: Path) -> str:
    os.mkfifo(folder / "net.pt2")
    return str(folder / "net.pt2")


@_hostile("model")
def a_model_of_a_name_without_end(folder: Path, trace: Path) -> str:
    return str(folder / ("n" * 5000 + ".pt2"))


def _broken_program(folder: Path, trace: Path, edit: Callable[[str, bytes], bytes | None]) -> str:
    return _rezipped(program(), folder / "net.pt2", edit)


def _in_json(edit: Callable[[dict[str, Any]], object]) -> Callable[[str, bytes], bytes]:
    def change(name: str, old: bytes) -> bytes:
        if not name.endswith("model.json"):
            return old
        content = json.loads(old)
        edit(content)
        return json.dumps(content).encode()

    return change


_each(
    "trusted",
    {
        "a_program_without_its_graph": lambda name, old: None if name.endswith("model.json") else old,
        "a_program_without_a_weight": lambda name, old: None if name.endswith("weight_0") else old,
        "a_program_with_half_a_weight": lambda name, old: old[: len(old) // 2] if name.endswith("weight_0") else old,
        "a_program_without_weights": lambda name, old: b'{"config": {}}' if "weights_config" in name else old,
        "a_program_that_is_no_json": lambda name, old: b"{" if name.endswith("model.json") else old,
        "a_program_of_another_schema": _in_json(lambda content: content["schema_version"].update(major=99)),
        "a_program_of_unknown_operators": _in_json(
            lambda content: content["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.evil.run.default")
        ),
        "a_program_without_nodes": _in_json(lambda content: content["graph_module"]["graph"]["nodes"].clear()),
        "a_program_without_inputs": _in_json(lambda content: content["graph_module"]["graph"]["inputs"].clear()),
        "a_program_without_values": _in_json(lambda content: content["graph_module"]["graph"]["tensor_values"].clear()),
    },
    _broken_program,
)


@_hostile("trusted")
def a_zip_bomb_of_a_program(folder: Path, trace: Path) -> str:
    _bomb(folder / "net.pt2", {}, [f"net/data/weights/weight_{number}" for number in range(6)])
    return str(folder / "net.pt2")


# --- arrays


def _npy(header: bytes, body: bytes = b"", version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + body


def _said(shape: str, descr: str = "'|u1'") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()


def _npz(folder: Path, trace: Path, x: bytes, method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(folder / "d.npz", "w", method) as archive:
        archive.writestr("x.npy", x)
        archive.writestr("y.npy", _npy(_said("(2,)"), bytes(2)))
    return f"npz:{folder / 'd.npz'}"


_each(
    "data",
    {
        "an_array_of_pickles": _npy(_said("(2,)", "'|O'"), pickle.dumps([1, 2])),
        "a_header_that_is_code": _npy(b"__import__('os').system('true')\n"),
        "a_header_of_brackets": _npy(b"(" * 9000),
        "a_header_of_signs": _npy(_said("-" * 9000 + "1")),
        "a_header_of_digits": _npy(_said(f"({'9' * 9000},)")),
        "a_header_of_4_gb": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(2**24),
        "a_shape_of_no_int64": _npy(_said(f"({10**17}, {10**17}, {10**17})")),
        "a_shape_of_a_hundred_dimensions": _npy(_said(f"(2, {'1, ' * 100})"), bytes(2)),
        "a_shape_of_nothing": _npy(_said(f"(2, 0, {10**17})")),
        "a_type_of_a_gigabyte": _npy(_said("(2,)", "'<U999999999'")),
        "a_type_that_nobody_knows": _npy(_said("(2,)", "'<q17'")),
        "a_structured_type": _npy(_said("(2,)", "[('a', '<f4'), ('b', '<f4')]"), bytes(16)),
    },
    _npz,
)


@_hostile("data")
def an_array_whose_rows_are_a_bomb(folder: Path, trace: Path) -> str:
    """Two rows of 1.6 GB, of which the directory and the header tell alike."""
    side = 1_600_000_000
    header = _npy(_said(f"(2, {side})"))
    _npz(folder, trace, header + bytes(2**20))
    path = folder / "d.npz"
    with zipfile.ZipFile(path) as archive:
        packed, size = archive.getinfo("x.npy").compress_size, archive.getinfo("x.npy").file_size
    told = struct.pack("<II", packed, 2 * side + len(header))
    path.write_bytes(path.read_bytes().replace(struct.pack("<II", packed, size), told))
    return f"npz:{path}"


@_hostile("data")
def an_array_packed_in_bzip2(folder: Path, trace: Path) -> str:
    return _npz(folder, trace, _npy(_said("(2, 50000000)"), bytes(10**8)), zipfile.ZIP_BZIP2)


@_hostile("data")
def an_array_that_inflates_to_more_than_it_says(folder: Path, trace: Path) -> str:
    return _npz(folder, trace, _npy(_said("(2, 4)"), bytes(10**8)))


@_hostile("data")
def arrays_from_a_pipe(folder: Path, trace: Path) -> str:
    os.mkfifo(folder / "d.npz")
    return f"npz:{folder / 'd.npz'}"


@_hostile("data")
def arrays_of_nobodys(folder: Path, trace: Path) -> str:
    return "npz:~nobody-of-that-name/d.npz"


@_hostile("data")
def arrays_of_a_name_without_end(folder: Path, trace: Path) -> str:
    return f"npz:{'d' * 5000}.npz"


def _idx(folder: Path, trace: Path, images: bytes) -> str:
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 2049, 2) + bytes(2)))
    return f"mnist:{folder}"


_each(
    "data",
    {
        "images_of_idx_that_are_a_bomb": struct.pack(">4I", 2051, 2, 8, 8) + bytes(2 * 64 + 10**8),
        "images_of_idx_of_16_eib": struct.pack(">4I", 2051, 2, 2**32 - 1, 2**32 - 1),
        "images_of_idx_that_are_cut": struct.pack(">4I", 2051, 2, 8, 8) + bytes(64),
        "images_of_idx_without_pixels": struct.pack(">4I", 2051, 2, 0, 2**32 - 1),
        "images_of_idx_of_half_a_header": struct.pack(">2I", 2051, 2),
    },
    _idx,
)


@_hostile("data")
def images_of_idx_from_a_pipe(folder: Path, trace: Path) -> str:
    _idx(folder, trace, b"")
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    os.mkfifo(folder / "t10k-images-idx3-ubyte")
    return f"mnist:{folder}"


# --- images


def png(width: int, height: int, rows: bytes = b"", depth: int = 8) -> bytes:
    """A PNG file in RGB that says what it wants of its size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _images(folder: Path, trace: Path, second: bytes) -> str:
    """The second of two images is the hostile one."""
    (folder / "a").mkdir()
    (folder / "a" / "0.png").write_bytes(png(8, 8, bytes(8 * 25)))
    (folder / "a" / "1.png").write_bytes(second)
    return f"images:{folder}"


_NOISE = np.random.default_rng(0).bytes(1000)
_GIF = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0," + struct.pack("<HHHH", 0, 0, 65535, 65535)
_TIFF_TAGS = [(256, 2**31 - 1), (257, 2**31 - 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (279, 2**31 - 1)]
_TIFF = struct.pack("<2sHIH", b"II", 42, 8, len(_TIFF_TAGS)) + b"".join(
    struct.pack("<HHII", tag, 4, 1, value) for tag, value in _TIFF_TAGS
)
_WEBP = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6

_each(
    "data",
    {
        "an_image_that_starts_a_program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n",
        "a_png_of_16_eib": png(2**31 - 1, 2**31 - 1),
        "a_png_of_a_gigabyte": png(20_000, 20_000),
        "a_png_of_300_megabytes": png(10_000, 10_000, bytes(10_000 * 30_001)),
        "a_gif_of_4_gib": _GIF + b"\0\2\2\x4c\1\0;",
        "a_tiff_of_4_eib": _TIFF + bytes(4),
        "a_webp_of_a_pebibyte": _WEBP,
        "a_ppm_of_an_exbibyte": b"P6 1000000000 1000000000 255\n",
        "a_bmp_of_an_exbibyte": b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, *[2**31 - 1] * 2, 1, 24, *[0] * 6),
        "an_image_cut_short": png(8, 8, b"".join(b"\0" + _NOISE[24 * row :][:24] for row in range(8)))[:120],
        "an_image_of_noise": _NOISE,
        "an_image_of_nothing": b"",
    },
    _images,
)


@_hostile("data")
def an_image_from_a_pipe(folder: Path, trace: Path) -> str:
    spec = _images(folder, trace, b"")
    (folder / "a" / "1.png").unlink()
    os.mkfifo(folder / "a" / "1.png")
    return spec


@_hostile("data")
def an_image_behind_a_loop_of_links(folder: Path, trace: Path) -> str:
    spec = _images(folder, trace, b"")
    (folder / "a" / "1.png").unlink()
    (folder / "a" / "1.png").symlink_to("1.png")
    return spec


# --- protocols


def _protocol(folder: Path, trace: Path, content: bytes) -> str:
    (folder / "p.toml").write_bytes(content)
    return str(folder / "p.toml")


_each(
    "protocol",
    {
        "a_protocol_of_brackets": b"a = " + b"[" * 10**5,
        "a_protocol_of_digits": b"a = " + b"9" * 10**4,
        "a_protocol_that_is_no_text": b"name = '\xff'",
        "a_protocol_of_16_mib": b"#" * (2**24 + 1),
    },
    _protocol,
)


@_hostile("protocol")
def a_protocol_from_a_pipe(folder: Path, trace: Path) -> str:
    os.mkfifo(folder / "p.toml")
    return str(folder / "p.toml")


# --- runs that are resumed

TRAINING: dict[str, Any] = {"method": "pgd", "settings": {"epochs": 1, "validation": 12}, "examples": "0:64"}
_RUNS: dict[str, dict[str, bytes]] = {}


def _run(kind: str, argument: list[str]) -> dict[str, bytes]:
    """The files of a whole run, made once."""
    from typer.testing import CliRunner

    from holdfast.cli.main import app

    if kind not in _RUNS:
        with TemporaryDirectory() as name:
            folder = Path(name) / "folder"
            folder.mkdir()
            result = CliRunner().invoke(app, [*_resuming(kind, folder.parent), *argument, str(folder)])
            assert result.exit_code == 0, result.output
            _RUNS[kind] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return _RUNS[kind]


def _resuming(kind: str, folder: Path) -> list[str]:
    (folder / "harmless_net.py").write_text(FACTORY)
    net = f"{folder / 'harmless_net.py'}:net"
    if kind == "smoothed":
        noise = ["--sigma", "0.25", "--samples", "100", "--examples", "0:2"]
        return ["certify", "--method", "smoothing", "--model", net, "--data", "digits", *noise]
    settings = ["--epochs", "1", "--set", "validation=12", "--examples", "0:64", "--method", "pgd", "--audit", "none"]
    return ["train", "--arch", "mlp", "--data", "digits", "--threat", "linf:0.1", *settings]


def _checkpoint(folder: Path, trace: Path, edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> str:
    content = _run("resumed", ["--run"])["checkpoint.safetensors"]
    tensors, length = load(content), int.from_bytes(content[:8], "little")
    notes = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["notes"])
    edit(tensors, notes)
    save_file(tensors, folder / "checkpoint.safetensors", {"notes": json.dumps(notes)})
    return str(folder)


_each(
    "resumed",
    {
        "a_checkpoint_without_a_moment": lambda t, n: t.pop("optimizer/1.exp_avg"),
        "a_checkpoint_of_other_moments": lambda t, n: t.update({"optimizer/0.exp_avg": torch.zeros(3)}),
        "a_checkpoint_of_moments_in_half": lambda t, n: t.update(
            {"optimizer/0.exp_avg": t["optimizer/0.exp_avg"].half()}
        ),
        "a_checkpoint_of_moments_of_nothing": lambda t, n: t.update({"optimizer/99.exp_avg": torch.zeros(3)}),
        "a_checkpoint_of_an_infinite_step": lambda t, n: t.update({"step/step": torch.tensor(float("inf"))}),
        "a_checkpoint_of_losses_that_are_none": lambda t, n: t["losses/losses"].fill_(float("nan")),
        "a_checkpoint_of_words": lambda t, n: n["epochs"][0].update(step="x"),
        "a_checkpoint_of_no_evaluation": lambda t, n: n["epochs"][0].update(evaluation={}),
        "a_checkpoint_of_an_accuracy_of_two": lambda t, n: n["epochs"][0]["evaluation"].update(clean=2),
        "a_checkpoint_of_a_step_too_many": lambda t, n: n["epochs"].append(n["epochs"][0]),
        "a_checkpoint_without_its_best": lambda t, n: n.pop("best"),
        "a_checkpoint_whose_best_is_of_no_epoch": lambda t, n: n.update(best=[0.5, 777]),
        "a_checkpoint_of_a_billion_states": lambda t, n: n["guard"].update(good=10**9),
        "a_checkpoint_of_an_unknown_method": lambda t, n: n["guard"].update(rung=99),
        "a_checkpoint_without_settings": lambda t, n: n.update(settings=None),
        "a_checkpoint_of_other_settings": lambda t, n: n["settings"].update(seed="\x1b[31m\n"),
    },
    _checkpoint,
)


def _instead(name: str, make: Callable[[Path], object]) -> Callable[[Path, Path, str], str]:
    """A run in which something else stands in the place of a file."""

    def write(folder: Path, trace: Path, kind: str) -> str:
        for file, content in _run(kind, ["--run" if kind == "resumed" else "--out"]).items():
            (folder / file).write_bytes(content)
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        return str(folder)

    return write


def _logged(edit: Callable[[str], str]) -> Callable[[Path, Path, str], str]:
    def make(path: Path) -> None:
        path.write_text(edit(_RUNS["smoothed"]["smoothing.tsv"].decode()))

    return _instead("smoothing.tsv", make)


def _first_row(edit: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    def change(text: str) -> str:
        header, row, *rest = text.split("\n")
        return "\n".join([header, "\t".join(edit(row.split("\t"))), *rest])

    return change


for _kind, _name, _write in (
    ("resumed", "a_checkpoint_from_a_pipe", _instead("checkpoint.safetensors", os.mkfifo)),
    ("resumed", "a_checkpoint_that_is_a_folder", _instead("checkpoint.safetensors", Path.mkdir)),
    (
        "resumed",
        "a_checkpoint_of_noise",
        _instead("checkpoint.safetensors", lambda path: path.write_bytes(b"\xff" * 99)),
    ),
    ("smoothed", "a_log_from_a_pipe", _instead("smoothing.tsv", os.mkfifo)),
    ("smoothed", "a_log_from_a_device", _instead("smoothing.tsv", lambda path: path.symlink_to("/dev/zero"))),
    ("smoothed", "settings_of_a_log_from_a_pipe", _instead("smoothing.json", os.mkfifo)),
    (
        "smoothed",
        "settings_of_a_log_of_brackets",
        _instead("smoothing.json", lambda path: path.write_text("[" * 10**5)),
    ),
    ("smoothed", "a_log_that_is_a_letter", _logged(lambda text: "Dear reader,\nall is well")),
    ("smoothed", "a_log_of_other_examples", _logged(_first_row(lambda row: ["99", *row[1:]]))),
    ("smoothed", "a_log_of_a_billion_samples", _logged(_first_row(lambda row: [*row[:-1], "9" * 9]))),
):
    CORPUS.append(Hostile(_kind, _name, partial(_write, kind=_kind)))


@_hostile("learner")
def a_run_that_names_code_to_train(folder: Path, trace: Path) -> str:
    return a_run_that_names_code(folder, trace)


@_hostile("learner")
def a_program_to_train_with_a_pickled_example(folder: Path, trace: Path) -> str:
    return a_program_with_a_pickled_example(folder, trace)


FACTORY = """
from torch import nn
def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def command(hostile: Hostile, argument: str, folder: Path) -> list[str]:
    """The command that makes holdfast read a hostile file."""
    if hostile.what in {"resumed", "smoothed"}:
        return [*_resuming(hostile.what, folder.parent), "--run" if hostile.what == "resumed" else "--out", argument]
    if hostile.what == "learner":
        spec = ["--model", argument, "--data", "digits", "--threat", "linf:0.1", "--run", f"{folder}-run"]
        return ["train", *spec, "--epochs", "1", "--audit", "none"]
    (folder.parent / "harmless_net.py").write_text(FACTORY)
    given = {"--model": f"{folder.parent / 'harmless_net.py'}:net", "--data": "digits", "--threat": "linf:0.1"}
    given[{"trusted": "--model"}.get(hostile.what, f"--{hostile.what}")] = argument
    flags = ["--trust"] if hostile.what == "trusted" else []
    return ["audit", *(word for pair in given.items() for word in pair), "--examples", "0:4", *flags]


_MOST_MEMORY = 16 * 2**30  # so that a test that fails takes no machine with it


def main(root: Path) -> None:
    """Have the command line read the whole corpus, one file after the other, and print an account in JSON."""
    import resource

    from typer.testing import CliRunner

    from holdfast.cli.main import app

    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    program()  # its making is not to be measured, nor that of runs
    _run("resumed", ["--run"])
    _run("smoothed", ["--out"])
    accounts = []
    for number, hostile in enumerate(CORPUS):
        folder, trace = root / str(number), root / f"trace-{number}"
        folder.mkdir()
        argument = hostile.write(folder, trace)
        began = time.monotonic()
        result = CliRunner().invoke(app, command(hostile, argument, folder))
        accounts.append(
            {
                "name": hostile.name,
                "code": result.exit_code,
                "expected": hostile.code,
                "error": result.stderr,
                "output": result.stdout,
                "raised": None if isinstance(result.exception, SystemExit) else repr(result.exception),
                "seconds": time.monotonic() - began,
                "ran": trace.exists(),
                "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    print(json.dumps(accounts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
