"""The one tester that every training method passes through."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.attacks import NORMS, snapshot
from helpers.zoo import mlp, seeded, uniform
from holdfast.models.query import Query
from holdfast.threats import Ball
from holdfast.train import (
    AWP,
    CROWNIBP,
    FGSMRS,
    IBP,
    MART,
    MTLIBP,
    NFGSM,
    SABR,
    TRADES,
    ClassWise,
    Distillation,
    FGSMTraining,
    Free,
    Gaussian,
    GradAlign,
    GradientPenalty,
    Method,
    PGDTraining,
    SmoothAdv,
    Standard,
    Step,
    WorstOfKTraining,
)
from holdfast.train.bounds import bounded

DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}
EPS = {"linf": 0.1, "l2": 0.2, "l1": 0.4}
COUNT, CLASSES = 8, 4
INDEX = torch.tensor([5, 2, 11, 7, 0, 9, 3, 8])


@dataclass(frozen=True)
class Case:
    """A method, and what its docstring promises of a step: perturb, loss and the backward pass of the loss.

    Parameters
    ----------
    make : callable
        The method against a threat.
    forwards, backwards : int
        How often an example passes through the model, and how often a gradient reaches its logits.
    norms : tuple of str
        Of the threats that it is tested against.
    random : bool
        Whether it draws random numbers.
    admissible : bool
        Whether the inputs it perturbs to are within the threat.
    tracked : int
        How many batches batch normalisation in training mode learns from.
    shifts : bool
        Whether the weights of its losses shift as budgets are warmed up.
    """

    make: Callable[[Ball], Method]
    forwards: int
    backwards: int
    norms: tuple[str, ...] = ("linf", "l2", "l1")
    random: bool = True
    admissible: bool = True
    tracked: int = 1
    shifts: bool = False


METHODS: dict[str, Case] = {
    "awp of trades": Case(lambda threat: AWP(TRADES(threat, steps=3)), forwards=8, backwards=7, tracked=2),
    "awp": Case(lambda threat: AWP(PGDTraining(threat, steps=3)), forwards=5, backwards=5),
    "classwise": Case(
        lambda threat: ClassWise(PGDTraining(threat, steps=3)), forwards=5, backwards=4, admissible=False
    ),
    "crown-ibp": Case(
        lambda threat: CROWNIBP(threat, beta=0.5),
        forwards=1,
        backwards=1,
        norms=("linf", "l2"),
        random=False,
        shifts=True,
    ),
    "distillation": Case(lambda threat: Distillation(mlp(), temperature=5.0), forwards=1, backwards=1, random=False),
    "fgsm": Case(FGSMTraining, forwards=2, backwards=2, random=False),
    "fgsm-rs": Case(FGSMRS, forwards=2, backwards=2),
    "free": Case(Free, forwards=1, backwards=1, random=False),
    "gaussian": Case(lambda threat: Gaussian(0.2), forwards=1, backwards=1, norms=("linf",), admissible=False),
    "gradalign": Case(GradAlign, forwards=4, backwards=5, tracked=3),
    "gradient-penalty": Case(GradientPenalty, forwards=1, backwards=2, random=False),
    "ibp": Case(IBP, forwards=1, backwards=1, norms=("linf", "l2"), random=False, shifts=True),
    "mart": Case(lambda threat: MART(threat, steps=3), forwards=5, backwards=5, tracked=2),
    "mtl-ibp": Case(lambda threat: MTLIBP(threat, steps=3), forwards=4, backwards=4, norms=("linf", "l2"), shifts=True),
    "n-fgsm": Case(NFGSM, forwards=2, backwards=2, admissible=False),
    "pgd": Case(lambda threat: PGDTraining(threat, steps=3), forwards=4, backwards=4),
    "sabr": Case(lambda threat: SABR(threat, steps=3), forwards=4, backwards=4, norms=("linf", "l2"), shifts=True),
    "smoothadv": Case(lambda threat: SmoothAdv(threat, 0.2, samples=3, steps=2), forwards=9, backwards=9),
    "standard": Case(lambda threat: Standard(), forwards=1, backwards=1, random=False),
    "trades": Case(lambda threat: TRADES(threat, steps=3), forwards=6, backwards=5, tracked=2),
    "worst-of-k": Case(lambda threat: WorstOfKTraining(threat, k=4), forwards=5, backwards=1),
    "worst-of-k of one": Case(lambda threat: WorstOfKTraining(threat, k=1), forwards=1, backwards=1),
}


def network() -> nn.Sequential:
    """In training mode, but for a batch normalisation that its owner has frozen, and one frozen parameter."""
    net = seeded(
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(6, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Linear(12, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, CLASSES),
        )
    ).train()
    net[1].bias.requires_grad_(False)
    net[5].eval()
    return net


def batch() -> tuple[Tensor, Tensor]:
    return uniform(COUNT, 1, 2, 3, seed=1), torch.arange(COUNT) % CLASSES


@dataclass
class Passes:
    """Counts the examples that go through a model and the gradients that come back to its logits."""

    forwards: int = 0
    backwards: int = 0

    def watch(self, model: nn.Module) -> None:
        def seen(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
            self.forwards += len(logits)
            if logits.requires_grad:
                logits.register_hook(returned)

        def returned(grad: Tensor) -> None:
            self.backwards += len(grad)

        model.register_forward_hook(seen)


@dataclass
class Run:
    """A method at work on one network, step after step, as the training loop has it work, but that nothing is learned.

    Parameters
    ----------
    method : Method
    seed : int
    share : float
        The part of budgets that is in force.
    """

    method: Method
    seed: int = 0
    share: float = 1.0
    net: nn.Sequential = field(default_factory=network)
    memory: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.query = Query(self.net, batch_size=COUNT)
        with self.query:
            self.query.bare_logits(batch()[0])

    def step(self, number: int, rows: Tensor) -> Step:
        return Step(number, self.seed, INDEX[rows], self.share, memory=self.memory)

    def perturb(self, number: int = 0, rows: Tensor | None = None) -> Tensor:
        x, y = batch()
        rows = torch.arange(COUNT) if rows is None else rows
        with self.query:
            return self.method.perturb(self.query, x[rows], y[rows], self.step(number, rows))

    def loss(self, x_adv: Tensor, number: int = 0) -> Tensor:
        x, y = batch()
        return self.method.loss(self.net, x, x_adv.detach(), y, self.step(number, torch.arange(COUNT)))

    def both(self, number: int = 0) -> tuple[Tensor, Tensor]:
        x_adv = self.perturb(number)
        return x_adv, self.loss(x_adv, number).detach()


def perturbed(method: Method, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
    """What a method perturbs one batch to."""
    with Query(net, batch_size=len(x)) as query:
        return method.perturb(query, x, y, step)


def margins(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``(N,)`` margins of a linear model with two classes, and the weights ``(D,)`` that they have in common."""
    weight, bias = net.parameters()
    w = weight[1] - weight[0]
    return (2.0 * y - 1) * (x @ w + bias[1] - bias[0]), w


