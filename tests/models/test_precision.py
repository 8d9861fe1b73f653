"""The precision of a model: of its parameters, and of its buffers where it has none."""

import torch
from torch import nn

from holdfast.models.precision import first_float


class Fixed(nn.Module):
    """A network whose weights are a buffer that no state dict keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("weight", torch.eye(2, dtype=torch.float64), persistent=False)


def test_the_first_number_of_a_model():
    otherwise = torch.zeros(())
    assert first_float(nn.Linear(2, 2).half(), otherwise).dtype == torch.float16
    assert first_float(Fixed(), otherwise).dtype == torch.float64
    assert first_float(nn.Sequential(Fixed(), nn.Linear(2, 2)), otherwise).dtype == torch.float32
    assert first_float(nn.ReLU(), otherwise) is otherwise
