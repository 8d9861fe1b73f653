"""What to go on with when a method of single steps has collapsed."""

from dataclasses import replace

from holdfast.threats import Ball
from holdfast.train.awp import AWP
from holdfast.train.classwise import ClassWise
from holdfast.train.fgsm import FGSMTraining
from holdfast.train.fgsm_rs import FGSMRS
from holdfast.train.free import Free
from holdfast.train.gradalign import GradAlign
from holdfast.train.method import Method
from holdfast.train.methods import METHODS, WRAPPERS
from holdfast.train.nfgsm import NFGSM
from holdfast.train.pgd import PGDTraining
from holdfast.train.recipes import is_large

__all__ = ["escalation", "title"]

# Of PGD, where all single steps have failed.
_STEPS = (2, 3, 5)


def escalation(method: Method) -> tuple[Method, ...]:
    """The methods to try after this one, each harder to overfit and dearer than the one before.

    A random start or a smaller step; more noise and a penalty on gradients that turn, where the budget is small against
    the box: otherwise noise drowns the inputs, and the penalty, whose weight grows with the budget, stops all learning;
    a few steps of PGD. Around a method goes what went around the one before. Methods that take more than one step, or
    none, have nothing to escalate to.
    """
    match method:
        case AWP() | ClassWise():
            return tuple(replace(method, inner=inner) for inner in escalation(method.inner))
        case FGSMTraining(threat):
            return (FGSMRS(threat), *_small(threat, NFGSM(threat), GradAlign(threat)), *_pgd(threat))
        case FGSMRS(threat, size):
            return (FGSMRS(threat, 0.8 * size), *_small(threat, NFGSM(threat), GradAlign(threat)), *_pgd(threat))
        case NFGSM(threat, noise, size):
            noisy = (NFGSM(threat, noise, 0.8 * size), NFGSM(threat, noise + 1, 0.8 * size))
            return (*_small(threat, *noisy, GradAlign(threat)), *_pgd(threat))
        case GradAlign(threat, weight):
            return (*_small(threat, GradAlign(threat, 4 * weight)), *_pgd(threat))
        case Free(threat):
            return _pgd(threat)
    return ()


def _small(threat: Ball, *methods: Method) -> tuple[Method, ...]:
    """Methods for budgets that are small against the box."""
    return () if is_large(threat) else methods


def _pgd(threat: Ball) -> tuple[Method, ...]:
    return tuple(PGDTraining(threat, steps=steps) for steps in _STEPS)


def title(method: Method) -> str:
    """A method as its user names it, and its numbers: ``"awp:fgsm-rs (step_size 1)"``."""
    names = {kind: name for name, kind in {**METHODS, **WRAPPERS}.items()}
    name = names.get(type(method), type(method).__name__)
    if isinstance(method, AWP | ClassWise):
        return f"{name}:{title(method.inner)}"
    numbers = [f"{key} {value:g}" for key, value in vars(method).items() if isinstance(value, int | float)]
    return f"{name} ({', '.join(numbers)})" if numbers else name
