"""Named cascades of attacks for norm balls."""

from collections.abc import Callable, Mapping

from holdfast.attacks import (
    APGD,
    APGDL1,
    FAB,
    FGSM,
    FMN,
    PGD,
    AnnealedPGD,
    ContractingPGD,
    HopSkipJump,
    ShrinkingBall,
    SigmaZero,
    SparseRS,
    Square,
)
from holdfast.audit.protocols.protocol import EvaluationProtocol, cascade, endless
from holdfast.engine import Attack, Stage
from holdfast.errors import SettingError
from holdfast.threats import Ball, Threat

__all__ = ["PROTOCOLS"]


def _norm(threat: Threat) -> str:
    assert isinstance(threat, Ball)
    return threat.norm


def quick(threat: Threat) -> EvaluationProtocol:
    """A short cascade for a first look: 210 forwards and 201 backwards for an example that it cannot break.

    L-infinity and L2: FGSM; PGD with 20 steps from two starts; APGD on cross-entropy with 50 steps from two starts;
    APGD on targeted DLR with 20 steps towards each of the 3 nearest classes. L1 and L0: FGSM; PGD with 40 steps on
    cross-entropy; PGD with 40 steps from two starts on the margin.
    """
    caveat = (
        "quick is a short cascade of gradient attacks: its robust accuracy is an upper bound for a first look, and "
        "longer attacks can lower it"
    )
    if _norm(threat) in ("l1", "l0"):
        attacks: dict[str, Attack] = {
            "fgsm": FGSM(),
            "pgd": PGD(steps=40),
            "pgd-margin": PGD(steps=40, restarts=2, objective="margin"),
        }
    else:
        attacks = {
            "fgsm": FGSM(),
            "pgd": PGD(steps=20, restarts=2),
            "apgd-ce": APGD(steps=50, restarts=2),
            "apgd-t": APGD(steps=20, objective="dlr", targets=3),
        }
    return cascade("quick", attacks, caveat)


def standard(threat: Threat) -> EvaluationProtocol:
    """AutoAttack's version ``standard``: what the field calls robust accuracy.

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    ICML 2020, arXiv:2003.01690, section 5, with the budgets, the order and the numbers of targets of the authors'
    code: APGD on cross-entropy, 100 steps; APGD on targeted DLR, 100 steps towards each of 9 classes; targeted FAB,
    100 steps towards each of 9 classes; Square, 5,000 queries. In L1 APGD is that of Croce and Hein, "Mind the box",
    ICML 2021, arXiv:2103.01208, from 5 starts and towards 5 classes. A model of K classes has K - 1 targets at most.

    There is none for L0; the cascade of that name is PGD on the margin, sigma-zero and Sparse-RS.
    """
    caveat = "standard is the published AutoAttack: strong, and still an upper bound"
    norm = _norm(threat)
    attacks: dict[str, Attack]
    if norm == "l0":
        caveat = "AutoAttack has no version for L0: this standard is PGD, sigma-zero and Sparse-RS"
        attacks = {
            "pgd": PGD(steps=100, restarts=5, objective="margin"),
            "sigma-zero": SigmaZero(),
            "sparse-rs": SparseRS(queries=5000),
        }
    else:
        if norm == "l1":
            attacks = {"apgd-ce": APGDL1(restarts=5), "apgd-t": APGDL1(objective="dlr", targets=5)}
        else:
            attacks = {"apgd-ce": APGD(), "apgd-t": APGD(objective="dlr", targets=9)}
        attacks |= {"fab-t": FAB(targets=9), "square": Square(queries=5000)}
    return cascade("standard", attacks, caveat)


def rand(threat: Threat) -> EvaluationProtocol:
    """AutoAttack's version ``rand``, for models with noise of their own, in L-infinity and L2.

    APGD on cross-entropy, then on DLR, 100 steps each with gradients averaged over 20 passes. An example counts as
    broken where most of 20 fresh passes are wrong; the authors' code judges by a single one.
    """
    caveat = "rand averages 20 passes a look; an example is broken where most of 20 fresh passes are wrong"
    return cascade("rand", {"apgd-ce": APGD(), "apgd-dlr": APGD(objective="dlr")}, caveat, samples=20)


# Below which share of the clean margin an example is worth which round of a walk. Found on the networks of the
# benchmarks, on images that no result is reported on: hardly an example that falls later was above them at the time.
_FIRST_WALK = (0.5, 0.3, 0.3, 0.3, 0.2, 0.2, 0.15)
_SECOND_WALK = (0.12,) * 4 + (0.08,) * 4 + (0.06,) * 4 + (0.05,) * 4 + (0.04,) * 4 + (0.03,) * 4 + (0.015,) * 6
# In L2, after what comes in from outside: few examples are near enough by then.
_SHORT_WALK = (0.1, 0.1, 0.08, 0.08, 0.05, 0.05)


