"""Every attack and who it is compared with: the closest attack of another library, with as many steps or queries.

A peer is imported when it is made; what is not installed is left out. Where a minimum-norm attack of ours ends with a
refinement, its looks come out of the same number of steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from contenders import in_batches, leave_out
from measure import Contender
from torch import Tensor, nn

from holdfast import PGD
from holdfast.attacks.annealed import AnnealedPGD
from holdfast.attacks.apgd import APGD
from holdfast.attacks.apgd_l1 import APGDL1
from holdfast.attacks.bim import BIM
from holdfast.attacks.cw import CW
from holdfast.attacks.ddn import DDN
from holdfast.attacks.deepfool import DeepFool
from holdfast.attacks.ead import EAD
from holdfast.attacks.fab import FAB
from holdfast.attacks.fgsm import FGSM
from holdfast.attacks.fmn import FMN
from holdfast.attacks.hopskipjump import HopSkipJump
from holdfast.attacks.mifgsm import MIFGSM
from holdfast.attacks.nes import NES
from holdfast.attacks.ray import Ray
from holdfast.attacks.sigma_zero import SigmaZero
from holdfast.attacks.sparse_rs import SparseRS
from holdfast.attacks.spsa import SPSA
from holdfast.attacks.square import Square
from holdfast.attacks.transfer import Diversity, Transfer, TranslationKernel, VarianceTuning
from holdfast.attacks.universal import universal_perturbation
from holdfast.engine.attack import Attack
from holdfast.engine.craft import craft
from holdfast.threats import L0, L1, L2, Ball, Linf

NORMS: dict[str, Callable[[float], Ball]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}
ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}

TORCHATTACKS, FOOLBOX, ADV_LIB = "torchattacks", "foolbox", "adv-lib"
ART = "adversarial-robustness-toolbox"

# Examples a call of the model, for both sides.
BATCH = 64


@dataclass(frozen=True)
class Task:
    """What both sides are given; the budget is infinite where the nearest adversarial input is wanted."""

    norm: str
    eps: float
    surrogate: nn.Module
    channels: int = 1
    seed: int = 0

    @property
    def threat(self) -> Ball:
        return NORMS[self.norm](self.eps)


Maker = Callable[[Task], Contender]


@dataclass(frozen=True)
class Pair:
    """An attack and its peer. The budget is the network's, times ``scale``; none where the nearest is wanted."""

    name: str
    norm: str
    ours: Maker
    peer: str | None = None
    theirs: Maker | None = None
    nearest: bool = False
    scale: float = 1.0


def ours(make: Callable[[Task], Attack]) -> Maker:
    def maker(task: Task) -> Contender:
        attack, threat = make(task), task.threat
        return lambda model, x, y: craft(attack, model, x, y, threat=threat, seed=task.seed, batch_size=BATCH).x_adv

    return maker


def _universal(task: Task, epochs: int) -> Contender:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        result = universal_perturbation(model, (x, y), task.threat, epochs=epochs, seed=task.seed, batch_size=20)
        return task.threat.apply(x, result.z.expand_as(x))

    return run


def torchattacks(name: str, settings: Callable[[Task], dict[str, Any]], of_surrogate: bool = False) -> Maker:
    def maker(task: Task) -> Contender:
        import torchattacks

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            attack = getattr(torchattacks, name)(task.surrogate if of_surrogate else model, **settings(task))
            return in_batches(attack, x, y, BATCH)

        return run

    return maker


def foolbox(name: str, settings: Callable[[Task], dict[str, Any]]) -> Maker:
    def maker(task: Task) -> Contender:
        import foolbox

        return _foolbox(getattr(foolbox.attacks, name)(**settings(task)), task)

    return maker


def _foolbox(attack: Any, task: Task, size: int | None = None) -> Contender:
    import foolbox

    limit = None if math.isinf(task.eps) else task.eps

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return in_batches(lambda x, y: attack(wrapped, x, y, epsilons=limit)[1], x, y, size or BATCH)

    return run


