"""Odd arguments of every kind to everything public: what is of no use is refused in one line, and nothing else."""

import contextlib
import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from helpers.audits import audit
from holdfast import (
    FGSM,
    L0,
    L1,
    L2,
    PGD,
    Box,
    DataError,
    HoldfastError,
    Linf,
    Processes,
    Query,
    RunError,
    SettingError,
    attacks,
)
from holdfast.audit import single
from holdfast.certify import (
    Ablated,
    BlockAblation,
    ColumnAblation,
    Deletion,
    FeatureAblation,
    Fill,
    Gaussian,
    Region,
    Smoothed,
    certify,
    exact_distance,
    mark,
    output_bounds,
    parse_vnnlib,
    read_log,
    read_vnnlib,
    verify,
)
from holdfast.geometry import (
    activation_pattern,
    boundary_distance,
    boundary_on_facets,
    crossing,
    curvature,
    facet_distance,
    gradient_alignment,
    gradient_saturation,
    layer_norms,
    linearity_violation,
    lipschitz_above,
    lipschitz_below,
    nearest_adversarial,
    neighbour,
    region_at,
    regions_in_slice,
    regions_on_segment,
)
from holdfast.linear import RobustLinearSVC, RobustLogisticRegression, RobustRidge
from holdfast.models import load_onnx, load_weights
from holdfast.train import Recipe

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
X = torch.rand(5, 4)
Y = NET(X).argmax(1).detach()


class Table:
    """Reads as an array, as a table of pandas does."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values.astype(dtype or self.values.dtype)


class Rude:
    """Raises whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError("no\nanswer")

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        raise ZeroDivisionError("no\narray")


# The same values in other clothes: these are taken, and give what tensors give.
CLOTHES: dict[str, Callable[[torch.Tensor], Any]] = {
    "array": lambda t: t.numpy(),
    "list": lambda t: t.tolist(),
    "tuple": lambda t: tuple(t.tolist()),
    "table": lambda t: Table(t.numpy()),
    "tensors": lambda t: list(t.unbind()),
    "grad": lambda t: t.clone().requires_grad_(True) if t.is_floating_point() else t,
    "reversed": lambda t: t.numpy()[::-1].copy()[::-1],
    "big-endian": lambda t: t.numpy().astype(t.numpy().dtype.newbyteorder(">")),
    "read-only": lambda t: _read_only(t.numpy()),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
}


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


X_USES: dict[str, Callable[[Any, Any], Any]] = {
    "attack": lambda x, y: PGD(steps=2)(NET, x, y, threat=Linf(0.1)).x_adv,
    "certify": lambda x, y: torch.tensor([c.bound or 0.0 for c in certify(NET, x, y, Linf(0.1), method="crown")]),
    "exact_distance": lambda x, y: torch.tensor([d.lower for d in exact_distance(NET, x, y, Linf(0.05))]),
    "output_bounds": lambda x, y: output_bounds(NET, x, Linf(0.1)).lower,
    "smoothed": lambda x, y: Smoothed(NET, 0.5).certify_fixed(x, y, samples=20, selection=5).radius,
    "sequential": lambda x, y: Smoothed(NET, 0.5).certify(x, y, samples=20, selection=5).radius,
    "predict": lambda x, y: Smoothed(NET, 0.5).predict(x, samples=10).votes,
    "curvature": lambda x, y: curvature(NET, x, y, Linf(0.1)),
    "crossing": lambda x, y: crossing(NET, x, y, Linf(0.1), threshold=0.5, reach=1.0).t_lin,
    "linearity": lambda x, y: linearity_violation(NET, x, y, Linf(0.1)),
    "alignment": lambda x, y: gradient_alignment(NET, x, y, Linf(0.1)),
    "saturation": lambda x, y: gradient_saturation(NET, x, y, Linf(0.1)).ratio,
    "lipschitz": lambda x, y: lipschitz_below(NET, x, Linf(0.1), steps=2, restarts=1),
    "pattern": lambda x, y: activation_pattern(NET, x),
}
ONE_USES: dict[str, Callable[[Any], Any]] = {
    "region_at": lambda x: region_at(NET, x).weight,
    "lipschitz_above": lambda x: torch.tensor(lipschitz_above(NET, x, Linf(0.1))),
    "nearest_adversarial": lambda x: torch.tensor(nearest_adversarial(NET, x, int(Y[0]), Linf(0.3)).upper),
    "segment": lambda x: regions_on_segment(NET, x, X[1]).breakpoints,
    "slice": lambda x: torch.tensor(regions_in_slice(NET, x, X[1], X[2]) is not None),
    "facet": lambda x: torch.tensor(facet_distance(region_at(NET, X[0]), x, Linf(0.3)).distance),
    "boundary": lambda x: torch.tensor(boundary_distance(region_at(NET, X[0]), x, int(Y[0]), Linf(0.3)).distance),
}

