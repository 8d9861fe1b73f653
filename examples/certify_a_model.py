"""Close the bracket of a small network, and find out how far its most robust and its weakest digits are from a mistake.

python examples/certify_a_model.py
"""

import torch

import holdfast
from holdfast import Linf, load_data
from holdfast.certify import exact_distance
from holdfast.train import PGDTraining, fit


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    fit(model, load_data("digits", split="train"), PGDTraining(Linf(0.1)), epochs=5)

    result = holdfast.audit(model, "digits", Linf(0.1), examples="0:200", certify="complete", certify_seconds=5)
    lower, upper = result.bracket
    print(f"robust accuracy within 0.1: between {lower:.1%} and {upper:.1%}, {result.certification.open} open")
    for method, count in result.certification.methods.items():
        print(f"  {count} proved by {method}")

    batch = next(load_data("digits", examples="0:10").batches(10))
    found = exact_distance(model, batch.x, batch.y, Linf("inf"), seconds=10)
    for digit, distance in zip(batch.y.tolist(), found, strict=True):
        print(f"a {digit}: {distance.status} distance {distance.upper:.4f}, nothing nearer than {distance.lower:.4f}")


if __name__ == "__main__":
    main()
