"""Provers of VNN-LIB properties: branch and bound over inputs where few are free, over neurons where many are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.crown import crown
from holdfast.certify.bounds.graph import Graph, Interval, Node
from holdfast.certify.bounds.operations.kink import relu
from holdfast.certify.bounds.operations.linear import Dense, Sum
from holdfast.certify.bounds.region import Region
from holdfast.certify.bounds.rounding import check_precision
from holdfast.certify.search.branch import branch_and_bound
from holdfast.certify.search.domains import Problem
from holdfast.certify.search.split import Outcome, split_inputs
from holdfast.certify.search.witness import inward, outward

if TYPE_CHECKING:
    from holdfast.certify.bounds.graph import Operation
    from holdfast.certify.questions import Questions

__all__ = ["Prover", "Task", "prove", "prove_by_inputs", "prove_by_neurons"]

# With no more free inputs than these, cutting inputs beats splitting neurons.
_FEW = 16


@dataclass(frozen=True, eq=False)
class Task:
    """What a prover is given.

    Parameters
    ----------
    model : nn.Module
        The network; it must be left as it is.
    shape, dtype
        Of one of its inputs.
    questions : Questions
        What is to be shown impossible.
    accept : callable
        Whether an input ``(*shape)`` is a counterexample: the last word on it.
    deadline : float
        When to stop, by ``time.monotonic``.
    attack : callable
        Searches for a counterexample, from new starts every time, until a time that it is given.
    """

    model: nn.Module
    shape: tuple[int, ...]
    dtype: torch.dtype
    questions: Questions
    accept: Callable[[Tensor], bool]
    deadline: float
    attack: Callable[[float], Tensor | None]


Prover = Callable[[Task], Outcome]


def prove(task: Task) -> Outcome:
    """By whichever suits the number of inputs.

    Raises
    ------
    ModelError
        When the network cannot be captured, or has an operation that no bound is known for.
    """
    check_precision(task.questions.lower.device)
    few = int((task.questions.lower < task.questions.upper).any(0).sum()) <= _FEW
    return prove_by_inputs(task) if few else prove_by_neurons(task)


def prove_by_inputs(task: Task) -> Outcome:
    """Branch and bound over boxes of inputs, all of it in float64."""
    graph = _captured(task).to(torch.float64)
    return split_inputs(graph, task.questions, task.dtype, task.accept, task.deadline, task.attack)


def prove_by_neurons(task: Task) -> Outcome:
    """Branch and bound over signs of neurons, in the network's precision, and in float64 where that could mislead."""
    questions, dtype = task.questions, task.dtype
    graph = with_worst(_captured(task).to(torch.float64), questions).to(dtype)
    boxes, of = torch.cat([questions.lower, questions.upper], 1).unique(dim=0, return_inverse=True)
    lower, upper = boxes.chunk(2, 1)
    region = Region.box(*(end.unflatten(1, task.shape) for end in outward(lower, upper, dtype)))
    inside = inward(lower, upper, task.dtype)
    unit = torch.eye(len(questions), dtype=dtype)
    rows = [unit[of == box] for box in range(len(boxes))]
    accepted: list[Tensor] = []

    def judge(box: int, x: Tensor) -> bool:
        low, high = (end[box].unflatten(0, task.shape) for end in inside)
        x = x.to(task.dtype).clamp(low, high)
        accepted.extend([x] if task.accept(x) else [])
        return bool(accepted)

    problem = Problem(graph, region, crown(graph, region), graph.output)
    seconds = max(0.0, task.deadline - time.monotonic()) / len(boxes)
    proved, bound = True, torch.inf
    for proof in branch_and_bound(problem, rows, [row.new_zeros(len(row)) for row in rows], judge, seconds=seconds):
        if accepted:
            return Outcome(False, accepted[0], -torch.inf)
        proved, bound = proved and proof.status == "proved", min(bound, proof.bound)
    late = time.monotonic() > task.deadline
    return Outcome(proved, None, bound, "" if proved or late else "no neuron is left to split")


def _captured(task: Task) -> Graph:
    """The network, compared with its graph at inputs that are asked about."""
    lower, upper = (end.unflatten(1, task.shape) for end in (task.questions.lower, task.questions.upper))
    return capture(_Flat(task.model), lower[:1].to(task.dtype), Interval(lower, upper))


def with_worst(graph: Graph, questions: Questions) -> Graph:
    """A graph from a network's inputs to ``(N, P)``, for each question the inequality that is missed by most.

    The maximum is written with ReLUs, so that neurons are all that has to be split: ``max(a, b) = a + relu(b - a)``.
    None of these steps is the network's own.
    """
    # In place of what fills up a shorter conjunction, its first inequality again.
    missing = questions.bound.isinf()
    matrix = torch.where(missing.unsqueeze(2), questions.matrix[:, :1], questions.matrix)
    bound = torch.where(missing, questions.bound[:, :1], questions.bound)
    nodes, shape = list(graph.nodes), (len(questions),)

    def add(operation: Operation, *inputs: int) -> int:
        nodes.append(Node("property", operation, inputs, shape, executed=False))
        return len(nodes) - 1

    worst = add(Dense(matrix[:, 0], -bound[:, 0]), graph.output)
    for r in range(1, matrix.shape[1]):
        other = add(Dense(matrix[:, r], -bound[:, r]), graph.output)
        worst = add(Sum((1, 1)), worst, add(relu(), add(Sum((1, -1)), other, worst)))
    return Graph(tuple(nodes), graph.arithmetic)


class _Flat(nn.Module):
    """A network whose output is ``(N, K)``, whatever shape it had."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y.unsqueeze(1) if y.dim() == 1 else y.flatten(1)
