"""The one tester that every attack passes through."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from helpers.zoo import Counting, Moody, Wrapped, convnet, mlp, uniform
from holdfast.attacks import Attack, AttackResult, Outcome, Stage, craft, drive
from holdfast.data import Batch
from holdfast.errors import ModelError
from holdfast.models.query import Query
from holdfast.threats import L0, L1, L2, Ball, Linf, Threat

NORMS: dict[str, Callable[..., Ball]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}
# Budgets at which the attacks break some of `examples` and not others.
EPS = {"linf": 0.01, "l2": 0.1, "l1": 0.4, "l0": 1.0}
MOODY_EPS = {"linf": 0.1, "l2": 0.1, "l1": 0.2, "l0": 1.0}

Order = Iterable[int]


def examples(model: nn.Module, count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of 3 x 6 x 6 with the model's own labels, but for two that are wrong."""
    x = uniform(count, 3, 6, 6, seed=seed)
    y = predict(model, x)
    y[3], y[11] = (y[3] + 1) % 5, (y[11] + 2) % 5
    return x, y


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The plain model's classes, an example at a time: no part of holdfast is asked."""
    model = copy.deepcopy(model).eval()
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        return torch.cat([model(row.contiguous().to(dtype)) for row in x.split(1)]).argmax(1)


def lengths(norm: str, d: Tensor) -> Tensor:
    """Norms of the rows, written out again."""
    flat = d.double().flatten(1).abs()
    if norm == "l0":
        return (flat > 0).double().sum(1)
    return {"linf": flat.amax(1), "l2": flat.square().sum(1).sqrt(), "l1": flat.sum(1)}[norm]


def outcomes(
    attack: Attack | Sequence[Attack],
    model: nn.Module,
    threat: Threat,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int = 7,
    order: Order | None = None,
    source: int = 5,
    seed: int = 0,
    max_forwards: int | None = None,
    target: Tensor | None = None,
) -> dict[int, Outcome]:
    """Outcomes by index of the examples ``order``, read ``source`` at a time."""
    attacks = attack if isinstance(attack, Sequence) else [attack]
    stages = [Stage(f"{number}", attack) for number, attack in enumerate(attacks)]
    index = torch.arange(len(x)) if order is None else torch.tensor(list(order))
    batches = [Batch(part, x[part], y[part]) for part in index.split(source)]
    with Query(model, batch_size=batch_size, seed=seed) as query:
        steps = drive(query, threat, stages, batches, seed=seed, max_forwards=max_forwards, target=target)
        found = [outcome for some in steps for outcome in some]
    assert sorted(outcome.index for outcome in found) == sorted(index.tolist())
    return {outcome.index: outcome for outcome in found}


def assert_same(got: dict[int, Outcome], expected: dict[int, Outcome]) -> None:
    """Every outcome of ``got`` is bit for bit the expected one."""
    for index, outcome in got.items():
        other = expected[index]
        for field in ("label", "clean_prediction", "verdict", "stage", "distance", "forwards", "backwards",
                      "clean_wrong", "attacked_wrong"):  # fmt: skip
            assert getattr(outcome, field) == getattr(other, field), (index, field)
        assert outcome.objective == other.objective or other.objective != other.objective, index
        assert torch.equal(outcome.x_adv, other.x_adv), index


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything of a model and of torch's random state that an attack must leave alone."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "values": [(name, id(t), t.detach().double().nan_to_num(-7.0).tolist()) for name, t in tensors],
        "required": [(name, p.requires_grad, id(p.grad), p._backward_hooks) for name, p in model.named_parameters()],
        "grads": [p.grad.tolist() for p in model.parameters() if p.grad is not None],
        "training": [module.training for module in model.modules()],
        "hooks": [[list(getattr(module, hook)) for hook in hooks] for module in model.modules()],
        "random": torch.get_rng_state().tolist(),
    }


def check_attack(attack: Attack, norm: str, *, forwards: int, backwards: int, exact: bool = True) -> None:
    """Everything that every attack promises.

    Parameters
    ----------
    attack : Attack
        Deterministic but for its seed; it must break some of the examples at the budget ``EPS[norm]``.
    norm : str
        Under which it is tested.
    forwards, backwards : int
        What it costs an unbroken example in theory, without the clean prediction.
    exact : bool
        Whether it always costs that; else it is the most that it may cost.
    """
    model = convnet()
    x, y = examples(model)
    threat = NORMS[norm](EPS[norm])
    result = craft(attack, model, x, y, threat=threat)
    check_result(result, model, x, y, norm, moves=not attack.minimum_norm)
    check_forms(attack, model, threat, x, y, result)
    check_types(attack, norm, x, y)
    check_targets(attack, model, norm, x, y)
    check_company(attack, model, threat, x[:16], y[:16])
    check_budgets(attack, model, norm, x, y)
    check_counts(attack, model, threat, x, y, forwards, backwards, exact)
    check_leaks(attack, NORMS[norm](MOODY_EPS[norm]), uniform(9, 6, seed=2))
    check_shapes(attack, norm)
    check_knowledge(attack, model, threat, x, y, result)
    if attack.minimum_norm:
        check_nearest(attack, model, norm, x, y)


