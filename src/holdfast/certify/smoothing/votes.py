"""Asking a classifier many times about perturbed inputs, and counting its answers.

An answer names the class of its largest logit, the first of equals. One whose lead is no number, because of NaN or of
two equal infinities at the top, names none: it is counted beside the classes, as one against whatever is to be proved.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.arguments import counts
from holdfast.certify.smoothing.noise import Perturbation
from holdfast.draws import Draws
from holdfast.errors import DataError
from holdfast.models import Query

__all__ = ["checked_index", "count_votes", "each_vote", "named"]

# The words that number examples and draws in the random generator.
_WORDS = 2**32


def count_votes(
    query: Query,
    perturbation: Perturbation,
    x: Tensor,
    rng: Draws,
    rows: Tensor,
    start: int,
    stop: int,
) -> Tensor:
    """How often each class, and none, was the answer to the draws ``start`` to ``stop - 1`` of some examples.

    Batches are filled across examples, and no more than one batch of perturbed inputs exists at a time.

    Parameters
    ----------
    query : Query
        The model, in use.
    perturbation : Perturbation
        Makes the inputs to ask about.
    x : Tensor
        ``(N, ...)`` inputs.
    rng : Draws
        Seed, index of all ``N`` examples and stage; its draw number is not used.
    rows : Tensor
        ``(M,)`` int64, which of the examples, at least one.
    start, stop : int
        The range of draws.

    Returns
    -------
    Tensor
        ``(M, K + 1)`` int64 on the CPU, the last column for the answers that name no class.

    Raises
    ------
    ModelError
        When the model does not answer with logits.
    """
    tally = torch.zeros(0, 0, dtype=torch.int64)
    for who, _, classes, named in _asked(query, perturbation, x, rng, rows, start, stop):
        if not len(tally):
            tally = torch.zeros(len(rows), classes + 1, dtype=torch.int64)
        tally.index_put_((who, named), torch.ones_like(who), accumulate=True)
    return tally


def each_vote(query: Query, perturbation: Perturbation, x: Tensor, outcomes: int) -> tuple[Tensor, int]:
    """What the answer to each outcome of a perturbation without chance was, and how many classes there are.

    Parameters
    ----------
    query : Query
        The model, in use.
    perturbation : Perturbation
        Makes the inputs to ask about; the number of its draw is that of the outcome.
    x : Tensor
        ``(N, ...)`` inputs, at least one.
    outcomes : int
        How many there are.

    Returns
    -------
    votes : Tensor
        ``(N, outcomes)`` int64 on the CPU: classes, or their number for an answer that names none.
    classes : int

    Raises
    ------
    ModelError
        When the model does not answer with logits.
    """
    votes, most = torch.zeros(len(x), outcomes, dtype=torch.int64), 0
    rows = torch.arange(len(x))
    for who, place, classes, named in _asked(query, perturbation, x, Draws(0, rows), rows, 0, outcomes):
        votes[who, place], most = named, classes
    return votes, most


def _asked(
    query: Query, perturbation: Perturbation, x: Tensor, rng: Draws, rows: Tensor, start: int, stop: int
) -> Iterator[tuple[Tensor, Tensor, int, Tensor]]:
    """By batches: places in ``rows`` and draws from ``start``, how many classes there are, and what was named."""
    width = stop - start
    total = len(rows) * width
    for first in range(0, total, query.batch_size):
        place = torch.arange(first, min(first + query.batch_size, total))
        who, draw = place // width, place % width
        row = rows[who]
        draws = Draws(rng.seed, rng.index[row].to(query.device), rng.stage, (start + draw).to(query.device))
        logits = query.bare_logits(perturbation.perturb(x[row].to(query.device, query.dtype), draws))
        yield who, draw, logits.shape[1], named(logits).cpu()


def named(logits: Tensor) -> Tensor:
    """``(N,)`` int64, the class that each row of ``(N, K)`` logits names, K where it names none."""
    first, second = logits.topk(2, dim=1).values.unbind(1)  # NaN comes first
    return torch.where((first - second).isnan(), logits.shape[1], logits.argmax(1))


def checked_index(x: Tensor, y: Tensor | None, index: Tensor | None) -> Tensor:
    """``(N,)`` int64 positions of the examples in their data set, 0 to N - 1 where none are given.

    Raises
    ------
    DataError
        When there are no examples, not as many labels or positions as inputs, or a position that is none.
    """
    if not len(x):
        raise DataError("x: no examples to certify; give at least one")
    index = None if index is None else counts(index, "index").cpu()
    for name, given in (("y", y), ("index", index)):
        if given is not None and given.shape != x.shape[:1]:
            raise DataError(f"{name}: shape {tuple(given.shape)} for {len(x)} inputs; give one number for each")
    if index is None:
        return torch.arange(len(x))
    if not bool(((index >= 0) & (index < _WORDS)).all()):
        raise DataError("index: positions in a data set go from 0 to 2**32 - 1; give each example's own")
    return index
