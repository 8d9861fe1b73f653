"""The ONNX project's own tests of single operators, as far as holdfast has the operator.

Their shapes know nothing of batches, so they are run below the loader: the builder takes a test's graph with inputs of
fixed shapes, and its steps are called in order. Inputs that say how to compute (axes, shapes) have to be known, which
is tried after taking all inputs for variable.
"""

import re
import warnings

import numpy as np
import pytest
import torch
from onnx import TensorProto
from onnx.backend.test.case.node import collect_testcases

from holdfast.errors import HoldfastError
from holdfast.models.onnx.builder import Builder
from holdfast.models.onnx.module import Name
from holdfast.models.onnx.operators import OPERATORS
from holdfast.models.onnx.read import opsets
from holdfast.models.onnx.tensors import read_tensor

# What is refused, by the beginnings of the tests' names, and words of the reason.
REFUSED = {
    r".*_u?int(2|4)$|.*(FLOAT8|FLOAT4|INT4|INT2).*|cast_e8m0_.*|.*e8m0.*": "are not supported",  # fewer than eight bits
    r".*_uint(16|32|64)(_expanded)?": "are not supported",  # torch does not compute with them
    r"(cast|equal)_.*(STRING|string).*|castlike_.*STRING.*": "not supported",
    r"mod_.*fmod_0.*": "it needs the attribute fmod",
    r"batchnorm_.*_training_mode": "export in eval mode",
    r"training_dropout.*": "export in eval mode",
    r"resize_tf_crop_and_resize.*": "'tf_crop_and_resize' is not supported",
    r"resize_downsample_.*_antialias": "antialias is not supported",
    r"resize_downsample_.*_align_corners": "by rounding",  # of the specification's readings
    r"reduce_(max|min)_empty_set.*": "",  # the largest of no numbers
    r"if_(seq|opt)|identity_(opt|sequence)|.*sequence.*": "",  # sequences and optional values
    r"affine_grid_.*_expanded": "depends on the network's input",  # the shape of the result does
    r"not_.*": "opset",
}


class RefusedError(Exception):
    pass


def tensor(value):
    if isinstance(value, TensorProto):
        return read_tensor(value, None)
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind in "OSU":
        raise HoldfastError("values of this kind are not supported")
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(np.asarray(value).view(np.int16).copy()).view(torch.bfloat16)
    if value.dtype.name in {"uint16", "uint32", "uint64"} or not hasattr(torch, value.dtype.name):
        raise HoldfastError("tensors of this type are not supported")
    return torch.from_numpy(np.array(value))


def run(case, is_variable):
    """The outputs of a test's graph by their names, with some of its inputs variable and others known."""
    graph, values, constants = case.model.graph, {}, {}
    for i, (info, value) in enumerate(zip(graph.input, case.data_sets[0][0], strict=False)):
        given = tensor(value)
        (values if is_variable(i, given) else constants)[info.name] = given
    known = dict(constants)
    outline = {name: (value.to("meta"), value.to("meta")) for name, value in values.items()}
    builder = Builder(opsets(case.model), None, None, outline, known)
    builder.take_tensors(graph)
    for proto in graph.node:
        builder.add(proto)
    environment = {**builder.tensors, **values}
    for step in builder.steps:
        found = step.rule(step.node, *(environment[a.value] if isinstance(a, Name) else a for a in step.arguments))
        environment.update(zip(step.node.outputs, found if isinstance(found, list) else [found], strict=False))
    return {**builder.constants, **environment}


WAYS = [
    lambda i, x: True,
    lambda i, x: x.is_floating_point(),
    lambda i, x: i == 0,
    lambda i, x: False,
]


def attempt(case):
    """The values of a test with as many variable inputs as can be, or the reasons why there are none."""
    reasons = []
    for way in WAYS:
        try:
            return run(case, way)
        except HoldfastError as error:
            reasons.append(str(error))
    raise RefusedError(" / ".join(reasons))


def tolerance(expected, case):
    widest = {"float16": 1e-2, "bfloat16": 2e-2}.get(expected.dtype.name, 1e-5)
    return max(case.rtol, widest), max(case.atol, widest / 10)


@pytest.mark.slow
def test_the_project_s_own_tests():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None) if case.model is not None]
    supported = {*OPERATORS[""], *OPERATORS["ai.onnx.ml"], "If"}
    cases = [case for case in cases if {node.op_type for node in case.model.graph.node} <= supported]
    assert len(cases) > 1200
    wrong, refused = [], []
    for case in cases:
        name = case.name.removeprefix("test_")
        try:
            found = attempt(case)
        except RefusedError as reason:
            if not any(re.fullmatch(key, name) and words in str(reason) for key, words in REFUSED.items()):
                wrong.append(f"{name} is refused: {str(reason)[:300]}")
            refused.append(name)
            continue
        # later outputs (masks, indices, statistics) are not made where no network needs them
        for i, (info, value) in enumerate(zip(case.model.graph.output, case.data_sets[0][1], strict=True)):
            if info.name not in found or found[info.name] is None:
                assert i > 0, name
                continue
            expected = tensor(value)
            rtol, atol = tolerance(np.asarray(value) if not isinstance(value, TensorProto) else np.zeros(1), case)
            got = found[info.name]
            if got.dtype != expected.dtype or got.shape != expected.shape:
                wrong.append(f"{name}: {got.dtype} {tuple(got.shape)}, not {expected.dtype} {tuple(expected.shape)}")
            elif not torch.allclose(got.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True):
                wrong.append(f"{name}: off by {(got.double() - expected.double()).abs().max()}")
    assert not wrong, "\n".join(wrong)
    assert len(refused) < 260
    stale = [key for key in REFUSED if not any(re.fullmatch(key, name) for name in refused)]
    assert not stale