def check_result(
    result: AttackResult,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str,
    eps: float | None = None,
    *,
    moves: bool = True,
) -> None:
    """Shapes, and verdicts that hold by forward passes and norms written independently.

    ``moves``: whether something inside the budget is tried at every example, broken or not.
    """
    eps = EPS[norm] if eps is None else eps
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    wrong = predict(model, x) != y
    assert result.x_adv.shape == x.shape
    assert result.x_adv.dtype == result.distance.dtype == result.objective.dtype == dtype
    assert result.x_adv.is_contiguous()
    for column in (result.success, result.distance, result.objective, result.forwards, result.backwards):
        assert column.shape == (len(x),)
    assert result.success.dtype == torch.bool
    assert result.to_dict()["success"] == result.success.tolist()
    # Not every example falls and not every one stands, or the checks below would say nothing.
    assert wrong.sum() == 2
    assert (result.success & ~wrong).sum() >= 3
    assert (~result.success).any()
    # The verdict is the plain model's, for what succeeded and for what did not.
    assert torch.equal(predict(model, result.x_adv) != y, result.success)
    moved = result.x_adv.double() - x.to(dtype).double()
    assert (lengths(norm, moved) <= eps + 1e-6).all()
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    torch.testing.assert_close(result.distance.double(), lengths(norm, moved), rtol=1e-5, atol=1e-7)
    assert result.objective[wrong].isnan().all()
    assert (moved[wrong] == 0).all()
    searched = ~wrong & (result.success | moves)
    assert not result.objective[searched].isnan().any()
    assert (lengths(norm, moved)[searched] > 0).all()


def check_forms(attack: Attack, model: nn.Module, threat: Threat, x: Tensor, y: Tensor, expected: AttackResult) -> None:
    """The same inputs in other layouts, twice, or none at all."""
    forms = {
        "again": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "strided": x.repeat_interleave(2, 3)[..., ::2],
        "expanded": torch.cat([x[None], x[None]])[1],
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
    }
    for name, form in forms.items():
        before = form.clone()
        result = craft(attack, model, form, y, threat=threat)
        assert torch.equal(form, before), name
        for field in ("x_adv", "success", "distance", "forwards", "backwards"):
            assert torch.equal(getattr(result, field), getattr(expected, field)), (name, field)
    empty = craft(attack, model, x[:0], y[:0], threat=threat)
    assert empty.x_adv.shape == (0, 3, 6, 6)
    assert empty.success.shape == empty.distance.shape == empty.forwards.shape == (0,)
    with torch.no_grad():
        alone = craft(attack, model, x[:1], y[:1], threat=threat)
    assert alone.x_adv.shape == (1, 3, 6, 6)
    assert alone.success.tolist() == expected.success[:1].tolist()
    other = craft(attack, model, x, y, threat=threat, seed=1)
    assert abs(int(other.success.sum()) - int(expected.success.sum())) <= 3