def fast(threat: Threat) -> EvaluationProtocol:
    """What ``standard`` finds, for a twenty-fifth of its passes: short gradient runs, and effort where margins are low.

    Every example gets ten looks from the clean input, two times ten from random starts, and ten towards each of three
    classes, by :class:`~holdfast.attacks.AnnealedPGD`. Then those whose margin has come down to a share of the clean
    one are walked: rounds of 50 random windows (:class:`~holdfast.attacks.Square`), each polished by ten looks of
    gradient ascent from the best point, from which the walk goes on. The share that earns another round falls with
    the rounds. An example's verdict depends on its own margins and on nobody else's.

    In L2 and L1 gradients mislead inside the ball where a network was not trained for that norm, and less so on the way
    in from outside: after the first looks :class:`~holdfast.attacks.ContractingPGD` comes in from 40 budgets. Then in
    L2 targeted FAB takes 48 steps towards each of two classes, and a short walk ends it; in L1 it comes in again from
    20 budgets, towards each of two classes. Both cost about a fifteenth of ``standard`` for an example that stands. In
    L0 it is PGD and a short Sparse-RS.
    """
    norm = _norm(threat)
    polish = AnnealedPGD(steps=9, step_size=1.0, start="best")
    towards = Stage("pgd-t", AnnealedPGD(steps=9, targets=3))
    first, second = Square(queries=500, rounds=10, schedule=1667), Square(queries=1500, rounds=30, schedule=3333)
    if norm == "l0":
        stages: tuple[Stage, ...] = (
            Stage("pgd", PGD(steps=20, restarts=3, objective="margin")),
            Stage("sparse-rs", SparseRS(queries=300)),
        )
    elif norm == "l1":
        inwards = ContractingPGD(radius=20.0, objective="margin", targets=2)
        stages = (Stage("pgd", AnnealedPGD(steps=9)), Stage("wide", ContractingPGD()), Stage("wide-t", inwards))
    elif norm == "l2":
        wide = Stage("wide", ContractingPGD(step_size=4.0))
        back = Stage("fab-t", FAB(steps=48, targets=2, eta=1.3))
        short = Stage("walk", Square(queries=300, rounds=6, schedule=1667), polish, _SHORT_WALK)
        stages = (Stage("pgd", AnnealedPGD(steps=9)), towards, wide, back, short)
    else:
        walks = (Stage("walk", first, polish, _FIRST_WALK), Stage("walk-2", second, polish, _SECOND_WALK))
        stages = (Stage("pgd", AnnealedPGD(steps=9, restarts=3)), towards, *walks)
    where = "margins are low" if norm == "linf" else "it usually pays"
    caveat = (
        f"fast spends its effort where {where}: a defence that misleads it could look more robust than it is; confirm "
        "with standard what matters"
    )
    return EvaluationProtocol("fast", stages, caveat)


def blackbox(threat: Threat) -> EvaluationProtocol:
    """Attacks that see no gradient: Square (Sparse-RS in L0), then HopSkipJump from classes alone; 5,000 queries each.

    In L1 and L0 there is no HopSkipJump; under an infinite budget there is nothing else.

    Raises
    ------
    SettingError
        When no such attack looks for the nearest input in the threat's norm.
    """
    caveat = "blackbox knows no gradient: an attacker who has the model can do more"
    norm = _norm(threat)
    attacks: dict[str, Attack] = {"sparse-rs": SparseRS()} if norm == "l0" else {"square": Square()}
    if norm in ("linf", "l2"):
        attacks["hopskipjump"] = HopSkipJump()
    if endless(threat):
        attacks = {name: attack for name, attack in attacks.items() if attack.minimum_norm}
        if not attacks:
            raise SettingError(f"blackbox: no attack without gradients looks for the nearest input in {norm}")
    return cascade("blackbox", attacks, caveat)


def nearest(threat: Threat) -> EvaluationProtocol:
    """Minimum-norm attacks, for the whole security curve from one run under an infinite budget.

    In L-infinity, L2 and L1: FMN; targeted FAB with 30 steps towards each of 9 classes; the shrinking ball, which
    searches from random starts for what is nearer still, first widely with short runs and then closely with long ones.
    In L0: FMN and sigma-zero.
    """
    caveat = "distances are those of the nearest inputs found: upper bounds of the distance to the boundary"
    attacks: dict[str, Attack]
    if _norm(threat) == "l0":
        attacks = {"fmn": FMN(steps=200), "sigma-zero": SigmaZero(steps=300)}
    else:
        attacks = {
            "fmn": FMN(),
            "fab-t": FAB(targets=9, steps=30),
            "shrinking-ball": ShrinkingBall(),
            "shrinking-ball-2": ShrinkingBall(steps=50, runs=18, gap=0.05),
        }
    return cascade("nearest", attacks, caveat)


PROTOCOLS: Mapping[str, Callable[[Threat], EvaluationProtocol]] = {
    "quick": quick,
    "fast": fast,
    "standard": standard,
    "rand": rand,
    "blackbox": blackbox,
    "nearest": nearest,
}
