"""Patches on digits: where they hurt, what can be proved of a plain network, and what looking past masks buys."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from holdfast.attacks import PatchPGD
from holdfast.audit import audit
from holdfast.certify import ColumnAblation, DoublyMasked, Masks
from holdfast.data import Batch, load_data
from holdfast.draws import Draws
from holdfast.engine import craft
from holdfast.engine.rows import take
from holdfast.lab.canvas import BLUE, GREEN, GREY, INK, canvas, label
from holdfast.lab.claim import Claim, between, near
from holdfast.lab.experiment import Finding
from holdfast.lab.networks import dense
from holdfast.tasks.objectives import margin
from holdfast.threats import Patch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, NUMBER = 8, 4
XIANG, LEVINE = "Xiang et al., USENIX Security 2022", "Levine and Feizi, NeurIPS 2020"
CHIANG, LINEAR = "Chiang et al., ICLR 2020: places are finitely many", "a linear function on a box"
LOCAL = "a gradient is local, and 0 where units are dead"


def run(sizes: tuple[int, ...] = (1, 2), examples: int = 60, updates: int = 200) -> Finding:
    """Attack and certify a network, and the same one behind pairs of masks, against patches of some sizes."""
    batch = next(load_data("digits").batches(examples))
    found = [_judged(size, batch, updates) for size in sizes]
    model = _network(sizes[0], updates)
    shown = [_margins(model, take(batch, torch.tensor([place])), sizes[0]) for place in range(len(batch))]
    # The first image that a patch breaks at few of its places.
    place = next((i for i, left in enumerate(shown) if 0 < (left < 0).double().mean() < 0.2), 0)
    data = {
        "sizes": list(sizes),
        "found": found,
        "image": batch.x[place, 0].tolist(),
        "margins": shown[place].tolist(),
    }
    return Finding(tuple(_claims(sizes, found, batch)), data)


def _masks(patch: int) -> Masks:
    return Masks(SIDE, SIDE, patch, NUMBER)


def _network(patch: int, updates: int) -> nn.Module:
    """Trained on digits behind two masks each, at places drawn anew for each update."""
    train, masks = next(load_data("digits", split="train").batches(2000)), _masks(patch)
    model = nn.Sequential(nn.Flatten(), *dense(SIDE * SIDE, 32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for update in range(updates):
        drawn = Draws(0, train.index, draw=update).bits(2) * len(masks.kept) >> 32
        kept = masks.kept[drawn].all(1, keepdim=True)
        optimizer.zero_grad()
        cross_entropy(model(masks.hide(train.x.float(), kept)), train.y).backward()
        optimizer.step()
    return model.eval()


def _judged(size: int, batch: Batch, updates: int) -> dict[str, Any]:
    """Clean, certified and robust accuracy of a network and of its defence; how places compare."""
    model, threat = _network(size, updates), Patch(size)
    x, y = batch.x.float(), batch.y
    plain = audit(model, (x, y), threat, protocol="fast", certify="complete")
    defended = DoublyMasked(model, _masks(size))
    guarded = audit(defended, (x, y), threat, protocol="quick", certify="own")
    right = model(x).argmax(1) == y
    few, all_ = (craft(PatchPGD(looks, 1, 1), model, x[right], y[right], threat=threat).success for looks in (1, 1000))
    kept = defended.keeps(x, y, threat)
    return {
        "plain": [plain.clean_accuracy, plain.certified_accuracy, plain.robust_accuracy],
        "guarded": [guarded.clean_accuracy, guarded.certified_accuracy, guarded.robust_accuracy],
        "open": 0 if plain.certification is None else plain.certification.open,
        "by gradient": int(few.sum()),
        "by looks": int(all_.sum()),
        "turned": int(_turned(defended, x[kept][:4], y[kept][:4], threat)),
    }


def _turned(defended: nn.Module, x: Tensor, y: Tensor, threat: Patch) -> int:
    """How many of the images change their answer behind a black or white patch, at any place."""
    places, pixels = threat.places(x), threat.height * threat.width
    contents = torch.tensor(list(itertools.product((0.0, 1.0), repeat=pixels)))
    choices = torch.cat([places.repeat_interleave(len(contents), 0), contents.repeat(len(places), 1)], dim=1)
    with torch.no_grad():
        return sum(
            bool((defended(threat.apply(one.expand(len(choices), *one.shape), choices)).argmax(1) != label).any())
            for one, label in zip(x, y, strict=True)
        )


def _margins(model: nn.Module, batch: Batch, size: int) -> Tensor:
    """``(rows, columns)`` the margin of one image behind the content that its gradient wants at each place."""
    threat, x = Patch(size), batch.x.float()
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(margin(model(leaf), batch.y).sum(), leaf)
    places = threat.places(x)
    many = x.expand(len(places), -1, -1, -1)
    shown = threat.choice(many, places, threat.extreme(x, grad).expand_as(many))
    with torch.no_grad():
        left = -margin(model(threat.apply(many, shown)), batch.y.expand(len(places)))
    return left.reshape(SIDE - size + 1, -1)


def _linear_gap(batch: Batch) -> float:
    """How far the attack on a linear model is from its closed form, at most."""
    weight = Draws(1, torch.arange(1)).normal(SIDE * SIDE).reshape(1, 1, SIDE, SIDE)
    layer = nn.Linear(SIDE * SIDE, 2, dtype=torch.float64, device="meta").to_empty(device="cpu")  # draws nothing
    bias = torch.tensor([1e3, 0.0], dtype=torch.float64)
    layer.load_state_dict({"weight": torch.cat([0 * weight, weight]).flatten(1), "bias": bias})
    model = nn.Sequential(nn.Flatten(), layer)
    x, threat = batch.x[:20].double(), Patch(2, 3)
    found = craft(PatchPGD(climbs=1, steps=1), model, x, torch.zeros(len(x), dtype=torch.int64), threat=threat)
    best = [
        max(
            float(torch.where(_covered(top, left), weight.clamp_min(0), weight * one).sum())
            for top, left in threat.places(x).tolist()
        )
        for one in x
    ]
    return float((found.objective + 1e3 - torch.tensor(best)).abs().max())


def _covered(top: int, left: int) -> Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    mask[..., top : top + 2, left : left + 3] = True
    return mask


def _uncovered() -> int:
    """How many places of patches of all sizes lie inside none of their masks, for all numbers of masks."""
    missed = 0
    for patch, number in itertools.product(range(1, SIDE + 1), range(1, SIDE + 2)):
        hidden = ~Masks(SIDE, SIDE, patch, number).kept
        for top, left in itertools.product(range(SIDE - patch + 1), repeat=2):
            missed += not bool(hidden[:, top : top + patch, left : left + patch].flatten(1).all(1).any())
    return missed


def _bands_off() -> int:
    """For how many widths of patch and band the bands that meet a patch are not ``m + s - 1``, wherever it lies."""
    wrong = 0
    for patch, band in itertools.product(range(1, SIDE + 1), repeat=2):
        bands = [{(start + i) % SIDE for i in range(band)} for start in range(SIDE)]
        met = max(sum(bool(one & set(range(left, left + patch))) for one in bands) for left in range(SIDE - patch + 1))
        wrong += met != min(patch + band - 1, SIDE) or met != ColumnAblation(SIDE, band).seen(patch)
    return wrong


def _claims(sizes: tuple[int, ...], found: list[dict[str, Any]], batch: Batch) -> list[Claim]:
    first = found[0]
    claims = [
        near("linear model: the attack less the closed form, at most", LINEAR, _linear_gap(batch), 0, 1e-4),
        near("places of a patch outside every mask", XIANG, _uncovered(), 0, 0),
        near("bands of columns that meet a patch: not m + s - 1", LEVINE, _bands_off(), 0, 0),
        between(
            "1 x 1: broken at the place of the largest gradient, of those broken at all places",
            LOCAL,
            first["by gradient"] / max(first["by looks"], 1),
            high=0.95,
        ),
    ]
    for size, one in zip(sizes, found, strict=True):
        name = f"{size} x {size}"
        clean, proved, stands = one["plain"]
        guarded, certified, left = one["guarded"]
        claims += [
            near(f"{name}: plain network, broken or proved but for", CHIANG, one["open"], 0, 0),
            near(f"{name}: what is proved of it less what stands", CHIANG, proved - stands, 0, 0),
            between(f"{name}: certified behind masks, less proved without", XIANG, certified - proved, 0.1),
            between(f"{name}: not broken behind masks, less certified", XIANG, left - certified, 0.0),
            near(f"{name}: certified answers that black or white patches turn", XIANG, one["turned"], 0, 0),
            between(f"{name}: clean accuracy that the masks cost", XIANG, clean - guarded, high=0.1),
        ]
    return claims


def draw(data: dict[str, Any]) -> "Figure":
    """An image and what a patch at each place leaves of its margin; accuracies with and without the defence."""
    figure, (image, map_, bars) = canvas("One small patch anywhere, and what can be proved", 3.2, 3.8, 5.2)
    image.imshow(np.array(data["image"]), cmap="gray_r", vmin=0, vmax=1)
    image.set(xticks=(), yticks=())
    image.grid(visible=False)
    label(image, "a digit", "", "")
    margins = np.array(data["margins"])
    shown = map_.imshow(margins, cmap="RdBu", vmin=-abs(margins).max(), vmax=abs(margins).max())
    map_.grid(visible=False)
    figure.colorbar(shown, ax=map_, shrink=0.75)
    size = data["sizes"][0]
    label(map_, f"its margin behind a {size} x {size} patch there", "left", "top")
    for number, one in enumerate(data["found"]):
        for shift, key, colour in ((-0.2, "plain", BLUE), (0.2, "guarded", GREEN)):
            clean, proved, stands = one[key]
            at, text = number + shift, {"plain": "plain network", "guarded": "behind pairs of masks"}[key]
            bars.bar(at, stands, 0.36, color=colour, alpha=0.3)
            bars.bar(at, proved, 0.36, color=colour, label=text if not number else None)
            bars.plot([at - 0.18, at + 0.18], [clean, clean], color=INK, lw=1.4)
            bars.annotate(f"{proved:.2f}", (at, proved), (0, 3), textcoords="offset points", ha="center", color=INK)
    bars.axhline(0, color=GREY, lw=1)
    bars.set(xticks=range(len(data["sizes"])), xticklabels=[f"{n} x {n}" for n in data["sizes"]], ylim=(0, 1.15))
    bars.legend(frameon=False, fontsize=9, ncols=2, loc="upper center")
    label(bars, "proved (full), not broken (pale), clean (line)", "patch", "accuracy")
    return figure
