"""Audit a model of your own from Python: replace `my_model` and `my_data`.

python examples/audit_your_model.py
"""

import torch
from torch import Tensor, nn

import holdfast


def my_model() -> nn.Module:
    """Return a trained module that maps inputs (N, ...) to logits (N, K), with its normalisation inside."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return holdfast.train(model, "digits", "linf:0.1", method="standard", settings={"epochs": 10}).model


def my_data() -> tuple[Tensor, Tensor]:
    """Return inputs (N, ...) in their own units, images in [0, 1], and labels (N,)."""
    batch = next(holdfast.load_data("digits").batches(200))
    return batch.x, batch.y


def main() -> None:
    # Give run="some/folder" to be able to resume a long audit, and to keep audit.json.
    result = holdfast.audit(my_model(), my_data(), holdfast.Linf("2/16"))
    lower, upper = result.bracket
    print(f"clean accuracy {result.clean_accuracy:.1%}")
    print(f"robust accuracy between {lower:.1%} (proved) and {upper:.1%} (not broken)")
    for stage in result.stages:
        print(f"  {stage.name:8} broke {stage.broken} of {stage.attacked}")
    for diagnostic in result.diagnostics:
        print(f"{diagnostic.verdict}: {diagnostic.message}")


if __name__ == "__main__":
    main()