ODD_X: dict[str, Any] = {
    "None": None,
    "text": "x",
    "bytes": b"abc",
    "number": 0.5,
    "class": torch.Tensor,
    "module": NET,
    "object": object(),
    "rude": Rude(),
    "dict": {"x": X},
    "set": {1.0},
    "generator": (row for row in X),
    "nothing": torch.zeros(0, 4),
    "no features": torch.zeros(5, 0),
    "no rows": [],
    "a number": torch.tensor(0.5),
    "a row": X[0],
    "another width": torch.rand(5, 3),
    "images": torch.rand(5, 1, 2, 2),
    "many dimensions": torch.rand(5, *[1] * 20),
    "ragged": [[0.1, 0.2], [0.3]],
    "words": np.array([["a", "b"]]),
    "objects": np.array([[None, object()]]),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "records": np.zeros(5, dtype=[("a", float)]),
    "complex": X.to(torch.complex64),
    "bool": X > 0.5,
    "uint8": (255 * X).byte(),
    "int64": X.long(),
    "float16": X.half(),
    "bfloat16": X.bfloat16(),
    "float64": X.double(),
    "longdouble": X.numpy().astype(np.longdouble),
    "sparse": X.to_sparse(),
    "csr": X.to_sparse_csr(),
    "meta": X.to("meta"),
    "nested": torch.nested.nested_tensor([X[0], X[1]]),
    "quantized": torch.quantize_per_tensor(X, 0.1, 0, torch.quint8),
    "NaN": X * math.nan,
    "infinite": X / 0,
    "huge": X * 1e38,
    "denormal": X * 1e-45,
    "outside": X + 10,
    "expanded": X[:1].expand(5, 4),
    "inference": None,
}
with torch.inference_mode():
    ODD_X["inference"] = X.clone()
ODD_Y: dict[str, Any] = {
    "None": None,
    "text": "y",
    "number": 1,
    "rude": Rude(),
    "short": Y[:2],
    "column": Y[:, None],
    "one-hot": nn.functional.one_hot(Y, 3),
    "floats": Y.double() + 0.25,
    "complex": Y.to(torch.complex64),
    "bool": Y > 0,
    "uint8": Y.to(torch.uint8),
    "uint64": Y.numpy().astype(np.uint64),
    "negative": Y - 5,
    "too large": Y + 3,
    "far too large": Y + 2**62,
    "words": ["cat"] * 5,
    "objects": [object()] * 5,
    "meta": Y.to("meta"),
    "sparse": Y.to_sparse(),
}
NUMBERS: tuple[Any, ...] = (
    -1, 0, 1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63),
    0.5, 1.0, 1e-300, 1e300, -1e300, math.inf, -math.inf,
    math.nan, 5e-324, True, None, "1", "1e3", "x", "", b"1", [], [1], (1, 2), {}, object(), Rude(), Fraction(1, 3), 1j,
    np.int64(1), np.float32(0.5), np.uint8(3), np.array(1), np.array([1, 2]), torch.tensor(1), torch.tensor([0.1, 0.2]),
    int, lambda: 1,
)  # fmt: skip


