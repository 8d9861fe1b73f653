"""What the adversary raises: one number an example, larger being worse for the defender.

Logits are ``(N, K)``, labels and targets ``(N,)`` int64, values ``(N,)``. Nothing is averaged, so that an example's
gradient never depends on the batch it is in.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from holdfast.errors import SettingError

__all__ = [
    "ObjectiveName",
    "cross_entropy",
    "dlr",
    "kl_divergence",
    "margin",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
]

ObjectiveName = Literal["ce", "margin", "dlr"]

# The constant that the published DLR adds to its denominator.
_DLR_FLOOR = 1e-12


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """``-log softmax(z)_y``."""
    return functional.cross_entropy(logits, y, reduction="none")


def targeted_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """``log softmax(z)_t``, which rises as the target becomes likely."""
    return -cross_entropy(logits, target)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{i != y} z_i - z_y``, positive exactly where the example is misclassified."""
    return _runner_up(logits, y) - _pick(logits, y)


def targeted_margin(logits: Tensor, target: Tensor) -> Tensor:
    """``z_t - max_{i != t} z_i``, positive exactly where the target is predicted."""
    return -margin(logits, target)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, ``-(z_y - max_{i != y} z_i) / (z_(1) - z_(3) + 1e-12)``.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, equation 6. Invariant to shifting and scaling the logits.

    With two classes there is no third logit (and every difference divided by their spread would be +-1, without a
    gradient), so the value is the :func:`margin`.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + _DLR_FLOOR)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted DLR, ``-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)``.

    Croce and Hein, ICML 2020, equation 7. With three classes there is no fourth logit and the third stands for both;
    with two the value is the difference ``z_t - z_y`` alone, for the reason given at :func:`dlr`.
    """
    gap = _pick(logits, target) - _pick(logits, y)
    if logits.shape[1] < 3:
        return gap
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    # The mean of two differences, which are exact where the sum of two large logits is not.
    return gap / (((top[:, 0] - top[:, 2]) + (top[:, 0] - top[:, -1])) / 2 + _DLR_FLOOR)


def kl_divergence(logits: Tensor, clean_logits: Tensor) -> Tensor:
    """``KL(softmax(clean) || softmax(z))``, what TRADES raises; its gradient is 0 at the clean input itself."""
    p, q = functional.log_softmax(clean_logits, 1), functional.log_softmax(logits, 1)
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(1)


_UNTARGETED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def objective(name: ObjectiveName, y: Tensor, target: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The named objective as a function of the logits alone: away from ``y``, or towards ``target`` where given.

    Raises
    ------
    SettingError
        When the name is unknown.
    """
    if not isinstance(name, str) or name not in _UNTARGETED:
        raise SettingError(f"unknown objective {str(name)[:100]!r}: choose one of {', '.join(get_args(ObjectiveName))}")
    if target is None:
        return lambda logits: _UNTARGETED[name](logits, y)
    if name == "dlr":
        return lambda logits: targeted_dlr(logits, y, target)
    towards = targeted_cross_entropy if name == "ce" else targeted_margin
    return lambda logits: towards(logits, target)


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index.unsqueeze(1)).squeeze(1)


def _runner_up(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit of another class, found on a copy: some models hand out a tensor they keep."""
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return others.amax(1)
