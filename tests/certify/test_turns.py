"""Proofs about turned images against a hundred thousand angles each."""

import pytest
import torch

from helpers.zoo import mlp, seeded, uniform
from holdfast import certify, load_data, train
from holdfast.attacks import RefinedGrid, craft
from holdfast.threats import Spatial

ANGLES = 100_000


def margins(model, x, y, threat):
    """``(N,)`` the least margin of each image over all angles of a fine grid."""
    limit = float(threat.limits(x[:1])[0, 0])
    z = torch.zeros(ANGLES, 4)
    z[:, 0] = torch.linspace(-limit, limit, ANGLES)
    found = []
    with torch.no_grad():
        for image, label in zip(x, y, strict=True):
            least = torch.inf
            for part in z.split(10_000):
                logits = model(threat.apply(image.expand(len(part), *image.shape), part))
                others = logits.clone()
                others[:, label] = -torch.inf
                least = min(least, float((logits[:, label] - others.amax(1)).min()))
            found.append(least)
    return torch.tensor(found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_two_pixels_are_decided(seed):
    """In one number a proof and a look at all angles meet: what neither breaks is proved."""
    model = seeded(lambda: mlp(2, 3, hidden=8, seed=seed), seed)
    with torch.no_grad():
        model[3].weight *= 20
    x = uniform(30, 1, 1, 2, seed=seed)
    y = model(x).argmax(1)
    threat = Spatial(rotation=70)
    certificates = certify(model, x, y, threat)
    least = margins(model, x, y, threat)
    for certificate, value in zip(certificates, least.tolist(), strict=True):
        assert certificate.verdict == ("certified" if value > 0 else "broken"), value
    assert len({certificate.verdict for certificate in certificates}) == 2


@pytest.mark.slow
def test_no_angle_breaks_digits_that_were_proved():
    recipe = {"epochs": 10, "batch_size": 50, "validation": 50, "guard": False, "k": 5}
    threat = Spatial(rotation=30)
    model = train("mlp", "digits", threat, method="worst-of-k", settings=recipe).model
    batch = next(load_data("digits").batches(12))
    certificates = certify(model, batch.x, batch.y, threat)
    proved = torch.tensor([certificate.verdict == "certified" for certificate in certificates])
    broken = torch.tensor([certificate.verdict == "broken" for certificate in certificates])
    assert proved.sum() >= 6
    assert not (margins(model, batch.x[proved], batch.y[proved], threat) <= 0).any()
    # And nothing is left between: what is not proved falls to the attack as well.
    assert (proved | broken).all()
    attacked = craft(RefinedGrid(rotations=301), model, batch.x, batch.y, threat=threat)
    assert torch.equal(attacked.success, broken)
