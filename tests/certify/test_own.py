"""Defended classifiers that are attacked and prove themselves, against every patch that there is."""

import itertools

import pytest
import torch
from torch import nn

from helpers.tiny import Fn
from helpers.zoo import uniform
from holdfast import ModelError, ProofError, SettingError, audit
from holdfast.certify import Ablated, BlockAblation, ColumnAblation, DoublyMasked, Fill, Masks
from holdfast.certify.own import OwnProver
from holdfast.threats import Linf, Patch

LEVELS = (0.0, 0.5, 1.0)


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[3].weight *= 3
    return model.eval()


def balanced():
    """A network to whom dark says the opposite of bright, and grey nothing."""
    model = nn.Sequential(Fn(lambda x: 8 * (x - 0.5)), *network())
    with torch.no_grad():
        model[2].bias.zero_()
        model[4].bias.zero_()
    return model.eval()


DEFENCES = {
    "double masking": lambda: DoublyMasked(balanced(), Masks(5, 5, 2, 4, Fill(0.5))),
    "columns": lambda: Ablated(balanced(), ColumnAblation(5, 1, Fill(0.5))),
    "blocks": lambda: Ablated(balanced(), BlockAblation(5, 5, 1, Fill(0.5))),
}


def patched(x, threat):
    """One image behind every patch of three grey levels."""
    places = threat.places(x)
    size = threat.height * threat.width
    contents = torch.tensor(list(itertools.product(LEVELS, repeat=size)))
    z = torch.cat([places.repeat_interleave(len(contents), 0), contents.repeat(len(places), 1)], 1)
    return threat.apply(x.expand(len(z), *x.shape[1:]), z)


@pytest.mark.parametrize("name", DEFENCES)
def test_answers_are_those_of_the_defence(name):
    defended, x = DEFENCES[name](), uniform(20, 1, 5, 5)
    scores = defended(x)
    assert scores.shape == (20, 3)
    assert torch.equal(scores.argmax(1), defended.certify(x).prediction)
    assert len(scores.argmax(1).unique()) > 1
    # The answer stands above the rest by more than votes and logits can make up for.
    first, second = scores.topk(2, dim=1).values.unbind(1)
    assert bool((first - second > 0.5).all())


@pytest.mark.parametrize("name", DEFENCES)
def test_certificates_are_the_smoothing_results_and_no_patch_changes_them(name):
    defended, x, threat = DEFENCES[name](), uniform(24, 1, 5, 5, seed=1), Patch(1, 1)
    y = defended(x).argmax(1)
    found = defended.certify(x)
    kept = defended.keeps(x, y, threat)
    assert torch.equal(kept, found.radius >= 1)
    assert 0 < int(kept.sum()) < 24
    assert not bool(defended.keeps(x, (y + 1) % 3, threat).any())
    broken = torch.tensor([bool((defended(patched(x[i : i + 1], threat)).argmax(1) != y[i]).any()) for i in range(24)])
    assert not bool((kept & broken).any())
    assert bool(broken.any())


def test_double_masking_counts_what_brute_force_counts():
    """Certified is who keeps the label behind all pairs of masks: counted here mask by mask, without the module."""
    model, masks = network(seed=2), Masks(5, 5, 2, 2)
    x = uniform(40, 1, 5, 5, seed=2)
    y = model(x).argmax(1)
    hidden = []
    for top, left in itertools.product(masks_of(5, 2, 2), masks_of(5, 2, 2)):
        mask = torch.zeros(5, 5, dtype=torch.bool)
        mask[slice(*top), slice(*left)] = True
        hidden.append(mask)
    expected = torch.tensor(
        [
            all(int(model(image.masked_fill(a | b, 0.0)[None]).argmax()) == label for a in hidden for b in hidden)
            for image, label in zip(x, y, strict=True)
        ]
    )
    result = audit(DoublyMasked(model, masks), (x, y), Patch(2), protocol="quick", certify="own")
    assert result.certified_accuracy == int(expected.sum()) / 40
    assert 0 < result.certified_accuracy < result.robust_accuracy
    assert result.certification.methods == {"double masking": int(expected.sum())}
    assert result.certification.checked == int(expected.sum())
    assert "its votes included" in result.certification.statement


def masks_of(size, patch, number):
    """The paper's intervals along an axis, written out."""
    stride = -(-(size - patch + 1) // number)
    length = min(patch + stride - 1, size)
    starts = sorted({*range(0, size - length + 1, stride), size - length})
    return [(start, start + length) for start in starts]


@pytest.mark.parametrize("name", DEFENCES)
def test_gradients_are_those_of_the_average_logits(name):
    defended, x = DEFENCES[name](), uniform(3, 1, 5, 5, dtype=torch.float64).requires_grad_()
    defended.double()
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (grad,) = torch.autograd.grad((defended(x) * weights).sum(), x)
    views = [defended.masks.kept] if name == "double masking" else []
    averages = torch.stack([defended._ask(image, *views)[0].mean(0) for image in x.split(1)])
    (expected,) = torch.autograd.grad((averages * weights).sum(), x)
    torch.testing.assert_close(grad, expected)


def test_what_a_defence_does_not_prove():
    double, columns = DEFENCES["double masking"](), DEFENCES["columns"]()
    for model, threat, line in [
        (double, Linf(0.1), "double masking proves something about patches, and linf:0.1 is none"),
        (double, Patch(1, 3), "the masks cover patches of at most 2 pixels a side, and not patch:1x3"),
        (columns, Linf(0.1), "votes on ablations prove something about patches, and linf:0.1 is none"),
        (network(), Patch(2), "a Sequential proves nothing of itself; wrap the classifier"),
    ]:
        with pytest.raises(SettingError, match=f"certify own: {line}"):
            audit(model, (uniform(2, 1, 5, 5), torch.zeros(2, dtype=torch.int64)), threat, certify="own")
    with pytest.raises(ModelError, match=r"must return logits \(N, K\) for N views"):
        DoublyMasked(Fn(lambda x: x.flatten(1)[:, :1]), Masks(4, 4, 1))(uniform(2, 1, 4, 4))
    assert bool(
        DoublyMasked(Fn(lambda x: x.flatten(1)[:, :2] * torch.nan), Masks(4, 4, 1))(uniform(2, 1, 4, 4)).isnan().all()
    )


def test_a_defence_that_proves_too_much_is_found_out(monkeypatch):
    defended = DoublyMasked(network(seed=2), Masks(5, 5, 2, 2))
    x = uniform(40, 1, 5, 5, seed=2)
    monkeypatch.setattr(DoublyMasked, "keeps", lambda self, x, y, threat: torch.ones(len(x), dtype=torch.bool))
    monkeypatch.setattr(DoublyMasked, "refuses", lambda self, threat: "")
    y = defended(x).argmax(1)
    with pytest.raises(
        ProofError, match=r"under patch:5x5 by double masking, .* distrust what the model proves of itself"
    ):
        audit(defended, (x, y), Patch(5), certify="own")


def test_prover_asks_in_the_models_own_precision():
    defended, x = DEFENCES["double masking"]().double(), uniform(4, 1, 5, 5)
    prover = OwnProver.of(defended, Patch(2), torch.float64)
    y = defended(x.double()).argmax(1)
    first, second = prover.bound(x, y, Patch(2)), [c for _, c in prover.prove(x, y, Patch(2))]
    assert [c.verdict for c in first] == [c.verdict for c in second]
    assert {c.note for c in first if c.verdict == "undecided"} <= {"the votes behind the answer differ too much"}
