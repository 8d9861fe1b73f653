"""Solvers against what is known of quadratic games, and the formulas against measured steps."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.zoo import uniform
from holdfast.errors import ModelError, SettingError
from holdfast.games import (
    AlternatingBestResponse,
    AlternatingGradient,
    Consensus,
    Descent,
    Extragradient,
    Game,
    OptimisticGradient,
    Quadratic,
    SimultaneousBestResponse,
    SimultaneousGradient,
    State,
    assign,
    call,
    minimax,
    radius,
    search_lr,
    strategy_of,
    trajectory,
    transition,
    verdict,
)

GRADIENT = (
    SimultaneousGradient,
    AlternatingGradient,
    Extragradient,
    OptimisticGradient,
    partial(Consensus, weight=0.7),
)
RESPONSES = (SimultaneousBestResponse(), AlternatingBestResponse())
BILINEAR = Quadratic()
GRID = [Quadratic(a, b) for a in (0.0, 0.3, 1.0, 4.0) for b in (0.0, 0.5, 2.0)] + [
    Quadratic(-0.5, 1.5),  # the first player's loss is concave, and the second holds it
    Quadratic(-1.0, 0.2),
    Quadratic(3.0, -0.2),
]


def lengths(solver, game, steps, start=(0.6, -0.8)):
    first, second = ((torch.tensor([value], dtype=torch.float64),) for value in start)
    states = trajectory(solver, game.game, first, second, steps)
    return np.array([math.hypot(state.first[0].item(), state.second[0].item()) for state in states])


def settings():
    for game in GRID:
        for make in GRADIENT:
            yield from ((make(lr), game) for lr in (0.05, 0.4, 0.9, 2.0))
        if game.a > 0 and game.b > 0:
            yield from ((solver, game) for solver in RESPONSES)


@pytest.mark.parametrize("lr", [0.01, 0.3, 1.5])
def test_simultaneous_gradients_grow_by_the_same_factor_every_step(lr):
    found = lengths(SimultaneousGradient(lr), BILINEAR, 20)
    np.testing.assert_allclose(found[1:] / found[:-1], math.sqrt(1 + lr**2), rtol=1e-12)


@pytest.mark.parametrize("lr", [0.01, 0.3, 1.5])
def test_extragradient_multiplies_the_squared_norm_by_the_known_factor(lr):
    found = lengths(Extragradient(lr), BILINEAR, 20)
    np.testing.assert_allclose((found[1:] / found[:-1]) ** 2, (1 - lr**2) ** 2 + lr**2, rtol=1e-12)


def test_what_the_first_steps_of_each_are():
    # theta delta at (1, 1), where the gradients of the two losses are 1 and -1.
    one, game = (torch.ones(1, dtype=torch.float64),), BILINEAR.game
    expected = {
        SimultaneousGradient(0.1): (0.9, 1.1),
        AlternatingGradient(0.1): (0.9, 1.09),
        Extragradient(0.1): (1 - 0.1 * 1.1, 1 + 0.1 * 0.9),
        OptimisticGradient(0.1): (1 - 0.1 * 2, 1 + 0.1 * 2),
        Consensus(0.1, weight=2.0): (1 - 0.1 * 3, 1 + 0.1 * -1),
    }
    for solver, point in expected.items():
        state = solver.step(game, solver.init(one, one))
        assert (state.first[0].item(), state.second[0].item()) == pytest.approx(point), solver


def test_best_responses_are_those_of_the_formula():
    first, second, game = (torch.tensor([3.0]),), (torch.tensor([5.0]),), Quadratic(2.0, 4.0)
    state = SimultaneousBestResponse().step(game.game, State(first, second))
    assert (state.first[0].item(), state.second[0].item()) == pytest.approx((-5 / 2, 3 / 4))
    state = AlternatingBestResponse().step(game.game, State(first, second))
    assert (state.first[0].item(), state.second[0].item()) == pytest.approx((-5 / 2, -5 / 8))
    near = AlternatingBestResponse(Descent(0.2, 200)).step(game.game, State(first, second))
    torch.testing.assert_close((near.first, near.second), (state.first, state.second))


def test_a_player_without_a_best_response_is_told():
    one = (torch.ones(1),)
    for solver in RESPONSES:
        with pytest.raises(SettingError, match="no best response"):
            solver.step(Quadratic(0.0, 1.0).game, State(one, one))
        with pytest.raises(SettingError, match="a, b > 0"):
            solver.spectrum(Quadratic(1.0, 0.0))


def test_spectra_are_those_of_measured_steps():
    for solver, game in settings():
        formula, measured = solver.spectrum(game), list(np.linalg.eigvals(transition(solver, game)))
        for value in formula:
            nearest = min(measured, key=lambda other: abs(other - value))
            # A double eigenvalue is known to half the digits.
            assert abs(nearest - value) < 1e-6, (solver, game)
            measured.remove(nearest)
        assert all(abs(value) < 1e-6 for value in measured), (solver, game)


def simulated(solver, games, steps=120):
    """What becomes of each game, all of them played at once."""
    a, b = (torch.tensor([getattr(game, name) for game in games], dtype=torch.float64) for name in "ab")
    game = minimax(lambda x, y: (x[0] * y[0] + a / 2 * x[0] ** 2 - b / 2 * y[0] ** 2).sum())
    states = trajectory(solver, game, (torch.full_like(a, 0.6),), (torch.full_like(b, -0.8),), steps)
    found = torch.stack([torch.hypot(state.first[0], state.second[0]) for state in states])
    grown = found[steps // 2 :].amax(0) / found[: steps // 2].amax(0)
    return ["converges" if g < 0.5 else "diverges" if g > 1.5 else "cycles" for g in grown]


def test_verdicts_are_those_of_a_simulation():
    seen = set()
    for solver in {solver: None for solver, _ in settings()}:
        games = [game for each, game in settings() if each == solver]
        for game, found in zip(games, simulated(solver, games), strict=True):
            factor, now = radius(solver, game), verdict(solver, game)
            slow = 1e-9 < abs(factor - 1) < 0.03  # too slow to tell in so many steps
            assert slow or found == now, (solver, game)
            seen.add(now)
    assert seen == {"converges", "cycles", "diverges"}


def test_a_defective_step_on_the_circle_diverges_slowly():
    found = lengths(AlternatingGradient(2.0), BILINEAR, 100)
    assert radius(AlternatingGradient(2.0), BILINEAR) == pytest.approx(1)
    assert verdict(AlternatingGradient(2.0), BILINEAR) == "diverges"
    assert found[100] / found[50] == pytest.approx(2, rel=0.05)
    assert verdict(AlternatingGradient(1.9), BILINEAR) == "cycles"


@pytest.mark.parametrize(("product", "expected"), [(0.81, "diverges"), (1.0, "cycles"), (1.21, "converges")])
def test_best_responses_turn_at_a_product_of_one(product, expected):
    for solver in RESPONSES:
        assert verdict(solver, Quadratic(2.0, product / 2)) == expected


@pytest.mark.parametrize("make", GRADIENT)
def test_the_largest_step_size_is_the_one_that_a_search_finds(make):
    for game in GRID:
        formula, found = make(1.0).largest_lr(game), search_lr(make, game)
        assert found == pytest.approx(formula, rel=1e-7), game
        if 0 < formula < math.inf:
            assert radius(make(0.999 * formula), game) < 1 < radius(make(1.001 * formula), game)


def test_the_known_step_sizes():
    assert SimultaneousGradient(1.0).largest_lr(BILINEAR) == AlternatingGradient(1.0).largest_lr(BILINEAR) == 0
    assert Extragradient(1.0).largest_lr(BILINEAR) == pytest.approx(1)
    assert OptimisticGradient(1.0).largest_lr(BILINEAR) == pytest.approx(1 / math.sqrt(3))
    assert SimultaneousGradient(1.0).largest_lr(Quadratic(0.5, 1.0)) == pytest.approx(1.5 / 1.5)


def test_strategies_of_several_tensors_go_on_their_own_and_states_are_left_alone():
    shapes = ((2, 3), (4,))
    first = tuple(uniform(*shape, dtype=torch.float64) for shape in shapes)
    second = tuple(uniform(*shape, dtype=torch.float64) - 0.5 for shape in shapes)
    both = minimax(lambda x, y: sum((a * b).sum() + (a**2).sum() / 4 for a, b in zip(x, y, strict=True)))
    for solver in (*(make(0.3) for make in GRADIENT), AlternatingBestResponse(Descent(0.3, 3))):
        start = solver.init(first, second)
        kept = [value.clone() for value in (*first, *second)]
        together = solver.step(both, solver.step(both, start))
        for i in range(2):
            alone = trajectory(solver, Quadratic(a=0.5).game, first[i : i + 1], second[i : i + 1], 2)[-1]
            torch.testing.assert_close((together.first[i], together.second[i]), (*alone.first, *alone.second))
        assert all(map(torch.equal, kept, (*first, *second)))
        assert not any(value.requires_grad for value in (*together.first, *together.second, *together.memory))


def test_modules_play_as_a_training_loop_would_have_them():
    torch_seed = torch.Generator().manual_seed(0)
    generator, critic = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    noise, real = (torch.randn(5, n, generator=torch_seed) for n in (2, 3))

    def fooled(x, y):
        return functional.softplus(-call(critic, y, call(generator, x, noise))).mean()

    def judged(x, y):
        fake = call(critic, y, call(generator, x, noise))
        return functional.softplus(fake).mean() + functional.softplus(-call(critic, y, real)).mean()

    game, solver = Game(fooled, judged), SimultaneousGradient(0.5)
    states = trajectory(solver, game, strategy_of(generator), strategy_of(critic), 3)

    optimizer = torch.optim.SGD([*generator.parameters(), *critic.parameters()], lr=0.5)
    before = strategy_of(generator)
    for _ in range(3):
        fake = critic(generator(noise))
        slopes = torch.autograd.grad(functional.softplus(-fake).mean(), [*generator.parameters()], retain_graph=True)
        loss = functional.softplus(fake).mean() + functional.softplus(-critic(real)).mean()
        slopes += torch.autograd.grad(loss, [*critic.parameters()])
        for parameter, slope in zip([*generator.parameters(), *critic.parameters()], slopes, strict=True):
            parameter.grad = slope
        optimizer.step()
    for mine, theirs in zip(states[-1].first + states[-1].second, optimizer.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(mine, theirs)
    assign(generator, before)
    torch.testing.assert_close(strategy_of(generator), before, rtol=0, atol=0)
    with pytest.raises(ModelError, match="does not fit"):
        assign(critic, before)


def test_a_loss_that_is_no_scalar_is_refused():
    game = minimax(lambda x, y: x[0] * y[0])
    with pytest.raises(SettingError, match="scalar"):
        SimultaneousGradient(0.1).step(game, State((torch.ones(2),), (torch.ones(2),)))
