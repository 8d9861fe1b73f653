"""The last word on a claim: what the bare model and the threat say of the final input."""

from dataclasses import replace

import torch
from torch import Tensor

from holdfast.engine.rows import Rows, overlay, take
from holdfast.models.query import Query
from holdfast.threats import Threat

__all__ = ["verify"]

# The nearest adversarial input lies on the decision boundary, where the search's rounding and the bare model's differ:
# its choice is lengthened by these shares until the bare model agrees.
_NUDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)


def verify(query: Query, threat: Threat, rows: Rows, samples: int) -> tuple[Rows, Tensor]:
    """Which claims hold, ``(N,)`` bool; those of a nearest input with the least nudge that makes them hold.

    The rows come back with how much is wrong as the bare model sees it, of a choice that is not admissible nothing more
    than of the clean input.
    """
    holds = torch.zeros_like(rows.found)
    nearest = threat.at(rows.index).budget(rows.x).isinf()
    for nudge in _NUDGES:
        open_ = (~holds & (nearest if nudge else True)).nonzero()[:, 0]
        if not len(open_):
            break
        part = take(rows, open_)
        here = threat.at(part.index)
        choice = part.best * (1 + nudge)
        x_adv = here.apply(part.x, choice)
        seen = part.wrong(*(query.bare_logits(x_adv) for _ in range(samples)))
        share = torch.where(here.contains(part.x, choice), seen, part.clean_share).maximum(part.clean_share)
        upheld = part.broken(share)
        holds = holds.index_copy(0, open_, upheld)
        rows = replace(
            rows,
            best=rows.best.index_copy(0, open_, overlay(part.best, choice, upheld)),
            share=rows.share.index_copy(0, open_, share),
            forwards=rows.forwards.index_copy(0, open_, part.forwards + samples),
        )
    return rows, holds