def _foolbox_nes(task: Task, steps: int, samples: int, sigma: float) -> Contender:
    """Its estimator adds up the losses of a whole batch, so that only batches of one estimate a gradient."""
    import foolbox
    from foolbox.gradient_estimators import es_gradient_estimator

    cls = es_gradient_estimator(foolbox.attacks.LinfPGD, samples=samples, sigma=sigma, bounds=(0, 1), clip=True)
    return _foolbox(cls(steps=steps, rel_stepsize=2.5 / steps, random_start=False), task, size=1)


def adv_lib(name: str, settings: Callable[[Task], dict[str, Any]]) -> Maker:
    def maker(task: Task) -> Contender:
        leave_out("torchvision", "models")  # pretrained networks for a distance
        leave_out("visdom")  # live plots
        import adv_lib.attacks

        attack = getattr(adv_lib.attacks, name)

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return in_batches(lambda x, y: attack(model, x.clone(), y, **settings(task)).detach(), x, y, BATCH)

        return run

    return maker


def art(name: str, settings: Callable[[Task], dict[str, Any]]) -> Maker:
    def maker(task: Task) -> Contender:
        import art.attacks.evasion
        from art.estimators.classification import PyTorchClassifier

        cls = getattr(art.attacks.evasion, name)

        def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            classes, shape = model(x[:1]).shape[1], tuple(x.shape[1:])
            loss = nn.CrossEntropyLoss()
            wrapped = PyTorchClassifier(model, loss, shape, classes, clip_values=(0.0, 1.0), device_type="cpu")
            return torch.from_numpy(cls(wrapped, **settings(task)).generate(x.numpy(), y.numpy()))

        return run

    return maker


def _order(task: Task) -> dict[str, Any]:
    return {"norm": ORDERS[task.norm]}


def _capital(task: Task) -> str:
    return task.norm.capitalize()


# Steps and queries of both sides.
FEW, STEPS, APGD_STEPS, REFINE = 20, 40, 50, 20
NEAREST, FAB_STEPS, TARGETED_STEPS = 100, 30, 20
ROUNDS, A_ROUND = 5, 40
QUERIES, DECISIONS, MOVES, SAMPLES = 500, 1000, 15, 32
PROBES = 20


def _one_step() -> list[Pair]:
    return [Pair("fgsm", "linf", ours(lambda _: FGSM()), TORCHATTACKS, torchattacks("FGSM", lambda t: {"eps": t.eps}))]


def _iterative() -> list[Pair]:
    def sized(factor: float, steps: int, **more: Any) -> Callable[[Task], dict[str, Any]]:
        return lambda t: {"eps": t.eps, "alpha": factor * t.eps / steps, "steps": steps, **more}

    size = 2.5 / STEPS
    pgd = ours(lambda _: PGD(steps=STEPS))
    sparse = foolbox("SparseL1DescentAttack", lambda _: {"rel_stepsize": size, "steps": STEPS, "random_start": True})
    apgd = torchattacks("APGD", lambda t: {"norm": _capital(t), "eps": t.eps, "steps": APGD_STEPS, "loss": "ce"})
    apgd_t = adv_lib("apgd_targeted", lambda t: {**_order(t), "eps": t.eps, "n_iter": TARGETED_STEPS, "num_targets": 9})
    l1 = {"n_iter": APGD_STEPS, "use_large_reps": True, "loss_function": "ce"}
    return [
        Pair("bim", "linf", ours(lambda _: BIM(steps=FEW)), TORCHATTACKS, torchattacks("BIM", sized(1, FEW))),
        Pair("mifgsm", "linf", ours(lambda _: MIFGSM(steps=FEW)), TORCHATTACKS, torchattacks("MIFGSM", sized(1, FEW))),
        Pair("pgd", "linf", pgd, TORCHATTACKS, torchattacks("PGD", sized(2.5, STEPS))),
        Pair("pgd", "l2", pgd, TORCHATTACKS, torchattacks("PGDL2", sized(2.5, STEPS))),
        Pair("pgd", "l1", pgd, FOOLBOX, sparse),
        Pair("pgd", "l0", pgd),
        Pair("annealed-pgd", "linf", ours(lambda _: AnnealedPGD())),
        *(Pair("apgd-ce", norm, ours(lambda _: APGD(steps=APGD_STEPS)), TORCHATTACKS, apgd) for norm in ("linf", "l2")),
        *(
            Pair("apgd-t", n, ours(lambda _: APGD(TARGETED_STEPS, objective="dlr", targets=9)), ADV_LIB, apgd_t)
            for n in ("linf", "l2")
        ),
        Pair(
            "apgd-l1",
            "l1",
            ours(lambda _: APGDL1(steps=APGD_STEPS)),
            ADV_LIB,
            adv_lib("apgd", lambda t: {**_order(t), "eps": t.eps, **l1}),
        ),
    ]


