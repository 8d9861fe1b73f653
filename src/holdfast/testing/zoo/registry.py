"""The zoo: every specimen by its name."""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from holdfast.testing.zoo import activations as units
from holdfast.testing.zoo import backward, detectors, honest, inputs, lookups, memory, outputs, purifiers
from holdfast.testing.zoo import precision as bits
from holdfast.testing.zoo import randomness as draws
from holdfast.testing.zoo.specimen import Build, Specimen

__all__ = ["ZOO"]

# Who broke them.
ATHALYE = "Athalye, Carlini and Wagner, ICML 2018"
TRAMER = "Tramèr, Carlini, Brendel and Madry, NeurIPS 2020"
PINTOR = "Pintor et al., NeurIPS 2022"
CARLINI = "Carlini and Wagner, S&P 2017"
# Who proposed them.
BUCKMAN = f"Buckman et al., ICLR 2018; {ATHALYE}"
DAS = f"Das et al., KDD 2018; {ATHALYE}; {PINTOR}"
GUO = f"Guo et al., ICLR 2018; {ATHALYE}"
SQUEEZING = "Xu, Evans and Qi, NDSS 2018; He et al., WOOT 2017"
PAPERNOT = f"Papernot et al., S&P 2016; {CARLINI}; {PINTOR}"
XIAO = f"Xiao, Zhong and Zheng, ICLR 2020; {TRAMER}; {PINTOR}"
VERMA = f"Verma and Swami, NeurIPS 2019; {TRAMER}"
HU = f"Hu et al., NeurIPS 2019; {TRAMER}; {PINTOR}"
PROTOTYPES = f"Pang et al., ICLR 2020; Li, Bradshaw and Sharma, ICML 2019; {TRAMER}"
CONSISTENT = "Chen, Carlini and Wagner, SPAI 2020; Li et al., USENIX Security 2022"
FAULT = "no paper: a fault of code"
HARMLESS = "no paper: what networks do"


def _before(make: Callable[[Tensor], nn.Module]) -> Build:
    """A module before the network, made of examples."""
    return lambda net, x: nn.Sequential(make(x), net)


def _image(make: Callable[[], nn.Module]) -> Build:
    """A module before the network that works on images."""

    def build(net: nn.Module, x: Tensor) -> nn.Module:
        part = make()
        inputs.images(type(part).__name__, x)
        return nn.Sequential(part, net)

    return build


def _behind(make: Callable[[], nn.Module]) -> Build:
    """A module behind the network."""
    return lambda net, x: nn.Sequential(net, make())


def _units(make: Callable[[], nn.Module]) -> Build:
    """A module behind each activation of the network."""

    def build(net: nn.Module, x: Tensor) -> nn.Module:
        active = units.Activated(net, make())
        active.refuse_none(x[:1])
        return active

    return build


def _around(make: Callable[[nn.Module], nn.Module]) -> Build:
    """A module that holds the network."""
    return lambda net, x: make(net)


def _lying(change: Callable[[], backward.Change]) -> Build:
    """An identity before the network that hands another gradient back."""
    return lambda net, x: nn.Sequential(backward.Lying(change()), net)


def _replaced(last: Callable[[], nn.Module], change: Callable[[], backward.Change]) -> Build:
    """A module behind the network, with another gradient of the network's logits."""
    return lambda net, x: backward.Replaced(net, last(), change())


def _ensemble(net: nn.Module) -> list[nn.Module]:
    """Networks that are nearly the same: the network, and four whose weights are moved a little."""
    return [net, *(draws.perturbed(copy.deepcopy(net), 0.08, seed) for seed in range(4))]


def _overflowing(net: nn.Module, x: Tensor) -> nn.Module:
    with torch.no_grad():
        largest = float(net(x).abs().max())
    return nn.Sequential(net, bits.OverflowingHalf(2e5 / largest))


