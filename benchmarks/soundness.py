"""Proofs by a hair, and bounds of every operation, on many random networks: nothing may contradict them.

See README.md beside this file. The networks are those of the tests, in numbers that tests have no time for.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from measure import machine

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers.orders import bound_of, drawn, exactly, graph_of, in_some_order, mlp, traced
from helpers.tiny import KINDS, random_region, tiny
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.forward import forward_bounds
from holdfast.certify.bounds.interval import interval_bounds
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import REAL, Arithmetic
from holdfast.errors import ModelError


def proofs_by_a_hair(count: int, spread: float, seed: int) -> None:
    """Networks whose last bias leaves a bound just above 0, run in other orders and in rational numbers."""
    generator = torch.Generator().manual_seed(seed)
    arithmetic, tried, proved, wrong, fooled, began = Arithmetic.of(torch.float32), 0, 0, 0, 0, time.process_time()
    model = mlp((2, 5, 4, 2))
    program = traced(model, 2)
    while tried < count:
        tried += 1
        drawn(model, generator, spread)
        center = torch.randn(1, 2, generator=generator)
        width = 10 ** (-7 * torch.rand((), generator=generator)) * center.abs()
        region = Region.box(center - width, center + width)
        precise = region.to(torch.float64)
        bias = model[-1].bias
        with torch.no_grad():
            bias[0] = 0.0
            for share in (1e-7, 1e-6, 1e-5, 1e-4, 1e-2):
                bound = bound_of(graph_of(program, model, arithmetic), precise)
                if bound > 0:
                    break
                bias[0] = bias[0] - bound * (1 + share)
        if not bound_of(graph_of(program, model, arithmetic), precise) > 0:
            continue
        proved += 1
        corners = torch.rand(64, 2, generator=generator)
        corners[:32] = corners[:32].round()
        x = torch.lerp(region.lower, region.upper, corners).clamp(region.lower, region.upper)
        for fused in (False, True):
            logits = in_some_order(model, x, generator, fused)
            wrong += int((~(logits[:, 0] > logits[:, 1])).any())
        values = exactly(model, x[0])
        wrong += int(values[0] <= values[1])
        # As much bias as exact arithmetic asks for: how often rounding breaks a proof that leaves it out.
        with torch.no_grad():
            bias[0] = bias[0] - bound_of(graph_of(program, model, REAL), precise) * (1 - 1e-9)
        if bound_of(graph_of(program, model, REAL), precise) > 0:
            logits = in_some_order(model, x, generator, False)
            fooled += int((~(logits[:, 0] > logits[:, 1])).any())
    print(
        f"sizes 1e-{spread:g} to 1e{spread:g}: {tried} networks, {proved} proved, {wrong} contradicted; exact "
        f"arithmetic alone: {fooled} contradicted; {time.process_time() - began:.0f} CPU s",
        flush=True,
    )


def every_operation(count: int, seed: int) -> None:
    """Networks of every kind: the float32 network's own answers at random inputs lie within its bounds."""
    tried, wrong, refused, began = 0, 0, 0, time.process_time()
    kinds = list(KINDS)
    while tried < count:
        kind = kinds[tried % len(kinds)]
        tried += 1
        net = tiny(kind, seed + tried)
        model, scale = net.model.float(), 10 ** ((tried // len(kinds)) % 21 - 10)
        small = random_region(net.shape, seed + tried, torch.float32)
        # Sets of all norms, and the same from tiny to huge.
        region = Region(small.lower * scale, small.upper * scale, small.center * scale, small.norm, small.eps)
        if small.norm != "l0":
            region = Region(region.lower, region.upper, region.center, small.norm, small.eps * scale)
        try:
            graph = capture(model, region.center)
        except ModelError:
            refused += 1
            continue
        points = torch.stack([region.center, region.minimiser(torch.randn_like(region.center))], 1).flatten(0, 1)
        with torch.no_grad():
            answers = model(points).unflatten(0, (len(region), 2))
            for bounds in (interval_bounds, crown, forward_bounds):
                for g, r in ((graph, region), (graph.to(torch.float64), region.to(torch.float64))):
                    found = bounds(g, r)
                    low, high = (found if isinstance(found, list) else found.intervals)[-1]
                    inside = (low.unsqueeze(1) <= answers) & (answers <= high.unsqueeze(1))
                    wrong += int((~inside & answers.isfinite()).any())
    print(f"{tried} networks, {refused} refused, {wrong} bounds left; {time.process_time() - began:.0f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hairs", type=int, default=33_400, help="networks of each spread, proved by a hair")
    parser.add_argument("--networks", type=int, default=10_000, help="networks of any operation")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    for spread in (0.0, 3.0, 10.0):
        proofs_by_a_hair(arguments.hairs, spread, arguments.seed)
    every_operation(arguments.networks, arguments.seed)


if __name__ == "__main__":
    main()