def only_lines(use: Callable[[], Any], *more: type[Exception]) -> Any:
    """What a use comes to, or None where it was refused in one line."""
    line = "refused"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return use()
        except (HoldfastError, *more) as error:
            line = str(error)
    assert line.isprintable() or (more and "\n" not in line)
    assert line
    return None


@pytest.mark.parametrize("clothes", CLOTHES)
@pytest.mark.parametrize("use", X_USES)
def test_arrays_lists_and_tables_are_tensors(use, clothes):
    expected = X_USES[use](X, Y)
    found = X_USES[use](CLOTHES[clothes](X), CLOTHES[clothes](Y))
    if clothes in ("list", "tuple"):  # Python's numbers are float64
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("clothes", [name for name in CLOTHES if name != "tensors"])
@pytest.mark.parametrize("use", ONE_USES)
def test_one_input_too(use, clothes):
    found, expected = ONE_USES[use](CLOTHES[clothes](X[0])), ONE_USES[use](X[0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("use", ONE_USES)
def test_one_odd_input(use):
    for x in ODD_X.values():
        only_lines(lambda x=x: ONE_USES[use](x))


def test_labels_that_are_no_class_numbers_are_never_taken():
    for use in ("attack", "certify", "exact_distance"):
        for name in set(ODD_Y) - {"uint8", "uint64", "bool"}:
            with pytest.raises(HoldfastError):
                X_USES[use](X, ODD_Y[name])


@pytest.mark.slow
def test_audit_and_load_data():
    settings: dict[str, Any] = {"protocol": [FGSM()]}
    for x in ODD_X.values():
        only_lines(lambda x=x: holdfast.audit(NET, (x, Y), Linf(0.1), **settings))
    for y in ODD_Y.values():
        only_lines(lambda y=y: holdfast.audit(NET, (X, y), Linf(0.1), **settings))
    for odd in (*ODD_X.values(), *NUMBERS):
        only_lines(lambda odd=odd: holdfast.load_data(odd))
        only_lines(lambda odd=odd: holdfast.load_model(odd))
        only_lines(lambda odd=odd: holdfast.audit(odd, (X, Y), Linf(0.1), **settings))
        only_lines(lambda odd=odd: holdfast.audit(NET, odd, Linf(0.1), **settings))
        only_lines(lambda odd=odd: holdfast.audit(NET, (X, Y), odd, **settings))


AUDIT = ("protocol", "knowledge", "weights", "examples", "seed", "batch_size", "mean", "std", "max_forwards",
         "certify", "certify_seconds", "certify_arithmetic", "certify_budgets", "certify_checks", "sigma", "split",
         "positive", "sizes", "trust")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", AUDIT)
def test_settings_of_an_audit(name):
    for odd in NUMBERS:
        options = {"protocol": [FGSM()], name: odd}
        if name == "certify_seconds":
            options["certify"] = "ibp"
        if name == "certify_budgets":
            options["certify"] = "ibp"
        if name == "sigma":
            options["certify"] = "smoothing"
            if isinstance(odd, int | float | np.number | torch.Tensor | np.ndarray | Fraction):
                continue  # a hundred thousand votes; test_smoothing_settings has these
        only_lines(lambda options=options: audit(NET, (X, Y), Linf(0.1), **options))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "weights"])