def _transfer() -> list[Pair]:
    steps, scale = 10, 1.0

    def pair(name: str, peer: str, ours_more: dict[str, Any], theirs_more: dict[str, Any]) -> Pair:
        def settings(task: Task) -> dict[str, Any]:
            return {"eps": task.eps, "alpha": task.eps / steps, "steps": steps, "decay": 1.0, **theirs_more}

        attack = ours(lambda task: Transfer(task.surrogate, steps=steps, **ours_more))
        return Pair(name, "linf", attack, TORCHATTACKS, torchattacks(peer, settings, of_surrogate=True), scale=scale)

    plain = {"resize_rate": 0.9, "diversity_prob": 0.0}
    return [
        pair("transfer, mi", "MIFGSM", {}, {}),
        pair("transfer, di", "DIFGSM", {"diversity": Diversity()}, {}),
        pair("transfer, ti", "TIFGSM", {"kernel": TranslationKernel()}, plain),
        pair("transfer, si", "SINIFGSM", {"scales": 5}, {"m": 5}),
        pair("transfer, vmi", "VMIFGSM", {"variance": VarianceTuning(samples=5)}, {"N": 5}),
    ]


def _nearest() -> list[Pair]:
    def pair(name: str, norm: str, attack: Attack, peer: str | None = None, theirs: Maker | None = None) -> Pair:
        return Pair(name, norm, ours(lambda _: attack), peer, theirs, nearest=True)

    three = ("linf", "l2", "l1")
    steps = NEAREST - REFINE
    a_round = A_ROUND - REFINE // ROUNDS
    search = {"binary_search_steps": ROUNDS, "initial_constant": 0.1, "step_size": 0.05}
    same = {"binary_search_steps": ROUNDS, "initial_const": 0.1}
    cw = adv_lib("carlini_wagner_l2", lambda _: {**same, "max_iterations": A_ROUND, "learning_rate": 0.05})
    l1 = {"regularization": 0.01, "decision_rule": "L1", "initial_stepsize": 0.05, "steps": A_ROUND}
    grid = {"minimal": True, "eps": 1.0, "eps_step": 1.0 / PROBES, "batch_size": BATCH}
    return [
        *(
            pair("fab", n, FAB(FAB_STEPS), ADV_LIB, adv_lib("fab", lambda t: {**_order(t), "n_iter": FAB_STEPS}))
            for n in three
        ),
        *(
            pair(
                "fab-t",
                n,
                FAB(TARGETED_STEPS, targets=9),
                ADV_LIB,
                adv_lib("fab", lambda t: {**_order(t), "n_iter": TARGETED_STEPS, "targeted_restarts": True}),
            )
            for n in three
        ),
        pair("deepfool", "linf", DeepFool(), FOOLBOX, foolbox("LinfDeepFoolAttack", lambda _: {})),
        pair("deepfool", "l2", DeepFool(), FOOLBOX, foolbox("L2DeepFoolAttack", lambda _: {})),
        pair("deepfool", "l1", DeepFool()),
        pair("ddn", "l2", DDN(steps), ADV_LIB, adv_lib("ddn", lambda _: {"steps": NEAREST, "levels": None})),
        *(
            pair("fmn", norm, FMN(steps), ADV_LIB, adv_lib("fmn", lambda t: {**_order(t), "steps": NEAREST}))
            for norm in NORMS
        ),
        *(
            pair("fmn", norm, FMN(steps), FOOLBOX, foolbox(f"{name}FMNAttack", lambda _: {"steps": NEAREST}))
            for norm, name in zip(NORMS, ("LInf", "L2", "L1", "L0"), strict=True)
        ),
        pair("cw", "l2", CW(steps=a_round, **search), ADV_LIB, cw),
        pair("ead", "l1", EAD(steps=a_round, **search), FOOLBOX, foolbox("EADAttack", lambda _: {**same, **l1})),
        pair("sigma-zero", "l0", SigmaZero(steps), ADV_LIB, adv_lib("sigma_zero", lambda _: {"num_steps": NEAREST})),
        pair("ray", "linf", Ray(PROBES), ART, art("FastGradientMethod", lambda _: grid)),
    ]


