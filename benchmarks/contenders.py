"""PGD in L-infinity, by holdfast, by a plain loop and by other libraries, all with the same steps and batches.

A contender takes a model, inputs and labels and returns adversarial inputs. Every one starts at a random point and
takes ``steps`` steps of ``2.5 * eps / steps``. A peer is imported when it is made; what is not installed is left out.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from types import ModuleType

import torch
from measure import Contender
from torch import Tensor, nn
from torch.nn import functional

from holdfast import PGD, Linf


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    eps: float
    steps: int
    batch: int

    @property
    def size(self) -> float:
        return 2.5 * self.eps / self.steps


def ours(setting: Setting) -> Contender:
    attack, threat = PGD(steps=setting.steps), Linf(setting.eps)
    return lambda model, x, y: attack(model, x, y, threat=threat, batch_size=setting.batch).x_adv


def plain(setting: Setting, channels_last: bool) -> Contender:
    """Forward, gradient, step and clamps, and nothing else: the parameters are frozen already."""
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model.to(memory_format=layout)
        x_adv = in_batches(lambda x, y: _ascend(model, x.to(memory_format=layout), y, setting), x, y, setting.batch)
        model.to(memory_format=torch.contiguous_format)
        return x_adv

    return run


def _ascend(model: nn.Module, x: Tensor, y: Tensor, setting: Setting) -> Tensor:
    lower, upper = (x - setting.eps).clamp(0, 1), (x + setting.eps).clamp(0, 1)
    x_adv = (x + torch.empty_like(x).uniform_(-setting.eps, setting.eps)).clamp(0, 1)
    for _ in range(setting.steps):
        x_adv.requires_grad_(True)
        loss = functional.cross_entropy(model(x_adv), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x_adv)
        x_adv = torch.clamp(x_adv.detach() + setting.size * grad.sign(), lower, upper)
    return x_adv


def in_batches(attack: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, size: int) -> Tensor:
    return torch.cat([attack(a, b) for a, b in zip(x.split(size), y.split(size), strict=True)])


def _torchattacks(s: Setting) -> Contender:
    import torchattacks

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = torchattacks.PGD(model, eps=s.eps, alpha=s.size, steps=s.steps, random_start=True)
        return in_batches(attack, x, y, s.batch)

    return run


def _foolbox(s: Setting) -> Contender:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=s.size, steps=s.steps, random_start=True)

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return in_batches(lambda x, y: attack(wrapped, x, y, epsilons=s.eps)[1], x, y, s.batch)

    return run


def _adv_lib(s: Setting) -> Contender:
    leave_out("torchvision", "models")  # pretrained networks for a distance
    leave_out("visdom")  # live plots
    from adv_lib.attacks import pgd_linf

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def attack(x: Tensor, y: Tensor) -> Tensor:
            return pgd_linf(model, x, y, s.eps, steps=s.steps, absolute_step_size=s.size)

        return in_batches(attack, x, y, s.batch)

    return run


def _cleverhans(s: Setting) -> Contender:
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def attack(x: Tensor, y: Tensor) -> Tensor:
            limits = {"clip_min": 0.0, "clip_max": 1.0, "sanity_checks": False}
            return projected_gradient_descent(model, x, s.eps, s.size, s.steps, float("inf"), y=y, **limits).detach()

        return in_batches(attack, x, y, s.batch)

    return run


def _art(s: Setting) -> Contender:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        classes = model(x[:1]).shape[1]
        shape = tuple(x.shape[1:])
        loss = nn.CrossEntropyLoss()
        wrapped = PyTorchClassifier(model, loss, shape, classes, clip_values=(0.0, 1.0), device_type="cpu")
        attack = ProjectedGradientDescent(
            wrapped, eps=s.eps, eps_step=s.size, max_iter=s.steps, num_random_init=1, batch_size=s.batch, verbose=False
        )
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

    return run


def leave_out(name: str, *attributes: str) -> None:
    """An empty module for one that a peer imports and that nothing here uses, where it is not installed."""
    if name not in sys.modules and util.find_spec(name) is None:
        sys.modules[name] = stub = ModuleType(name)
        for attribute in attributes:
            setattr(stub, attribute, None)


PEERS: dict[str, Callable[[Setting], Contender]] = {
    "torchattacks": _torchattacks,
    "foolbox": _foolbox,
    "adv-lib": _adv_lib,
    "cleverhans": _cleverhans,
    "adversarial-robustness-toolbox": _art,
}


def installed() -> tuple[dict[str, str], dict[str, str]]:
    """The peers that can be used with their versions, and the others with the reason."""
    versions, absent = {}, {}
    for name, make in PEERS.items():
        try:
            make(Setting(0.1, 1, 1))
            versions[name] = metadata.version(name)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {error}"
    return versions, absent