def test_paths_that_are_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for odd in (*NUMBERS, "a\0b", "a\ud800", Path("c\0d")):
        only_lines(lambda odd=odd: audit(NET, (X, Y), Linf(0.1), protocol=[FGSM()], **{name: odd}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed", "batch_size", "mean", "std", "samples", "target", "threat"])
def test_settings_of_an_attack(name):
    for odd in NUMBERS:
        if name == "samples" and isinstance(odd, int | np.integer) and odd > 100:
            continue  # honestly that many passes
        only_lines(lambda odd=odd: FGSM()(NET, X, Y, **{"threat": Linf(0.1), name: odd}))


def test_a_box_of_arrays_is_one_of_tensors():
    low, high = np.zeros(4), [1.0, 1.0, 1.0, 1.0]
    assert torch.equal(PGD(steps=2)(NET, X, Y, threat=Linf(0.1, (low, high))).x_adv,
                       PGD(steps=2)(NET, X, Y, threat=Linf(0.1)).x_adv)  # fmt: skip
    assert Box(0, 0.1).upper == 0.1


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Recipe)])
def test_recipes(name):
    for odd in NUMBERS:
        only_lines(lambda odd=odd: Recipe(**{"epochs": 1, "batch_size": 10, name: odd}))


@pytest.mark.parametrize("seed", [2**32, 2**63, 2**64 - 1])
def test_a_large_seed_of_training(seed):
    x, y = torch.rand(20, 4), torch.arange(20) % 3
    settings = {"epochs": 1, "batch_size": 10}
    result = holdfast.train(nn.Linear(4, 3), (x, y), Linf(0.1), method="standard", settings=settings, seed=seed)
    assert len(result.epochs) == 1


def test_a_batch_that_no_memory_holds():
    for size in (10**9, 2**24):
        with pytest.raises(SettingError, match="batch_size"):
            FGSM()(nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), torch.rand(2, 3, 32, 32), torch.zeros(2).long(),
                   threat=Linf(0.1), batch_size=size)  # fmt: skip


def test_the_line_names_the_argument():
    with pytest.raises(DataError, match=r"^x: a list of <U\d+ is no tensor or array of real numbers$"):
        FGSM()(NET, [["a"]], Y, threat=Linf(0.1))
    with pytest.raises(DataError, match=r"^target must hold 5 class numbers, one an input; got torch.float32 \(5,\)$"):
        FGSM()(NET, X, Y, threat=Linf(0.1), target=torch.zeros(5))
    with pytest.raises(SettingError, match=r"^threat: give one such as"):
        FGSM()(NET, X, Y, threat=0.1)
    assert FGSM()(NET, X, Y, threat="linf:0.1").success.shape == (5,)


# Handed over in the place of each argument in turn, whatever it is for.
ODD: tuple[Any, ...] = (
    *NUMBERS,
    10**400,
    1e-320,
    np.uint64(2**64 - 1),
    np.float16(0.5),
    np.bool_(True),
    np.array([]),
    np.array(["x"]),
    torch.tensor([]),
    torch.zeros(0, 4),
    torch.tensor(math.nan),
    torch.tensor([-1, 300, 2]),
    nn.Parameter(torch.tensor(0.5)),
    X.to_sparse(),
    X.to("meta"),
    X.to(torch.complex64),
    X[:3] / 0,
    X.t(),
    torch.rand(30, 4),
    NET,
    Linf,
)
# One of each kind, for what takes its time.
FEW: tuple[Any, ...] = (
    -1, 0, 10**400, 2**64, 0.5, 1e300, 3e38, math.inf, math.nan, True, None, "x", b"1", [], {}, object(), Rude(),
    np.uint8(3), np.uint64(2**64 - 1), np.array(["x"]), torch.tensor([0.1, 0.2]), X.to_sparse(), NET,
)  # fmt: skip
TABLE, CLASSES = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2


def _smoothed(noise: Any = 0.5, seed: Any = 0, batch_size: Any = None, **options: Any) -> None:
    smoothed = Smoothed(NET, noise, seed=seed, batch_size=batch_size)
    votes = {"samples": 20, "selection": 5}
    smoothed.certify(X, Y, **votes | options)
    options.pop("radii", None)
    smoothed.certify_fixed(X, Y, **votes | options)


def _ball(make: Any, eps: Any, low: Any, high: Any) -> None:
    threat = make(eps, (low, high))
    assert repr(threat)
    assert threat.to_dict()
    FGSM()(NET, X, Y, threat=threat)


