"""The zoo: every specimen by its name."""

import copy
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from holdfast.testing.zoo import (
    activations,
    backward,
    detectors,
    honest,
    inputs,
    lookups,
    memory,
    outputs,
    precision,
    purifiers,
    randomness,
)
from holdfast.testing.zoo.specimen import Specimen

__all__ = ["ZOO"]

ATHALYE = "Athalye, Carlini and Wagner, ICML 2018"
TRAMER = "Tramèr, Carlini, Brendel and Madry, NeurIPS 2020"
PINTOR = "Pintor et al., NeurIPS 2022"
CARLINI = "Carlini and Wagner, S&P 2017"
BUCKMAN = f"Buckman et al., ICLR 2018; {ATHALYE}"
GUO = f"Guo et al., ICLR 2018; {ATHALYE}"
SQUEEZING = "Xu, Evans and Qi, NDSS 2018; He et al., WOOT 2017"
PAPERNOT = f"Papernot et al., S&P 2016; {CARLINI}"
WINNERS = f"Xiao, Zhong and Zheng, ICLR 2020; {TRAMER}"
OWN = "none: a fault by itself"


def _moved(net: nn.Module) -> list[nn.Module]:
    """Networks that are nearly the same: their weights moved a little."""
    return [randomness.perturbed(copy.deepcopy(net), 0.08, seed) for seed in range(4)]


def _through(change: backward.Change, net: nn.Module) -> nn.Module:
    return nn.Sequential(backward.Lying(change), net)


def _dtype(dtype: torch.dtype, net: nn.Module) -> nn.Module:
    return precision.Lowered(net, dtype)


def _peak(net: nn.Module, x: Tensor) -> float:
    """The largest size of a logit."""
    with torch.no_grad():
        return float(net(x).abs().max())


