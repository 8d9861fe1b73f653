"""Asking a classifier many times about perturbed inputs, and counting its answers."""

import torch
from torch import Tensor

from holdfast.certify.noise import Perturbation
from holdfast.draws import Draws
from holdfast.errors import DataError
from holdfast.models import Query

__all__ = ["checked_index", "count_votes"]


def count_votes(
    query: Query,
    perturbation: Perturbation,
    x: Tensor,
    rng: Draws,
    rows: Tensor,
    start: int,
    stop: int,
) -> Tensor:
    """How often each class was the answer to the draws ``start`` to ``stop - 1`` of some examples.

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
        ``(M, K)`` int64 on the CPU.

    Raises
    ------
    ModelError
        When the model does not answer with logits.
    """
    width = stop - start
    total = len(rows) * width
    tally = torch.zeros(0, 0, dtype=torch.int64)
    for first in range(0, total, query.batch_size):
        place = torch.arange(first, min(first + query.batch_size, total))
        who = place // width
        row = rows[who]
        draws = Draws(rng.seed, rng.index[row].to(query.device), rng.stage, (start + place % width).to(query.device))
        logits = query.bare_logits(perturbation.perturb(x[row].to(query.device, query.dtype), draws))
        if first == 0:
            tally = torch.zeros(len(rows), logits.shape[1], dtype=torch.int64)
        tally.index_put_((who, logits.argmax(1).cpu()), torch.ones_like(who), accumulate=True)
    return tally


def checked_index(x: Tensor, y: Tensor | None, index: Tensor | None) -> Tensor:
    """``(N,)`` int64 positions of the examples in their data set, 0 to N - 1 where none are given.

    Raises
    ------
    DataError
        When there are no examples, or not as many labels or positions as inputs.
    """
    if not len(x):
        raise DataError("x: no examples to certify; give at least one")
    for name, given in (("y", y), ("index", index)):
        if given is not None and given.shape != x.shape[:1]:
            raise DataError(f"{name}: shape {tuple(given.shape)} for {len(x)} inputs; give one number for each")
    return torch.arange(len(x)) if index is None else index.cpu().long()
