"""Close the bracket of a small network, and find out exactly how far some digits are from a mistake.

python examples/certify_a_model.py
"""

import torch
from torch import nn

import holdfast
from holdfast import Linf, load_data
from holdfast.certify import exact_distance


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    holdfast.train(model, "digits", Linf(0.1), method="pgd", settings={"epochs": 20})

    result = holdfast.audit(model, "digits", Linf(0.1), examples="0:200", certify="complete")
    lower, upper = result.bracket
    print(f"robust accuracy within 0.1: between {lower:.1%} and {upper:.1%}")
    for method, count in result.certification.methods.items():
        print(f"  {count} of 200 proved by {method}")

    batch = next(load_data("digits", examples="0:6").batches(6))
    for digit, found in zip(batch.y.tolist(), exact_distance(model, batch.x, batch.y, Linf("inf")), strict=True):
        print(f"a {digit}: a mistake at {found.upper:.4f}, none nearer than {found.lower:.4f} ({found.status})")


if __name__ == "__main__":
    main()