def _black_box() -> list[Pair]:
    square = ours(lambda _: Square(QUERIES, schedule=QUERIES))
    peer = torchattacks("Square", lambda t: {"norm": _capital(t), "eps": t.eps, "n_queries": QUERIES})
    rate = 2.5 / MOVES

    def pixels(task: Task) -> dict[str, Any]:
        """Its populations have a member for each number that says where a pixel is and what it becomes."""
        count = max(int(task.eps) // task.channels, 1)
        return {"pixels": count, "steps": QUERIES // max(count * (2 + task.channels), 5) - 1}

    def jump(norm: str) -> Pair:
        theirs = foolbox("HopSkipJumpAttack", lambda _: {"steps": 5, "constraint": norm})
        return Pair("hopskipjump", norm, ours(lambda _: HopSkipJump(DECISIONS)), FOOLBOX, theirs, nearest=True)

    return [
        Pair("square", "linf", square, TORCHATTACKS, peer, scale=1.5),
        Pair("square", "l2", square, TORCHATTACKS, peer, scale=1.5),
        Pair("square", "l1", square, scale=1.5),
        Pair(
            "nes",
            "linf",
            ours(lambda _: NES(MOVES, SAMPLES)),
            FOOLBOX,
            lambda task: _foolbox_nes(task, MOVES, SAMPLES, 0.001),
            scale=1.5,
        ),
        Pair(
            "spsa",
            "linf",
            ours(lambda t: SPSA(MOVES, SAMPLES, learning_rate=rate * t.eps)),
            TORCHATTACKS,
            torchattacks(
                "SPSA", lambda t: {"eps": t.eps, "lr": rate * t.eps, "nb_iter": MOVES, "nb_sample": SAMPLES // 2}
            ),
            scale=1.5,
        ),
        Pair(
            "sparse-rs",
            "l0",
            ours(lambda _: SparseRS(QUERIES)),
            TORCHATTACKS,
            torchattacks("OnePixel", pixels),
            scale=1.5,
        ),
        jump("l2"),
        jump("linf"),
    ]


def _universals() -> list[Pair]:
    theirs = art(
        "UniversalPerturbation",
        lambda t: {
            "attacker": "deepfool",
            "attacker_params": {"max_iter": 10, "verbose": False},
            "delta": 0.0,
            "max_iter": 2,
            "eps": t.eps,
            "batch_size": BATCH,
            "verbose": False,
        },
    )
    return [Pair("universal", "linf", lambda task: _universal(task, epochs=10), ART, theirs, scale=1.5)]


def pairs() -> list[Pair]:
    return [*_one_step(), *_iterative(), *_transfer(), *_nearest(), *_black_box(), *_universals()]


def installed() -> tuple[dict[str, str], dict[str, str]]:
    """The peers that can be used with their versions, and the others with the reason."""
    versions, absent = {}, {}
    for pair in pairs():
        if pair.peer is None or pair.theirs is None:
            continue
        try:
            pair.theirs(Task(pair.norm, 0.1, nn.Identity()))
            versions[pair.peer] = metadata.version(pair.peer)
        except Exception as error:
            absent[pair.peer] = f"{type(error).__name__}: {error}"
    return versions, absent