def _fitted(kind: Any, **settings: Any) -> None:
    kind(**{"max_iter": 5} | settings).fit(TABLE, CLASSES)


def _scored(kind: Any, **options: Any) -> None:
    fitted = kind(max_iter=5).fit(TABLE, CLASSES)
    fitted.worst_case(TABLE, CLASSES, **options)
    fitted.robust_score(TABLE, CLASSES, **options)


ALL = {"model": NET, "x": X, "y": Y, "threat": Linf(0.1)}
ONE = {"model": NET, "x": X[0], "threat": Linf(0.1)}
INSIDE = {"region": region_at(NET, X[0]), "x": X[0], "y": int(Y[0]), "threat": Linf(0.3)}
RUN = {"seed": 0, "batch_size": None, "mean": None, "std": None}
NAMES = [*(f"X_{i}" for i in range(4)), *(f"Y_{i}" for i in range(3))]
EASY = parse_vnnlib(
    "".join(f"(declare-const {name} Real)" for name in NAMES)
    + "".join(f"(assert (>= {name} 0)) (assert (<= {name} 1))" for name in NAMES[:4])
    + "(assert (>= Y_0 1000))"
)
ESTIMATORS = (RobustLogisticRegression, RobustLinearSVC, RobustRidge)
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "attack": (FGSM(), ALL | RUN | {"target": None}),
    "random attack": (PGD(steps=1), {"threat": L1(0.1)} | RUN),
    "certify": (
        certify,
        {"threat": Linf(0.1)}
        | RUN
        | {"method": "ibp", "seconds": 1.0, "memory": 2**20, "arithmetic": "exact", "checks": 1},
    ),
    "verify": (
        verify,
        {"model": NET, "prop": EASY, "seconds": 1.0, "seed": 0, "sizes": None},
    ),
    "parse_vnnlib": (parse_vnnlib, {"text": "(declare-const X_0 Real)"}),
    "read_vnnlib": (read_vnnlib, {"path": "no-such.vnnlib"}),
    "load_onnx": (load_onnx, {"path": "no-such.onnx", "sizes": None}),
    "single": (single, {"name": "pgd", "settings": {"steps": 2}}),
    "read_log": (read_log, {"path": "no-such.tsv"}),
    "load_weights": (load_weights, {"path": "no-such.pt", "key": None}),
    "load_data": (holdfast.load_data, {"spec": (X, Y), "split": "test", "examples": None}),
    "output_bounds": (output_bounds, ONE | {"x": X, "method": "ibp", "functions": None, "steps": 1}),
    "exact_distance": (exact_distance, {"threat": Linf(0.05), "seconds": 1.0, "seed": 0, "arithmetic": "exact"}),
    "smoothing": (
        _smoothed,
        {"noise": 0.5, "alpha": 0.001, "radii": None, "index": None, "seed": 0, "batch_size": None},
    ),
    "predict": (Smoothed(NET, 0.5).predict, {"samples": 20, "alpha": 0.01, "index": None}),
    "largest_radius": (Smoothed(NET, 0.5).largest_radius, {"samples": 20, "alpha": 0.01, "features": 1}),
    "linf_radius": (Gaussian(0.5).linf_radius, {"radius": X[0], "features": 4}),
    "universal": (
        attacks.universal_perturbation,
        {"data": (X, Y), "threat": Linf(0.1), "epochs": 1, "step_size": None, "objective": "ce", "ceiling": 9.0} | RUN,
    ),
    "curvature": (curvature, ALL),
    "crossing": (crossing, ALL | {"threshold": 0.5, "reach": 1.0, "steps": 2}),
    "linearity_violation": (linearity_violation, ALL | {"steps": 1, "seed": 0}),
    "gradient_alignment": (gradient_alignment, ALL | {"seed": 0}),
    "gradient_saturation": (gradient_saturation, ALL | {"scale": 1.0}),
    "lipschitz_below": (lipschitz_below, ONE | {"x": X, "steps": 1, "restarts": 1, "seed": 0}),
    "lipschitz_above": (lipschitz_above, ONE),
    "layer_norms": (layer_norms, {"model": NET, "shape": (4,), "threat": Linf(0.1)}),
    "activation_pattern": (activation_pattern, {"model": NET, "x": X}),
    "region_at": (region_at, {"model": NET, "x": X[0]}),
    "neighbour": (neighbour, {"region": INSIDE["region"], "facet": 0}),
    "facet_distance": (facet_distance, {name: INSIDE[name] for name in ("region", "x", "threat")}),
    "boundary_distance": (boundary_distance, INSIDE),
    "boundary_on_facets": (boundary_on_facets, INSIDE),
    "nearest_adversarial": (nearest_adversarial, ONE | {"y": int(Y[0]), "limit": 10, "seed": 0}),
    "regions_on_segment": (regions_on_segment, {"model": NET, "start": X[0], "end": X[1]}),
    "regions_in_slice": (
        regions_in_slice,
        {"model": NET, "origin": X[0], "across": X[1], "up": X[2], "extent": (0, 1, 0, 1)},
    ),
    "Box": (Box, {"lower": 0, "upper": 1}),
    "Region.box": (Region.box, {"lower": X, "upper": X + 1}),
    "Query": (Query, {"model": NET} | RUN),
    "parse_threat": (holdfast.parse_threat, {"spec": "linf:1", "box": (0, 1)}),
    **{make.__name__: (partial(_ball, make), {"eps": 2, "low": 0, "high": 1}) for make in (Linf, L2, L1, L0)},
    **{kind.__name__: (partial(_fitted, kind), kind().get_params()) for kind in ESTIMATORS},
    **{f"{kind.__name__}.worst_case": (partial(_scored, kind), {"eps": 0.1, "box": None}) for kind in ESTIMATORS},
    "path": (partial(RobustLinearSVC(max_iter=5).path, TABLE, CLASSES), {"eps_grid": [0.1]}),
}
IMAGES, PATCHED = torch.rand(2, 1, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).eval()
WORDS, READER = torch.arange(12.0).reshape(2, 6), nn.Linear(6, 3).eval()


