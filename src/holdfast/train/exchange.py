"""What processes that train one model tell each other in every step."""

import torch
from torch import Tensor, nn

from holdfast.processes import Processes

__all__ = ["exchange"]


def exchange(model: nn.Module, processes: Processes, *numbers: float) -> tuple[float, ...]:
    """Average gradients, floating buffers (the statistics of batch norm) and some numbers over the processes.

    It is done here, once a step, and not by wrapping the model in ``DistributedDataParallel``, whose contract is one
    forward pass and then one backward pass: robust losses have several forwards, gradients for inputs, gradients of
    gradients and moved weights. Afterwards gradients and buffers are the same bits in all processes, and so then are
    the weights.
    """
    if processes.count == 1:
        return numbers
    grads: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grads.append(parameter.grad)
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    # In double precision the mean of equal numbers is that number: what is constant does not drift.
    wide = [buffer.double() for buffer in buffers]
    told = torch.tensor(numbers, dtype=torch.float64, device=processes.device)
    processes.average([*grads, *wide, told])
    for buffer, mean in zip(buffers, wide, strict=True):
        buffer.copy_(mean)
    return tuple(told.tolist())