def robust_loss(net: nn.Module, x: Tensor, y: Tensor, threat: Ball) -> Tensor:
    """The mean over examples of the worst loss of such a model, without a box.

    The worst perturbation lowers every margin by the budget times the dual norm of the weights.
    """
    margin, w = margins(net, x, y)
    return functional.softplus(threat.budget(x) * torch.linalg.vector_norm(w, DUAL[threat.norm]) - margin).mean()


def check_method(case: Case, norm: str) -> None:
    """Everything that every training method promises."""
    threat = NORMS[norm](EPS[norm])
    check_step(case, threat)
    check_randomness(case, threat)
    check_budgets(case, norm)


def check_step(case: Case, threat: Ball) -> None:
    """Two steps in a row: what they ask of the model, what they find, and that they leave no trace."""
    run, passes = Run(case.make(threat)), Passes()
    x, _ = batch()
    if run.method.judged_by == "certified":
        # What bounds are taken of is found once for a network, by passes that are no part of a step.
        bounded(run.net, x, {})
    passes.watch(run.net)
    trained = [parameter for parameter in run.net.parameters() if parameter.requires_grad]
    for number in range(2):
        before = snapshot(run.net)
        x_adv = run.perturb(number)
        assert snapshot(run.net) == before
        weights = [parameter.detach().clone() for parameter in run.net.parameters()]
        assert x_adv.shape == x.shape
        assert x_adv.dtype == x.dtype
        assert torch.equal(x, batch()[0])
        assert ((x_adv >= 0) & (x_adv <= 1)).all() or not case.admissible
        assert threat.admits(x_adv, x).all() or not case.admissible
        loss = run.loss(x_adv, number)
        assert loss.shape == ()
        assert loss.isfinite()
        after = snapshot(run.net)
        for unchanged in ("required", "grads", "training", "hooks", "random"):
            assert after[unchanged] == before[unchanged], unchanged
        assert all(map(torch.equal, run.net.parameters(), weights))
        torch.autograd.backward(loss)
        # The bias in front of batch normalisation does nothing, but that one is frozen: all others learn.
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in trained)
        assert run.net[1].bias.grad is None
        for parameter in trained:
            parameter.grad = None
        assert run.net[2].num_batches_tracked == (number + 1) * case.tracked
        assert run.net[5].num_batches_tracked == 0
        assert (passes.forwards, passes.backwards) == (
            (number + 1) * COUNT * case.forwards,
            (number + 1) * COUNT * case.backwards,
        )


def check_randomness(case: Case, threat: Ball) -> None:
    """Random numbers depend on the seed, the example and the step, and on nothing else."""

    def find(seed: int = 0, number: int = 0) -> tuple[Tensor, Tensor]:
        return Run(case.make(threat), seed).both(number)

    first = find()
    torch.rand(3)
    assert all(map(torch.equal, find(), first))
    for other in (find(seed=1), find(number=1)):
        assert all(map(torch.equal, other, first)) != case.random
    for rows in (torch.tensor([6]), torch.tensor([7, 1, 4])):
        assert torch.equal(Run(case.make(threat)).perturb(rows=rows), first[0][rows])


def check_budgets(case: Case, norm: str) -> None:
    """Each example has its own budget, none at all included, and warming up means a smaller one."""
    make, eps = NORMS[norm], EPS[norm]
    each = torch.arange(12, dtype=torch.float64) / 6 * eps
    together = Run(case.make(make(each))).both()
    assert together[1].isfinite()
    for row in (0, 2, 4):  # the last has no budget
        alone = Run(case.make(make(float(each[INDEX[row]])))).perturb(rows=torch.tensor([row]))
        assert torch.equal(together[0][[row]], alone)
    half, less = Run(case.make(make(eps)), share=0.5).both(), Run(case.make(make(eps / 2))).both()
    assert torch.equal(half[0], less[0])
    assert torch.equal(half[1], less[1]) != case.shifts