def _voted(model: nn.Module, x: torch.Tensor, make: Any, **settings: Any) -> None:
    Smoothed(model, make(**settings)).certify_fixed(x, samples=10, selection=5)


def _ablated(make: Any, **settings: Any) -> None:
    Ablated(PATCHED, make(**settings)).certify(IMAGES)


CALLS |= {
    "FeatureAblation": (
        partial(_voted, PATCHED, IMAGES, FeatureAblation),
        {"shape": (1, 4, 4), "keep": 4, "hide": mark},
    ),
    "Deletion": (partial(_voted, READER, WORDS, Deletion), {"rate": 0.5, "padding": 0.0}),
    "ColumnAblation": (partial(_ablated, ColumnAblation), {"width": 4, "band": 2, "hide": mark}),
    "BlockAblation": (partial(_ablated, BlockAblation), {"height": 4, "width": 4, "side": 2, "hide": mark}),
    "Fill": (Fill, {"value": 0.5}),
    "Ablated": (Ablated, {"model": PATCHED, "ablation": ColumnAblation(4, 2), "batch_size": None}),
    "Processes": (Processes, {"rank": 0, "count": 1, "device": None}),
    "load_model": (
        holdfast.load_model,
        {"spec": NET, "weights": None, "weights_key": None, "trust": False, "sizes": None},
    ),
}
SLOW = {"certify", "exact_distance", "smoothing", "nearest_adversarial", "boundary_on_facets", "boundary_distance",
        "facet_distance", "regions_in_slice", "verify", "lipschitz_above", "lipschitz_below", "predict", "universal",
        "random attack", "path", "output_bounds", "attack", "L0", "L1", "L2", "Linf", "crossing", "Deletion",
        *(kind.__name__ for kind in ESTIMATORS), *(f"{kind.__name__}.worst_case" for kind in ESTIMATORS)}  # fmt: skip
