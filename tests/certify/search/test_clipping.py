"""Neurons' bounds over a slice of the inputs: against samples in it, and against linear programs."""

import numpy as np
import pytest
import scipy
import torch
from torch import nn

from helpers.zoo import uniform
from holdfast import L1, L2, Linf
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.region import Region
from holdfast.certify.search import clipping
from holdfast.certify.search.clipping import clipped, lines_of
from holdfast.certify.search.domains import Domains, Problem, bound_domains

INPUTS = 5


def problem_of(seed, threat, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(INPUTS, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)
    x = uniform(2, INPUTS, seed=seed, dtype=dtype)
    graph, region = capture(model, x), Region.around(threat, x)
    return Problem(graph, region, crown(graph, region), graph.output)


def sliced(problem, share):
    """Domains that are whole examples, how large their bounding functions may be, and clips."""
    rows = torch.eye(3, dtype=problem.region.lower.dtype).repeat(2, 1)
    found = bound_domains(problem, Domains.whole(problem, torch.arange(2).repeat_interleave(3), rows), 5)
    region = problem.region.take(found.domains.example)
    level = torch.lerp(region.minimum(found.slope), -region.minimum(-found.slope), share).double()
    lines = {example: lines_of(problem, example) for example in range(2)}
    return found, level, lines, clipped(problem, lines, found, level, torch.ones_like(found.coefficients))


def inputs_of_relus(problem, x):
    values = problem.graph.values(x)
    given = [values[problem.graph.nodes[number].inputs[0]].flatten(1) for number in problem.places]
    return torch.cat(given, 1).index_select(1, problem.unstable)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("threat", [Linf(0.4, None), Linf(0.5), L2(0.6), L1(1.0, None)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_slice_lies_within(seed, threat, dtype):
    """What neurons are given there, and with them the output: outside of it the function is above its ceiling."""
    single = problem_of(seed, threat, dtype)
    # Sampled in float64, without any allowance: what float32 has room for must be enough.
    problem = single.to(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    inside = 0
    for share in (0.05, 0.3, 0.8):
        found, level, _, narrow = sliced(single, share)
        region, slope = problem.region.take(found.domains.example), found.slope.double()
        ceiling = level + found.constant
        bound = bound_domains(single, narrow, 0).bound
        for m in range(len(level)):
            # Points between the one at which the function is least and others.
            corners = torch.rand(4000, INPUTS, generator=generator, dtype=torch.float64)
            corners = region.lower[m] + corners * (region.upper[m] - region.lower[m])
            x = torch.lerp(found.x[m].double(), corners, torch.rand(4000, 1, generator=generator, dtype=torch.float64))
            x = x[threat.admits(x, region.center[m].expand_as(x))]
            value = problem.graph(x) @ found.domains.rows[m].double()
            assert bool((value >= torch.minimum(bound[m].double(), ceiling[m]) - 1e-12).all())
            x = x[x @ slope[m] <= level[m]]
            given = inputs_of_relus(problem, x)
            assert bool((given >= narrow.lower[m] - 1e-12).all()), f"seed {seed}, share {share}"
            assert bool((given <= narrow.upper[m] + 1e-12).all()), f"seed {seed}, share {share}"
            inside += len(x)
        assert bool((narrow.lower >= found.domains.lower).all())
        assert bool((narrow.upper <= found.domains.upper).all())
    assert inside > 2000


def test_bounds_come_near_the_linear_program():
    """The dual at one multiplier never passes the program's minimum, and wins most of what that does."""
    exact, mine = [], []
    for seed in range(3):
        problem = problem_of(seed, Linf(0.4, None))
        found, level, lines, narrow = sliced(problem, 0.15)
        ends = torch.cat([narrow.lower, -narrow.upper], 1)
        known = torch.cat([found.domains.lower, -found.domains.upper], 1)
        for m, example in enumerate(found.domains.example.tolist()):
            low, high = (end[example].numpy() for end in (problem.region.lower, problem.region.upper))
            for row, (g, constant) in enumerate(zip(lines[example].slope, lines[example].constant, strict=True)):
                limit = [float(level[m])]
                program = scipy.optimize.linprog(
                    g.numpy(), A_ub=found.slope[m].numpy()[None], b_ub=limit, bounds=np.stack([low, high], 1)
                )
                best = program.fun + float(constant)
                assert float(ends[m, row]) <= max(best, float(known[m, row])) + 1e-9
                exact.append(max(0.0, best - float(known[m, row])))
                mine.append(float(ends[m, row] - known[m, row]))
    assert sum(exact) > 0
    assert sum(mine) >= 0.75 * sum(exact)


def test_an_empty_slice_is_seen():
    """Where the neurons say that the function cannot be so low, ends cross or the bound becomes positive."""
    problem = problem_of(1, Linf(0.4, None))
    found, level, _, narrow = sliced(problem, 1e-3)
    again = bound_domains(problem, narrow, 0).bound
    crossed = (narrow.lower > narrow.upper).any(1)
    assert bool((crossed | (again > 2 * (level + found.constant) - found.bound)).any())


def test_few_neurons_are_clipped_where_memory_is_short(monkeypatch):
    problem = problem_of(0, Linf(0.4, None))
    monkeypatch.setattr(clipping, "_HELD", 4 * INPUTS * 8 * 3)
    found, _, lines, narrow = sliced(problem, 0.1)
    assert lines[0].first == len(problem.unstable) - 3
    assert len(lines[0].slope) == 6
    changed = ((narrow.lower > found.domains.lower) | (narrow.upper < found.domains.upper)).any(0)
    assert bool(changed[-3:].any())
    assert not bool(changed[:-3].any())