_SPECIMENS = (
    Specimen("rounded inputs", "inputs", GUO, _before(lambda x: inputs.Rounded())),
    Specimen("inputs as bytes", "inputs", SQUEEZING, _before(lambda x: inputs.Bytes())),
    Specimen("binary inputs", "inputs", SQUEEZING, _before(lambda x: inputs.Rounded(2))),
    Specimen("thermometer", "inputs", BUCKMAN, _before(lambda x: inputs.Thermometer())),
    Specimen("one-hot inputs", "inputs", BUCKMAN, _before(lambda x: inputs.OneHotEncoded())),
    Specimen("jpeg", "inputs", DAS, _image(inputs.Jpeg)),
    Specimen("coarse jpeg", "inputs", DAS, _image(lambda: inputs.Jpeg(15))),
    Specimen("quilting", "inputs", GUO, _before(inputs.Quilted)),
    Specimen("ripples", "inputs", FAULT, _before(lambda x: inputs.Rippled())),
    Specimen("sawtooth", "inputs", FAULT, _before(lambda x: inputs.Sawtooth())),
    Specimen("median", "inputs", SQUEEZING, _image(inputs.MedianFiltered), honest=True),
    Specimen("total variation", "inputs", GUO, _image(inputs.Denoised), honest=True),
    Specimen(
        "sparse frequencies",
        "inputs",
        f"Bafna, Murtagh and Vyas, NeurIPS 2018; {TRAMER}",
        _image(inputs.SparseFrequencies),
        honest=True,
    ),
    Specimen(
        "projection",
        "purifiers",
        "Bhagoji et al., CISS 2018; Carlini and Wagner, AISec 2017",
        _before(purifiers.Projected),
        honest=True,
    ),
    Specimen(
        "autoencoder",
        "purifiers",
        "Meng and Chen, CCS 2017; Carlini and Wagner 2017, arXiv:1711.08478",
        _before(purifiers.Autoencoder),
        honest=True,
    ),
    Specimen(
        "defense-gan",
        "purifiers",
        f"Samangouei, Kabkab and Chellappa, ICLR 2018; {ATHALYE}",
        _before(purifiers.Inverted),
    ),
    Specimen("pixel-defend", "purifiers", f"Song et al., ICLR 2018; {ATHALYE}", _before(purifiers.Likelier)),
    Specimen(
        "anti-adversary",
        "purifiers",
        "Alfarra et al., AAAI 2022; Croce et al., ICML 2022",
        _around(purifiers.AntiAdversary),
    ),
    Specimen("distilled", "outputs", PAPERNOT, _behind(lambda: outputs.Scaled(20.0))),
    Specimen("saturated", "outputs", PAPERNOT, _behind(lambda: outputs.Scaled(1e4))),
    Specimen("boosted", "outputs", FAULT, _behind(outputs.Boosted)),
    Specimen("uneven margins", "outputs", FAULT, _behind(outputs.Uneven)),
    Specimen("clamped logits", "outputs", FAULT, _behind(outputs.Cut)),
    Specimen("tanh", "outputs", FAULT, _behind(outputs.Saturated)),
    Specimen("rounded logits", "outputs", FAULT, _behind(outputs.Rounding)),
    Specimen(
        "rounded confidence", "outputs", "Tramèr et al., USENIX Security 2016", _behind(outputs.RoundedConfidence)
    ),
    Specimen("ranks", "outputs", FAULT, _behind(outputs.Ranked)),
    Specimen("one-hot", "outputs", FAULT, _behind(outputs.OneHot)),
    Specimen("softmax", "outputs", FAULT, _behind(outputs.Probabilities)),
    Specimen("sharp softmax", "outputs", FAULT, _behind(outputs.SharpSoftmax)),
    Specimen("error-correcting code", "outputs", VERMA, _behind(outputs.Coded)),
    Specimen("flipped gradient", "backward", FAULT, _lying(lambda: backward.flipped)),
    Specimen("half-flipped gradient", "backward", FAULT, _lying(lambda: backward.half_flipped)),
    Specimen("noise for a gradient", "backward", FAULT, _lying(backward.Noise)),
    Specimen("hash for a gradient", "backward", FAULT, _lying(lambda: backward.hashed)),
    Specimen("ones for a gradient", "backward", FAULT, _lying(lambda: backward.ones)),
    Specimen("zero gradient", "backward", FAULT, _lying(lambda: backward.nothing)),
    Specimen("sparse gradient", "backward", FAULT, _lying(lambda: backward.sparse)),
    Specimen("drip", "backward", FAULT, _lying(lambda: backward.drip)),
    Specimen("shifted gradient", "backward", FAULT, _lying(lambda: backward.shifted)),
    Specimen("mirrored gradient", "backward", FAULT, _lying(lambda: backward.mirrored)),
    Specimen("tiny gradient", "backward", FAULT, _lying(lambda: backward.tiny)),
    Specimen("huge gradient", "backward", FAULT, _lying(lambda: backward.huge)),
    Specimen("nan gradient", "backward", FAULT, _lying(lambda: backward.not_a_number)),
    Specimen("stale gradient", "backward", FAULT, _lying(backward.Stale)),
    Specimen("detach", "backward", FAULT, _before(lambda x: backward.Detached(connected=False))),
    Specimen("detach with a way round", "backward", FAULT, _before(lambda x: backward.Detached(connected=True))),
    Specimen("numpy", "backward", FAULT, _before(lambda x: backward.ThroughNumpy())),
    Specimen("branch on grad mode", "backward", FAULT, _around(backward.Branching)),
    Specimen("two-faced", "backward", FAULT, _around(backward.TwoFaced)),
    Specimen("tensor hook", "backward", FAULT, _before(lambda x: backward.Hooked(backward.flipped))),
    Specimen("layer hook", "backward", FAULT, _around(lambda net: units.LayerHooked(net, backward.flipped))),
    Specimen("lying units", "backward", FAULT, _units(lambda: backward.Lying(backward.half_flipped))),
    Specimen("one-hot, flipped", "backward", FAULT, _replaced(outputs.OneHot, lambda: backward.flipped)),
    Specimen("one-hot, noise", "backward", FAULT, _replaced(outputs.OneHot, backward.Noise)),
    Specimen("rounded logits, flipped", "backward", FAULT, _replaced(outputs.Rounding, lambda: backward.flipped)),
    Specimen(
        "sharp softmax, flipped",
        "backward",
        FAULT,
        _behind(lambda: nn.Sequential(backward.Lying(backward.flipped), outputs.SharpSoftmax())),
    ),
    Specimen(
        "resizing and padding",
        "randomness",
        f"Xie et al., ICLR 2018; {ATHALYE}",
        _image(draws.ResizedAndPadded),
    ),
    Specimen("noisy inputs", "randomness", "Liu et al., ECCV 2018", _before(lambda x: draws.NoisyInputs())),
    Specimen("noisy logits", "randomness", "Byun, Go and Kim, WACV 2022", _behind(draws.NoisyOutputs)),
    Specimen("hashed noise", "randomness", FAULT, _before(lambda x: draws.HashedNoise())),
    Specimen("dithered rounding", "randomness", GUO, _before(lambda x: draws.Dithered())),
    Specimen("dropped inputs", "randomness", GUO, _before(lambda x: draws.Dropped())),
    Specimen(
        "dropout",
        "randomness",
        "Feinman et al. 2017, arXiv:1703.00410; Carlini and Wagner, AISec 2017",
        _units(lambda: draws.Dropped(0.1)),
    ),
    Specimen("stochastic pruning", "randomness", f"Dhillon et al., ICLR 2018; {ATHALYE}", _units(draws.Pruned)),
    Specimen(
        "random network", "randomness", "Liu et al., ECCV 2018", _around(lambda net: draws.Chosen(_ensemble(net)))
    ),
    Specimen("mixup inference", "randomness", f"Pang, Xu and Zhu, ICLR 2020; {TRAMER}", draws.Mixed),
    Specimen("me-net", "randomness", f"Yang et al., ICML 2019; {TRAMER}", _image(draws.MatrixEstimated)),
    Specimen("k winners", "activations", XIAO, _units(units.Winners)),
    Specimen("steps", "activations", FAULT, _units(units.Steps)),
    Specimen("binary features", "activations", "Galloway, Taylor and Moussa, ICLR 2018", units.BinaryFeatures),
    Specimen(
        "low-precision vote",
        "activations",
        f"Sen, Ravindran and Raghunathan, ICLR 2020; {TRAMER}",
        _around(units.LowPrecisionVote),
    ),
    Specimen("squeezing", "detectors", SQUEEZING, lambda net, x: detectors.Squeezed(net, x, inputs.Rounded(4))),
    Specimen("far from its class", "detectors", "Lee et al., NeurIPS 2018", detectors.Distant),
    Specimen("intrinsic dimension", "detectors", f"Ma et al., ICLR 2018; {ATHALYE}", detectors.Dimensional),
    Specimen("odds", "detectors", f"Roth, Kilcher and Hofmann, ICML 2019; {TRAMER}", detectors.Odd),
    Specimen("strength from weakness", "detectors", HU, detectors.Unstable),
    Specimen("abstaining ensemble", "detectors", VERMA, _around(lambda net: detectors.Abstaining(_ensemble(net)))),
    Specimen("cached answers", "memory", FAULT, _around(memory.Cached)),
    Specimen("near-duplicates", "memory", CONSISTENT, _around(memory.Suspicious)),
    Specimen("budget of queries", "memory", FAULT, _around(memory.Tiring)),
    Specimen("statistics of the batch", "memory", FAULT, memory.Adjusting),
    Specimen("statistics of the queries", "memory", "Croce et al., ICML 2022", memory.Adapting),
    Specimen("overflowing half", "precision", FAULT, _overflowing),
    Specimen(
        "nearest neighbours",
        "lookups",
        "Papernot and McDaniel 2018, arXiv:1803.04765; Sitawarin and Wagner, DLS 2019",
        lookups.Neighbours,
    ),
    Specimen("forest on features", "lookups", FAULT, lookups.Forest),
    Specimen("prototypes", "lookups", PROTOTYPES, lookups.Prototypes, honest=True),
    Specimen("bare", "honest", HARMLESS, _around(lambda net: net), honest=True),
    Specimen("standardised", "honest", HARMLESS, _before(lambda x: honest.Standardised()), honest=True),
    Specimen("log-softmax", "honest", HARMLESS, _behind(outputs.LogProbabilities), honest=True),
    Specimen("warm logits", "honest", HARMLESS, _behind(lambda: outputs.Scaled(0.5)), honest=True),
    Specimen("blur", "honest", HARMLESS, _image(inputs.Blurred), honest=True),
    Specimen("hand-written function", "honest", HARMLESS, _behind(honest.HandWritten), honest=True),
    Specimen("checkpointed", "honest", HARMLESS, _around(honest.Checkpointed), honest=True),
    Specimen("observed", "honest", HARMLESS, _around(honest.Observed), honest=True),
    Specimen("two views", "honest", HARMLESS, _around(honest.TwoViews), honest=True),
    Specimen("eight-bit", "honest", HARMLESS, _before(lambda x: honest.EightBit()), honest=True),
    Specimen("float64", "honest", HARMLESS, _around(lambda net: bits.Lowered(net, torch.float64)), honest=True),
    Specimen("half", "honest", HARMLESS, _around(lambda net: bits.Lowered(net, torch.float16)), honest=True),
    Specimen("bfloat16", "honest", HARMLESS, _around(lambda net: bits.Lowered(net, torch.bfloat16)), honest=True),
)

ZOO: Mapping[str, Specimen] = MappingProxyType({specimen.name: specimen for specimen in _SPECIMENS})
"""Every specimen by its name."""
