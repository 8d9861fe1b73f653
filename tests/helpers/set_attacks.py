"""The tester of :mod:`helpers.attacks` for attacks on sets of images that are no norm balls."""

from collections.abc import Callable

import torch
from torch import Tensor

from helpers.attacks import (
    assert_same,
    check_company,
    check_counts,
    check_forms,
    check_knowledge,
    check_leaks,
    examples,
    outcomes,
    predict,
)
from helpers.zoo import convnet, mlp, uniform
from holdfast.attacks import Attack, AttackResult, craft
from holdfast.threats import Threat

# A set with so large a share of its budget, one number or one an example.
Make = Callable[[float | Tensor], Threat]


def check_set_attack(attack: Attack, make: Make, *, forwards: int, backwards: int, exact: bool = True) -> None:
    """Everything that every attack promises, in a set of images of which more budgets make more.

    Parameters
    ----------
    attack : Attack
        Deterministic but for its seed; it must break some of the examples with the whole budget, and not all.
    make : callable
        The set: nothing but the clean input at 0.
    forwards, backwards : int
        What it costs an unbroken example in theory, without the clean prediction.
    exact : bool
        Whether it always costs that; else it is the most that it may cost.
    """
    model, threat = convnet(), make(1.0)
    x, y = examples(model)
    result = craft(attack, model, x, y, threat=threat)
    _check_result(result, model, x, y)
    check_forms(attack, model, threat, x, y, result)
    check_company(attack, model, threat, x[:16], y[:16])
    check_counts(attack, model, threat, x, y, forwards, backwards, exact)
    check_knowledge(attack, model, threat, x, y, result)
    check_leaks(attack, threat, uniform(9, 1, 2, 3, seed=2))
    _check_types(attack, threat, x)
    _check_shapes(attack, threat)
    _check_targets(attack, model, threat, x, y)
    _check_budgets(attack, make, x, y)


def _check_result(result: AttackResult, model: torch.nn.Module, x: Tensor, y: Tensor) -> None:
    wrong = predict(model, x) != y
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    assert result.x_adv.shape == x.shape
    assert result.x_adv.dtype == result.distance.dtype == result.objective.dtype == dtype
    for column in (result.success, result.distance, result.objective, result.forwards, result.backwards):
        assert column.shape == (len(x),)
    assert (result.success & ~wrong).sum() >= 3, "hardly an example falls: the test says nothing"
    assert (~result.success).any(), "no example stands: the test says nothing"
    assert torch.equal(predict(model, result.x_adv) != y, result.success)
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    assert ((result.distance >= 0) & (result.distance <= 1)).all()
    assert result.objective[wrong].isnan().all()
    assert torch.equal(result.x_adv[wrong], x.to(dtype)[wrong])
    assert not result.objective[~wrong].isnan().any()
    changed = (result.x_adv != x.to(dtype)).flatten(1).any(1)
    assert changed[result.success & ~wrong].all()
    assert (result.distance[changed] > 0).all()


def _check_types(attack: Attack, threat: Threat, x: Tensor) -> None:
    for model_dtype, dtype in (
        (torch.float32, torch.float64),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
    ):
        model, inputs = convnet().to(model_dtype), x.to(dtype)
        labels = predict(model, inputs)
        _check_result(craft(attack, model, inputs, labels, threat=threat), model, inputs, labels)


def _check_shapes(attack: Attack, threat: Threat) -> None:
    """Images without channels, of one row, of odd sides, and far from square."""
    for shape in ((4, 4), (1, 1, 9), (1, 5, 8), (2, 7, 3), (3, 2, 11)):
        model, x = mlp(torch.Size(shape).numel(), 4), uniform(6, *shape)
        y = predict(model, x)
        result = craft(attack, model, x, y, threat=threat)
        assert result.x_adv.shape == x.shape
        assert torch.equal(predict(model, result.x_adv) != y, result.success)


def _check_targets(attack: Attack, model: torch.nn.Module, threat: Threat, x: Tensor, y: Tensor) -> None:
    target = (y + 1) % 5
    target[3] = predict(model, x[3:4])[0]
    result = craft(attack, model, x, y, threat=threat, target=target)
    assert torch.equal(predict(model, result.x_adv) == target, result.success)
    met = predict(model, x) == target
    assert met.any()
    assert (~result.success).any()
    assert (result.success & ~met).any()
    in_order = outcomes(attack, model, threat, x, y, target=target)
    assert_same(outcomes(attack, model, threat, x, y, target=target, order=reversed(range(len(x)))), in_order)


def _check_budgets(attack: Attack, make: Make, x: Tensor, y: Tensor) -> None:
    """More budget helps the attack, none breaks nothing, and one an example is that of the example alone."""
    model = convnet()
    nothing = craft(attack, model, x, y, threat=make(0.0))
    assert torch.equal(nothing.success, predict(model, x) != y)
    assert torch.equal(nothing.x_adv, x)
    shares = (0.0, 0.3, 1.0)
    broken = [int(craft(attack, model, x, y, threat=make(share)).success.sum()) for share in shares]
    assert broken[0] < broken[-1]
    assert broken == sorted(broken)
    each = torch.tensor(shares, dtype=torch.float64)[torch.arange(len(x)) % len(shares)]
    together = outcomes(attack, model, make(each), x, y)
    for i in range(3 * len(shares)):
        assert_same(outcomes(attack, model, make(float(each[i])), x, y, order=[i]), {i: together[i]})