_SPECIMENS = (
    # Inputs.
    Specimen("rounded inputs", "inputs", GUO, lambda net, x: nn.Sequential(inputs.Rounded(), net)),
    Specimen("inputs as bytes", "inputs", SQUEEZING, lambda net, x: nn.Sequential(inputs.Bytes(), net)),
    Specimen("binary inputs", "inputs", SQUEEZING, lambda net, x: nn.Sequential(inputs.Rounded(2), net)),
    Specimen("thermometer", "inputs", BUCKMAN, lambda net, x: nn.Sequential(inputs.Thermometer(), net)),
    Specimen("one-hot inputs", "inputs", BUCKMAN, lambda net, x: nn.Sequential(inputs.OneHotEncoded(), net)),
    Specimen("jpeg", "inputs", f"Das et al., KDD 2018; {GUO}", lambda net, x: nn.Sequential(inputs.Jpeg(), net)),
    Specimen("coarse jpeg", "inputs", f"Das et al.; {PINTOR}", lambda net, x: nn.Sequential(inputs.Jpeg(15), net)),
    Specimen(
        "sparse frequencies",
        "inputs",
        f"Bafna, Murtagh and Vyas, NeurIPS 2018; {TRAMER}",
        lambda net, x: nn.Sequential(inputs.SparseFrequencies(), net),
    ),
    Specimen("median", "inputs", SQUEEZING, lambda net, x: nn.Sequential(inputs.MedianFiltered(), net), honest=True),
    Specimen("total variation", "inputs", GUO, lambda net, x: nn.Sequential(inputs.Denoised(), net), honest=True),
    Specimen("quilting", "inputs", GUO, lambda net, x: nn.Sequential(inputs.Quilted(x), net), honest=True),
    Specimen("ripples", "inputs", OWN, lambda net, x: nn.Sequential(inputs.Rippled(), net)),
    Specimen("sawtooth", "inputs", OWN, lambda net, x: nn.Sequential(inputs.Sawtooth(), net)),
    # Purifiers.
    Specimen(
        "projection",
        "purifiers",
        "Bhagoji et al., CISS 2018; Carlini and Wagner, AISec 2017",
        lambda net, x: nn.Sequential(purifiers.Projected(x), net),
    ),
    Specimen(
        "autoencoder",
        "purifiers",
        "Meng and Chen, CCS 2017; Carlini and Wagner 2017, arXiv:1711.08478",
        lambda net, x: nn.Sequential(purifiers.Autoencoder(x), net),
    ),
    Specimen(
        "defense-gan",
        "purifiers",
        f"Samangouei, Kabkab and Chellappa, ICLR 2018; {ATHALYE}",
        lambda net, x: nn.Sequential(purifiers.Inverted(x), net),
    ),
    Specimen(
        "pixel-defend",
        "purifiers",
        f"Song et al., ICLR 2018; {ATHALYE}",
        lambda net, x: nn.Sequential(purifiers.Likelier(x), net),
    ),
    Specimen(
        "anti-adversary",
        "purifiers",
        "Alfarra et al., AAAI 2022; Croce et al., ICML 2022",
        lambda net, x: purifiers.AntiAdversary(net),
    ),
    # Outputs.
    Specimen("distilled", "outputs", PAPERNOT, lambda net, x: nn.Sequential(net, outputs.Scaled(20.0))),
    Specimen("saturated", "outputs", PAPERNOT, lambda net, x: nn.Sequential(net, outputs.Scaled(1e4))),
    Specimen("boosted", "outputs", OWN, lambda net, x: nn.Sequential(net, outputs.Boosted())),
    Specimen("uneven margins", "outputs", OWN, lambda net, x: nn.Sequential(net, outputs.Uneven())),
    Specimen("clamped logits", "outputs", OWN, lambda net, x: nn.Sequential(net, outputs.Cut())),
    Specimen("tanh", "outputs", OWN, lambda net, x: nn.Sequential(net, outputs.Saturated())),
    Specimen("rounded logits", "outputs", OWN, lambda net, x: nn.Sequential(net, outputs.Rounding())),
    Specimen(
        "rounded confidence",
        "outputs",
        "Tramèr et al., USENIX Security 2016",
        lambda net, x: nn.Sequential(net, outputs.RoundedConfidence()),
    ),
    Specimen("ranks", "outputs", OWN, lambda net, x: nn.Sequential(net, outputs.Ranked())),
    Specimen("one-hot", "outputs", OWN, lambda net, x: nn.Sequential(net, outputs.OneHot())),
    Specimen("softmax", "outputs", OWN, lambda net, x: nn.Sequential(net, outputs.Probabilities())),
    Specimen("sharp softmax", "outputs", OWN, lambda net, x: nn.Sequential(net, outputs.SharpSoftmax())),
    Specimen(
        "error-correcting code",
        "outputs",
        f"Verma and Swami, NeurIPS 2019; {TRAMER}",
        lambda net, x: nn.Sequential(net, outputs.Coded()),
    ),
    # Wrong backward passes.
    Specimen("flipped gradient", "backward", OWN, lambda net, x: _through(backward.flipped, net), honest=True),
    Specimen(
        "half-flipped gradient", "backward", OWN, lambda net, x: _through(backward.half_flipped, net), honest=True
    ),
    Specimen("noise for a gradient", "backward", OWN, lambda net, x: _through(backward.Noise(), net)),
    Specimen("hash for a gradient", "backward", OWN, lambda net, x: _through(backward.hashed, net)),
    Specimen("ones for a gradient", "backward", OWN, lambda net, x: _through(backward.ones, net)),
    Specimen("zero gradient", "backward", OWN, lambda net, x: _through(backward.nothing, net)),
    Specimen("sparse gradient", "backward", OWN, lambda net, x: _through(backward.sparse, net)),
    Specimen("drip", "backward", OWN, lambda net, x: _through(backward.drip, net)),
    Specimen("shifted gradient", "backward", OWN, lambda net, x: _through(backward.shifted, net)),
    Specimen("mirrored gradient", "backward", OWN, lambda net, x: _through(backward.mirrored, net)),
    Specimen("tiny gradient", "backward", OWN, lambda net, x: _through(backward.tiny, net)),
    Specimen("huge gradient", "backward", OWN, lambda net, x: _through(backward.huge, net)),
    Specimen("nan gradient", "backward", OWN, lambda net, x: _through(backward.not_a_number, net)),
    Specimen("stale gradient", "backward", OWN, lambda net, x: _through(backward.Stale(), net)),
    Specimen("detach", "backward", OWN, lambda net, x: nn.Sequential(backward.Detached(connected=False), net)),
    Specimen(
        "detach with a way round",
        "backward",
        OWN,
        lambda net, x: nn.Sequential(backward.Detached(connected=True), net),
    ),
    Specimen("numpy", "backward", OWN, lambda net, x: nn.Sequential(backward.ThroughNumpy(), net)),
    Specimen("branch on grad mode", "backward", OWN, lambda net, x: backward.Branching(net)),
    Specimen("two-faced", "backward", OWN, lambda net, x: backward.TwoFaced(net)),
    Specimen("tensor hook", "backward", OWN, lambda net, x: nn.Sequential(backward.Hooked(backward.flipped), net)),
    Specimen("layer hook", "backward", OWN, lambda net, x: activations.LayerHooked(net, backward.flipped)),
    Specimen("lying units", "backward", OWN, lambda net, x: activations.lying_units(net, backward.half_flipped)),
    Specimen(
        "one-hot, flipped",
        "backward",
        OWN,
        lambda net, x: backward.Replaced(net, outputs.OneHot(), backward.flipped),
    ),
    Specimen(
        "one-hot, noise",
        "backward",
        OWN,
        lambda net, x: backward.Replaced(net, outputs.OneHot(), backward.Noise(1)),
    ),
    Specimen(
        "sharp softmax, flipped",
        "backward",
        OWN,
        lambda net, x: nn.Sequential(net, backward.Lying(backward.flipped), outputs.SharpSoftmax()),
    ),
    Specimen(
        "rounded logits, flipped",
        "backward",
        OWN,
        lambda net, x: backward.Replaced(net, outputs.Rounding(), backward.flipped),
    ),
    # Randomness.
    Specimen(
        "resizing and padding",
        "randomness",
        f"Xie et al., ICLR 2018; {ATHALYE}",
        lambda net, x: nn.Sequential(randomness.ResizedAndPadded(), net),
    ),
    Specimen(
        "noisy inputs",
        "randomness",
        "Liu et al., ECCV 2018",
        lambda net, x: nn.Sequential(randomness.NoisyInputs(), net),
    ),
    Specimen(
        "noisy logits",
        "randomness",
        "Byun, Go and Kim, WACV 2022",
        lambda net, x: nn.Sequential(net, randomness.NoisyOutputs()),
    ),
    Specimen("hashed noise", "randomness", OWN, lambda net, x: nn.Sequential(randomness.HashedNoise(), net)),
    Specimen("dithered rounding", "randomness", GUO, lambda net, x: nn.Sequential(randomness.Dithered(), net)),
    Specimen(
        "dropped inputs", "randomness", "Feinman et al. 2017", lambda net, x: nn.Sequential(randomness.Dropped(), net)
    ),
    Specimen(
        "dropout",
        "randomness",
        f"Feinman et al. 2017; {CARLINI}",
        lambda net, x: activations.Activated(net, randomness.Dropped(0.1)),
    ),
    Specimen(
        "stochastic pruning",
        "randomness",
        f"Dhillon et al., ICLR 2018; {ATHALYE}",
        lambda net, x: activations.Activated(net, randomness.Pruned()),
    ),
    Specimen(
        "random network", "randomness", "Liu et al., ECCV 2018", lambda net, x: randomness.Chosen([net, *_moved(net)])
    ),
    Specimen(
        "mixup inference",
        "randomness",
        f"Pang, Xu and Zhu, ICLR 2020; {TRAMER}",
        lambda net, x: randomness.Mixed(net, x),
    ),
    Specimen(
        "me-net",
        "randomness",
        f"Yang et al., ICML 2019; {TRAMER}",
        lambda net, x: nn.Sequential(randomness.MatrixEstimated(), net),
    ),
    # Activations.
    Specimen("k winners", "activations", WINNERS, lambda net, x: activations.Activated(net, activations.Winners())),
    Specimen("steps", "activations", OWN, lambda net, x: activations.Activated(net, activations.Steps())),
    Specimen(
        "binary features",
        "activations",
        "Galloway, Taylor and Moussa, ICLR 2018",
        lambda net, x: activations.BinaryFeatures(net, x),
    ),
    Specimen(
        "low-precision vote",
        "activations",
        f"Sen, Ravindran and Raghunathan, ICLR 2020; {TRAMER}",
        lambda net, x: activations.LowPrecisionVote(net),
    ),
    # Detectors.
    Specimen("squeezing", "detectors", SQUEEZING, lambda net, x: detectors.Squeezed(net, x, inputs.MedianFiltered())),
    Specimen("far from its class", "detectors", "Lee et al., NeurIPS 2018", lambda net, x: detectors.Distant(net, x)),
    Specimen(
        "intrinsic dimension",
        "detectors",
        f"Ma et al., ICLR 2018; {ATHALYE}",
        lambda net, x: detectors.Dimensional(net, x),
    ),
    Specimen(
        "odds",
        "detectors",
        f"Roth, Kilcher and Hofmann, ICML 2019; {TRAMER}",
        lambda net, x: detectors.Odd(net, x),
    ),
    Specimen(
        "strength from weakness",
        "detectors",
        f"Hu et al., NeurIPS 2019; {TRAMER}; {PINTOR}",
        lambda net, x: detectors.Unstable(net, x),
    ),
    Specimen(
        "abstaining ensemble",
        "detectors",
        f"Verma and Swami, NeurIPS 2019; {TRAMER}",
        lambda net, x: detectors.Abstaining([net, *_moved(net)]),
    ),
    # Memory.
    Specimen("cached answers", "memory", OWN, lambda net, x: memory.Cached(net)),
    Specimen(
        "near-duplicates",
        "memory",
        "Chen, Carlini and Wagner, SPAI 2020; Li et al., USENIX Security 2022",
        lambda net, x: memory.Suspicious(net),
    ),
    Specimen("budget of queries", "memory", OWN, lambda net, x: memory.Tiring(net)),
    Specimen("statistics of the batch", "memory", OWN, lambda net, x: memory.Adjusting(net, x)),
    Specimen("statistics of the queries", "memory", "Croce et al., ICML 2022", lambda net, x: memory.Adapting(net, x)),
    # Precision.
    Specimen(
        "overflowing half",
        "precision",
        OWN,
        lambda net, x: nn.Sequential(net, precision.OverflowingHalf(2e5 / _peak(net, x))),
    ),
    Specimen("bfloat16", "precision", OWN, lambda net, x: _dtype(torch.bfloat16, net), honest=True),
    # Lookups.
    Specimen(
        "nearest neighbours",
        "lookups",
        "Papernot and McDaniel 2018, arXiv:1803.04765; Sitawarin and Wagner 2019",
        lambda net, x: lookups.Neighbours(net, x),
    ),
    Specimen("forest on features", "lookups", OWN, lambda net, x: lookups.Forest(net, x)),
    Specimen(
        "prototypes",
        "lookups",
        f"Pang et al., ICLR 2020; Li, Bradshaw and Sharma, ICML 2019; {TRAMER}",
        lambda net, x: lookups.Prototypes(net, x),
        honest=True,
    ),
    # Honest ones.
    Specimen("bare", "honest", OWN, lambda net, x: net, honest=True),
    Specimen("standardised", "honest", OWN, lambda net, x: nn.Sequential(honest.Standardised(), net), honest=True),
    Specimen("log-softmax", "honest", OWN, lambda net, x: nn.Sequential(net, outputs.LogProbabilities()), honest=True),
    Specimen("warm logits", "honest", OWN, lambda net, x: nn.Sequential(net, outputs.Scaled(0.5)), honest=True),
    Specimen("blur", "honest", OWN, lambda net, x: nn.Sequential(inputs.Blurred(), net), honest=True),
    Specimen(
        "hand-written function", "honest", OWN, lambda net, x: nn.Sequential(net, honest.HandWritten()), honest=True
    ),
    Specimen("checkpointed", "honest", OWN, lambda net, x: honest.Checkpointed(net), honest=True),
    Specimen("observed", "honest", OWN, lambda net, x: honest.Observed(net), honest=True),
    Specimen("two views", "honest", OWN, lambda net, x: honest.TwoViews(net), honest=True),
    Specimen("eight-bit", "honest", OWN, lambda net, x: nn.Sequential(honest.EightBit(), net), honest=True),
    Specimen("float64", "honest", OWN, lambda net, x: _dtype(torch.float64, net), honest=True),
    Specimen("half", "honest", OWN, lambda net, x: _dtype(torch.float16, net), honest=True),
)

ZOO: Mapping[str, Specimen] = MappingProxyType({specimen.name: specimen for specimen in _SPECIMENS})
"""Every specimen by its name, the broken ones first."""
