"""Using a model and giving it back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from holdfast.errors import ModelError

__all__ = ["borrowed", "given_copies"]


@contextmanager
def borrowed(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Hold a model in evaluation mode with frozen parameters; give it back bit for bit as it was.

    Training flags, ``requires_grad`` flags, buffers and the rows that embeddings with a ``max_norm`` shorten where they
    are looked up are restored, and so is torch's global random state, which a
    model that draws its own noise would otherwise move. Inside, that state starts from ``seed``. Attention layers stay
    off the fast path that they take only where no gradient is asked for: it rounds differently, and an answer must not
    depend on whether somebody else's gradient was needed. For the same reason an inference mode around it all is left:
    gradients can be had inside, wherever the caller stands.

    Raises
    ------
    ModelError
        When the model was itself made in inference mode, where nothing can ever be differentiated through it.
    """
    _refuse_inference(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    shortened = [
        (module.weight, module.weight.detach().clone())
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    ]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.inference_mode(False), torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: it seeds every device, and only the model's own are given back.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            _evaluate(model)
            for parameter, _ in required:
                parameter.requires_grad_(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, flag in training:
                module.training = flag
            for parameter, flag in required:
                parameter.requires_grad_(flag)
            for module, name, buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.detach().copy_(value)
                module._buffers[name] = buffer
            for weight, value in shortened:
                weight.detach().copy_(value)


@contextmanager
def given_copies(model: nn.Module) -> Iterator[None]:
    """Hand a model copies of its inputs, since some work in place on them."""
    handle = model.register_forward_pre_hook(_copied)
    try:
        yield
    finally:
        handle.remove()


def _copied(model: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)


def _refuse_inference(model: nn.Module) -> None:
    tensors = (*model.named_parameters(), *model.named_buffers())
    if (name := next((name for name, tensor in tensors if tensor.is_inference()), None)) is not None:
        raise ModelError(
            f"the model's '{name}' was made inside torch.inference_mode(), so that no gradient passes it: make or "
            "copy the model, and load its weights, outside of it"
        )


def _evaluate(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:
        # Exported programs fix their mode when they are exported and refuse the call.
        for module in model.modules():
            module.training = False
