"""Short names for the content of models and data, by which a run is told from another."""

import hashlib
import re

import torch
from torch import Tensor, nn

__all__ = ["digest", "digest_module"]


def digest(tensors: dict[str, Tensor], text: str = "") -> str:
    """A short name for the content of tensors and a text."""
    total = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def digest_module(module: nn.Module) -> str:
    """A short name for a model: parameters and buffers, those too that a state dict leaves out, and its layers."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    # Without addresses, which differ from one process to the next.
    return digest(tensors, re.sub(r"0x[0-9a-f]+", "", repr(module)))