FIXED = {
    "exact_distance": {"model": NET, "x": X[:1], "y": (Y[:1] + 1) % 3},
    "random attack": {"model": NET, "x": X, "y": Y},
    "universal": {"model": NET},
    "predict": {"x": X},
    "certify": {"model": NET, "x": X[:1], "y": (Y[:1] + 1) % 3},
}
# Examples that are misclassified are decided at once; these settings do as much as they are told.
PATIENT = {"steps", "restarts", "samples", "selection", "limit", "epochs", "max_iter"}


@pytest.mark.parametrize("call", CALLS)
def test_odd_arguments_end_in_a_line(call):
    function, arguments = CALLS[call]
    for name, odd in itertools.product(arguments, FEW if call in SLOW else ODD):
        if name in PATIENT and isinstance(odd, int | np.integer) and odd > 10:
            continue
        only_lines(lambda name=name, odd=odd: function(**FIXED.get(call, {}) | arguments | {name: odd}))


def test_what_the_estimators_read():
    for kind, odd in itertools.product(ESTIMATORS, (10**400, Rude(), [Rude()], None, "x", b"1", X.to_sparse(), X / 0)):
        fitted = kind(max_iter=5).fit(TABLE, CLASSES)
        for use in (
            lambda kind=kind, odd=odd: kind(max_iter=5).fit(odd, CLASSES),
            lambda kind=kind, odd=odd: kind(max_iter=5).fit(TABLE, odd),
            lambda kind=kind, odd=odd: kind(max_iter=5).fit(TABLE, CLASSES, odd),
            lambda fitted=fitted, odd=odd: fitted.predict(odd),
            lambda fitted=fitted, odd=odd: fitted.score(TABLE, odd),
            lambda fitted=fitted, odd=odd: fitted.robust_score(TABLE, odd),
        ):
            with contextlib.suppress(ValueError, TypeError):  # as scikit-learn's own, in its words
                only_lines(use)


# What they may spend, so that a run takes no time.
SPEND = {"steps": 2, "queries": 12, "samples": 2, "probes": 2, "bisections": 2, "binary_search_steps": 2, "refine": 1,
         "runs": 1, "restarts": 1, "tries": 2}  # fmt: skip
ATTACKS = [kind for kind in map(attacks.__dict__.get, sorted(attacks.__all__))
           if dataclasses.is_dataclass(kind) and "__call__" in vars(kind) and hasattr(kind, "init")
           and kind is not attacks.Transfer]  # fmt: skip


@pytest.mark.parametrize("kind", ATTACKS, ids=lambda kind: kind.__name__)
def test_settings_of_attacks_end_in_a_line_or_in_the_set(kind):
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    base = {name: value for name, value in SPEND.items() if name in names}
    threat = {attacks.SparseRS: L0(2), attacks.SigmaZero: L0(2), attacks.EAD: L1(0.5), attacks.APGDL1: L1(0.5)}.get(
        kind
    )
    for name, odd in itertools.product(names, FEW):
        attack = only_lines(lambda name=name, odd=odd: kind(**{**base, name: odd}))
        found = attack and only_lines(lambda attack=attack: attack(NET, X[:2], Y[:2], threat=threat or L2(0.3), seed=1))
        if found is not None:
            assert (threat or L2(0.3)).admits(X[:2], found.x_adv)[found.success].all()
            assert found.x_adv.isfinite().all()


def test_a_place_that_nothing_computes_on():
    for device in ("banana", "meta", "cuda:99", ""):
        with pytest.raises(SettingError, match=r"^device: nothing can be computed on "):
            Processes(device=device)
    assert Processes(device="cpu").device == torch.device("cpu")
    with pytest.raises(RunError, match="has no others"):
        Processes(0, 2).wait()
    with pytest.raises(SettingError, match=r"^processes: "):
        holdfast.audit(NET, (X, Y), Linf(0.1), processes="two")
