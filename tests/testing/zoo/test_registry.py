"""Every specimen: whether it keeps what it promises of any network."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from helpers.networks import ordinary_digits
from helpers.zoo import linear, mlp, uniform
from holdfast import SettingError, load_data
from holdfast.testing import ZOO, Specimen

# What a defence may cost in clean accuracy: it is another model, and digits of 8 x 8 pixels are small for some.
COSTS = {
    **dict.fromkeys(["rounded logits", "rounded logits, flipped"], 0.01),
    **dict.fromkeys(["low-precision vote", "anti-adversary", "statistics of the batch", "intrinsic dimension"], 0.02),
    **dict.fromkeys(["statistics of the queries", "standardised", "half", "bfloat16", "eight-bit"], 0.02),
    **dict.fromkeys(["rounded inputs", "inputs as bytes", "thermometer", "one-hot inputs", "jpeg", "quilting"], 0.03),
    **dict.fromkeys(["ripples", "sawtooth", "projection", "autoencoder", "defense-gan", "pixel-defend"], 0.03),
    **dict.fromkeys(["noisy inputs", "noisy logits", "hashed noise", "random network", "steps"], 0.03),
    **dict.fromkeys(["strength from weakness", "far from its class", "nearest neighbours", "forest on features"], 0.05),
    **dict.fromkeys(["binary features", "prototypes", "mixup inference", "dithered rounding", "odds"], 0.05),
    **dict.fromkeys(["coarse jpeg", "total variation", "blur", "squeezing", "abstaining ensemble"], 0.06),
    **dict.fromkeys(["overflowing half"], 0.06),
    **dict.fromkeys(["binary inputs", "dropout", "sparse frequencies", "stochastic pruning", "k winners"], 0.15),
    **dict.fromkeys(["dropped inputs", "me-net", "two views"], 0.2),
    **dict.fromkeys(["median", "resizing and padding"], 0.3),
}
MOVES_THE_GLOBAL_GENERATOR = ("dropped inputs", "dropout")


@pytest.fixture(scope="module")
def fitted() -> Tensor:
    return next(load_data("digits", split="train", examples="0:1000").batches(1000)).x


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    batch = next(load_data("digits", split="test").batches(500))
    return batch.x, batch.y


def test_names_kinds_and_sources() -> None:
    assert all(name == specimen.name and specimen.source for name, specimen in ZOO.items())
    kinds = {specimen.kind for specimen in ZOO.values()}
    assert kinds == {
        *("inputs", "purifiers", "outputs", "backward", "randomness", "activations"),
        *("detectors", "memory", "precision", "lookups", "honest"),
    }
    assert COSTS.keys() <= ZOO.keys()


@torch.no_grad()
@pytest.mark.parametrize("specimen", ZOO.values(), ids=ZOO.keys())
def test_keeps_its_promises(specimen: Specimen, fitted: Tensor, digits: tuple[Tensor, Tensor]) -> None:
    net, (x, y) = ordinary_digits().train(), digits
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    one, other = specimen.wrap(net, fitted), specimen.wrap(net, fitted)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert net.training
    assert not one.training
    twins = copy.deepcopy(one), pickle.loads(pickle.dumps(one))
    torch.manual_seed(3)
    answers = one(x)
    assert torch.equal(torch.random.get_rng_state(), torch.Generator().manual_seed(3).get_state()) == (
        specimen.name not in MOVES_THE_GLOBAL_GENERATOR
    )
    for twin in (other, *twins):
        torch.manual_seed(3)
        assert torch.equal(twin(x).nan_to_num(), answers.nan_to_num())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not any(layer._backward_hooks or layer._forward_hooks for layer in net.modules())
    assert answers.dtype == x.dtype
    predicted, plain = answers.argmax(1), net.eval()(x).argmax(1)
    if specimen.name in COSTS:
        lost = (plain == y).double().mean() - (predicted == y).double().mean()
        assert lost <= COSTS[specimen.name]
    else:
        assert torch.equal(predicted, plain)


FOR_IMAGES = (
    *("jpeg", "coarse jpeg", "quilting", "median", "total variation", "sparse frequencies", "blur"),
    *("resizing and padding", "me-net"),
)


@pytest.mark.parametrize("specimen", ZOO.values(), ids=ZOO.keys())
def test_takes_rows_of_numbers_or_says_that_it_does_not(specimen: Specimen) -> None:
    if specimen.name in FOR_IMAGES:
        with pytest.raises(SettingError, match=r"images .N, C, H, W., not .*: leave this one out"):
            specimen.wrap(mlp(), uniform(60, 6))
        assert specimen.wrap(mlp(36), uniform(60, 1, 6, 6))(uniform(3, 1, 6, 6)).shape == (3, 4)
    else:
        assert specimen.wrap(mlp(), uniform(60, 6))(uniform(5, 6)).shape == (5, 4)


def test_says_what_a_network_lacks() -> None:
    plain = linear(uniform(3, 6), uniform(3))
    with pytest.raises(SettingError, match="no ReLU or the like"):
        ZOO["k winners"].wrap(plain, uniform(5, 6))
    with pytest.raises(SettingError, match="no linear layer"):
        ZOO["layer hook"].wrap(nn.Flatten(), uniform(5, 6))


@pytest.mark.parametrize("name", [name for name, specimen in ZOO.items() if specimen.honest])
def test_honest_gradients_are_true(name: str, fitted: Tensor, digits: tuple[Tensor, Tensor]) -> None:
    # Half precision and eight bits are too coarse for differences; what they compute with is not.
    if name in ("half", "bfloat16", "eight-bit"):
        pytest.skip("coarser than differences")
    wrapped = ZOO[name].wrap(ordinary_digits(), fitted)
    wrapped = wrapped if name == "float64" else wrapped.double()
    # Digits have equal neighbours, at which a median has a kink.
    x = (0.9 * digits[0][:20] + 0.1 * uniform(20, 1, 8, 8)).double()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    weights = torch.randn(10, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad((wrapped(leaf) * weights).sum(), leaf)
    step = 1e-7
    with torch.no_grad():
        rise = ((wrapped(x + step * direction) - wrapped(x - step * direction)) @ weights) / (2 * step)
    slope = (grad * direction).flatten(1).sum(1)
    agree = (rise - slope).abs() <= 1e-3 * slope.abs() + 1e-4
    assert agree.double().mean() >= 0.9  # the others stand at a kink