def check_types(attack: Attack, norm: str, x: Tensor, y: Tensor) -> None:
    """Inputs of every floating type against models of every floating type."""
    for model_dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = convnet().to(model_dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            if model_dtype == torch.bfloat16 and dtype != torch.float32:
                continue
            inputs = x.to(dtype)
            labels = predict(model, inputs)
            labels[3], labels[11] = (labels[3] + 1) % 5, (labels[11] + 2) % 5
            result = craft(attack, model, inputs, labels, threat=NORMS[norm](EPS[norm]))
            check_result(result, model, inputs, labels, norm, moves=not attack.minimum_norm)


def check_targets(attack: Attack, model: nn.Module, norm: str, x: Tensor, y: Tensor) -> None:
    """With a target, success is that class and nothing less."""
    target = (y + 1) % 5
    target[3], threat = predict(model, x[3:4])[0], NORMS[norm](2 * EPS[norm])
    result = craft(attack, model, x, y, threat=threat, target=target)
    assert torch.equal(predict(model, result.x_adv) == target, result.success)
    assert (lengths(norm, result.x_adv - x) <= 2 * EPS[norm] + 1e-6).all()
    met = predict(model, x) == target
    assert met.any()
    assert (~result.success).any()
    assert (result.success & ~met).any()
    # A target belongs to its example, wherever that stands.
    in_order = outcomes(attack, model, threat, x, y, target=target)
    assert_same(outcomes(attack, model, threat, x, y, target=target, order=reversed(range(len(x)))), in_order)
    assert [in_order[i].verdict != "robust" for i in range(len(x))] == result.success.tolist()
    # Steering helps: more examples reach the target than with the attack that only leads away from the label.
    untargeted = craft(attack, model, x, y, threat=threat)
    assert result.success.sum() >= (predict(model, untargeted.x_adv) == target).sum()


def check_company(attack: Attack, model: nn.Module, threat: Threat, x: Tensor, y: Tensor) -> None:
    """A row's result does not depend on who is beside it, on the order, or on how the data are read."""

    def run(**settings: object) -> dict[int, Outcome]:
        return outcomes(attack, model, threat, x, y, **settings)

    expected = run()
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).tolist()
    assert_same(run(order=shuffled), expected)
    for part in (range(1), range(1, 4), range(4, 13), reversed(range(13, len(x)))):
        assert_same(run(order=part), expected)
    for source in (1, len(x)):
        assert_same(run(source=source), expected)
    for batch_size in (1, 64):
        verdicts = run(batch_size=batch_size)
        assert {i: o.verdict for i, o in verdicts.items()} == {i: o.verdict for i, o in expected.items()}


def check_budgets(attack: Attack, model: nn.Module, norm: str, x: Tensor, y: Tensor) -> None:
    """More budget never helps the defender; none breaks nothing; one an example is that of the example alone."""
    make = NORMS[norm]
    nothing = craft(attack, model, x, y, threat=make(0.0))
    assert torch.equal(nothing.success, predict(model, x) != y)
    assert torch.equal(nothing.x_adv, x)
    factors = (0.0, 1.0, 2.0, 4.0)
    broken = [int(craft(attack, model, x, y, threat=make(f * EPS[norm])).success.sum()) for f in factors]
    assert broken == sorted(broken)
    assert broken[0] == 2
    assert broken[-1] > broken[1] > 2
    eps = torch.tensor(factors, dtype=torch.float64)[torch.arange(len(x)) % len(factors)] * EPS[norm]
    together = outcomes(attack, model, make(eps), x, y)
    for i in range(3 * len(factors)):
        assert_same(outcomes(attack, model, make(float(eps[i])), x, y, order=[i]), {i: together[i]})


def check_counts(
    attack: Attack,
    model: nn.Module,
    threat: Threat,
    x: Tensor,
    y: Tensor,
    forwards: int,
    backwards: int,
    exact: bool,
) -> None:
    """What is counted is what the theory says and what the model saw."""
    counting = Counting(model)
    result = craft(attack, counting, x, y, threat=threat, batch_size=1)
    assert (counting.forwards, counting.backwards) == (int(result.forwards.sum()), int(result.backwards.sum()))
    wrong = predict(model, x) != y
    assert (result.forwards[wrong] == 1).all()
    assert (result.backwards[wrong] == 0).all()
    assert (result.forwards[~result.success] <= 1 + forwards).all()
    assert (result.backwards[~result.success] <= backwards).all()
    if exact:
        assert (result.forwards[~result.success] == 1 + forwards).all()
        assert (result.backwards[~result.success] == backwards).all()
    broken = result.success & ~wrong
    assert ((result.forwards[broken] >= 3) & (result.forwards[broken] <= forwards + 2)).all()
    least = 1 if attack.knowledge == "gradient" else 0
    assert ((result.backwards[broken] >= least) & (result.backwards[broken] <= backwards)).all()
    # A budget of queries holds for every example; the clean prediction and the verification are the auditor's.
    for budget in (0, 1, 4, forwards - 1):
        spent = outcomes(attack, model, threat, x[:12], y[:12], max_forwards=budget).values()
        assert max(outcome.forwards for outcome in spent) <= 1 + budget + 1
        assert all(outcome.forwards <= 1 + budget for outcome in spent if outcome.verdict == "undecided")
    with Query(model, batch_size=7) as query:
        stages, batches = [Stage("a", attack)], [Batch(torch.arange(len(x)), x, y)]
        spent = [outcome for some in drive(query, threat, stages, batches) for outcome in some]
        assert query.forwards == sum(outcome.forwards for outcome in spent)
        # A batch is passed back whole; a row that only looks at its last iterate shares the pass without counting it.
        assert query.backwards >= sum(outcome.backwards for outcome in spent)


