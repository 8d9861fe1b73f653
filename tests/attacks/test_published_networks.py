"""Real networks with published weights, and the verdicts of the published ensemble."""

import gzip
import importlib.util
import json

import numpy as np
import pytest
import torch

from helpers.attacks import predict
from helpers.shared import SHARED, needs_shared
from holdfast.attacks import APGD, PGD
from holdfast.threats import L2, Linf

pytestmark = [needs_shared, pytest.mark.slow]


def network(weights: str, factory: str):
    spec = importlib.util.spec_from_file_location("nets", SHARED / "models" / "nets.py")
    nets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nets)
    model = getattr(nets, factory)()
    state = torch.load(SHARED / "models" / weights, weights_only=True, map_location="cpu")
    state = state[0] if isinstance(state, list) else state
    model.load_state_dict(state.get("state_dict", state))
    return model.eval()


def images(data: str, count: int):
    """The first images, read without the library."""
    if data == "cifar":
        with np.load(SHARED / "data" / "cifar10" / "cifar10_exact_test_first1017.npz") as held:
            x, y = (held[name][:count] for name in sorted(held.files, key=lambda n: -held[n].ndim)[:2])
        x = torch.from_numpy(x)
        x = x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)
        return x.float() / 255 if x.dtype == torch.uint8 else x.float(), torch.from_numpy(y).long().flatten()
    folder = SHARED / "data" / {"mnist": "mnist", "fashion": "fashion_mnist"}[data]
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as stream:
        x = np.frombuffer(stream.read(16 + 784 * count)[16:], np.uint8).reshape(count, 1, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as stream:
        y = np.frombuffer(stream.read(8 + count)[8:], np.uint8)
    return torch.from_numpy(x.copy()).float() / 255, torch.from_numpy(y.copy()).long()


def test_nothing_of_an_ordinary_network_survives():
    model = network("advertorch_lenet5_clean.pt", "mnist_lenet5")
    x, y = images("mnist", 100)
    assert (predict(model, x) == y).sum() >= 98
    result = PGD(steps=40)(model, x, y, threat=Linf(0.3))
    assert result.success.all()
    assert (predict(model, result.x_adv) != y).all()
    assert (result.x_adv - x).abs().max() <= 0.3 + 1e-6


@pytest.mark.parametrize(
    ("run", "count", "short"),
    [
        ("advertorch_lenet5_adv_linf0.3-Linf-0.3", 50, 3),
        ("convexadv_linf0.1-Linf-0.1", 100, 1),
        ("abcrown_resnet2b-Linf-0.007843", 60, 1),
        ("abcrown_resnet2b-L2-0.25", 60, 1),
    ],
)
def test_verdicts_are_those_of_the_published_ensemble(run, count, short):
    """APGD alone may miss ``short`` examples that the whole ensemble breaks; it breaks at most one that they do not."""
    reference = json.loads((SHARED / "reference" / f"{run}.json").read_text())
    model = network(reference["model"], reference["factory"])
    x, y = images(reference["data"], count)
    threat = {"Linf": Linf, "L2": L2}[reference["norm"]](reference["eps"])
    result = APGD(steps=50)(model, x, y, threat=threat)
    left = APGD(steps=20, objective="dlr", targets=4)(model, x[~result.success], y[~result.success], threat=threat)
    ours = ~result.success
    ours[ours.clone()] = ~left.success
    theirs = torch.tensor(reference["robust"][:count], dtype=torch.bool)
    assert (ours & ~theirs).sum() <= short
    assert (theirs & ~ours).sum() <= 1
    # What the clean network gets wrong, both count as broken; the attack itself broke others.
    assert (~ours).sum() > (predict(model, x) != y).sum()
    assert torch.equal(predict(model, result.x_adv) != y, result.success)
