"""The training loop."""

from collections.abc import Callable

import torch
from torch import nn

from holdfast.data import Source
from holdfast.errors import ModelError
from holdfast.train.method import Method

__all__ = ["fit"]


def fit(
    model: nn.Module,
    source: Source,
    method: Method,
    *,
    epochs: int,
    lr: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> nn.Module:
    """Train a model in place with Adam and a learning rate that falls to 0 along a cosine.

    Parameters
    ----------
    model : nn.Module
        Its weights are where training starts.
    source : Source
        Training examples, small enough to be held in memory for shuffling.
    method : Method
        Maps a batch to a loss.
    epochs : int
        Passes over the data.
    lr : float
        The learning rate at the start.
    batch_size : int
        Examples a step.
    seed : int
        Of the order of examples and of the method's draws.
    on_epoch : callable
        Called with the number of finished epochs and the mean loss of the last.

    Returns
    -------
    nn.Module
        The same model, in evaluation mode.

    Raises
    ------
    ModelError
        When the loss is no longer finite.
    """
    batches = list(source.batches(batch_size))
    x, y = torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(x) // batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    step = 0
    for epoch in range(epochs):
        losses = []
        for rows in torch.split(torch.randperm(len(x), generator=generator), batch_size):
            # The step is the seed's second half: another step draws other noise for the same row.
            loss = method.loss(model, x[rows], y[rows], seed=seed + (step << 32))
            if not bool(loss.isfinite()):
                raise ModelError(f"the loss became {loss.item()} at step {step} of {steps}: lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            step += 1
        on_epoch(epoch + 1, sum(losses) / len(losses))
    return model.eval()