def check_leaks(attack: Attack, threat: Threat, x: Tensor) -> None:
    """The model, its buffers and modes and the global random state are given back whatever happens.

    ``x``: ``(9, ...)`` with 6 features each.
    """

    def labelled(model: nn.Module) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            return predict(model, x)

    model = Moody()
    y = labelled(model)
    torch.manual_seed(5)
    before = snapshot(model)
    first = craft(attack, model, x, y, threat=threat)
    assert snapshot(model) == before
    torch.rand(3)
    assert torch.equal(craft(attack, model, x, y, threat=threat).x_adv, first.x_adv)
    for error, raised in ((RuntimeError, ModelError), (KeyboardInterrupt, KeyboardInterrupt)):
        model = Moody(fail_at=2, error=error)
        before = snapshot(model)
        with pytest.raises(raised):
            craft(attack, model, x, y, threat=threat)
        assert snapshot(model) == before
    model = Moody()
    before = snapshot(model)
    with ExitStack() as stack:
        query = stack.enter_context(Query(model, batch_size=2))
        steps = drive(query, threat, [Stage("a", attack)], [Batch(torch.arange(9), x, y)])
        next(steps)
        next(steps)
        assert query.forwards > 9
        assert snapshot(model) != before
        steps.close()
    assert snapshot(model) == before


def check_shapes(attack: Attack, norm: str) -> None:
    """Flat feature vectors, and images of one row, of odd sides, and far from square, in both precisions."""
    for shape in ((10,), (1, 1, 9), (1, 5, 8), (2, 7, 3), (3, 2, 11)):
        for dtype in (torch.float32, torch.float64):
            features = torch.Size(shape).numel()
            model = mlp(features, 4).to(dtype)
            x = uniform(6, *shape, dtype=dtype)
            y = predict(model, x)
            result = craft(attack, model, x, y, threat=NORMS[norm](4 * EPS[norm]))
            assert result.x_adv.shape == x.shape
            assert torch.equal(predict(model, result.x_adv) != y, result.success)
            assert (lengths(norm, result.x_adv - x) <= 4 * EPS[norm] + 1e-6).all()
            assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()


def check_knowledge(
    attack: Attack, model: nn.Module, threat: Threat, x: Tensor, y: Tensor, expected: AttackResult
) -> None:
    """An attack uses no more than it says: without gradients, or from classes alone, it finds the very same."""
    if attack.knowledge == "gradient":
        assert expected.backwards.any()
        return
    assert not expected.backwards.any()
    blind = craft(attack, Wrapped(model, lambda logits: logits.detach()), x, y, threat=threat)
    assert torch.equal(blind.x_adv, expected.x_adv)
    assert torch.equal(blind.forwards, expected.forwards)
    if attack.knowledge == "decision":
        deciding = Wrapped(model, lambda logits: 3 * one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype) - 1)
        told = craft(attack, deciding, x, y, threat=threat)
        assert torch.equal(told.success, expected.success)
        assert torch.equal(told.x_adv[told.success], expected.x_adv[told.success])
        assert torch.equal(told.forwards, expected.forwards)


def check_nearest(attack: Attack, model: nn.Module, norm: str, x: Tensor, y: Tensor) -> None:
    """Without a budget the nearest adversarial input is kept, at about the distance at which budgets begin to fail."""
    make = NORMS[norm]
    free = craft(attack, model, x, y, threat=make("inf"))
    wrong = predict(model, x) != y
    assert torch.equal(predict(model, free.x_adv) != y, free.success)
    assert free.success.float().mean() > 0.7
    assert ((free.x_adv >= 0) & (free.x_adv <= 1)).all()
    torch.testing.assert_close(free.distance.double(), lengths(norm, free.x_adv - x), rtol=1e-5, atol=1e-7)
    assert (free.distance[wrong] == 0).all()
    middle = float(free.distance[free.success & ~wrong].median())
    eps = math.ceil(middle) if norm == "l0" else 1.001 * middle
    bound = craft(attack, model, x, y, threat=make(eps))
    assert abs(int(bound.success.sum()) - int((free.success & (free.distance <= eps)).sum())) <= 3
    together = outcomes(attack, model, make("inf"), x, y)
    assert_same(outcomes(attack, model, make("inf"), x, y, order=[5]), {5: together[5]})


def check_superset(weaker: Attack, stronger: Attack, norm: str, factor: float = 1.0) -> None:
    """Whatever the weaker attack breaks, one that makes the same runs and others breaks, at no less cost."""
    model = convnet()
    x, y = examples(model)
    few, many = (craft(attack, model, x, y, threat=NORMS[norm](factor * EPS[norm])) for attack in (weaker, stronger))
    assert (few.success <= many.success).all()
    assert (many.objective >= few.objective)[~many.success].all()
    assert (many.forwards >= few.forwards)[~many.success].all()
    assert torch.equal(many.x_adv[few.success], few.x_adv[few.success])
