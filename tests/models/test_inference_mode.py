"""Called inside ``torch.inference_mode()`` or ``torch.no_grad()``, everything answers as it does outside."""

import copy

import pytest
import torch

import holdfast
from helpers.attacks import snapshot
from helpers.zoo import Standardised, mlp, uniform
from holdfast import APGD, PGD, Linf, ModelError
from holdfast.attacks import FAB
from holdfast.certify import Smoothed, certify, exact_distance, output_bounds, parse_vnnlib, verify
from holdfast.models.query import Query
from holdfast.tasks.objectives import margin
from holdfast.train import train

MODES = {"inference": torch.inference_mode, "no gradients": torch.no_grad}
THREAT = Linf(0.05)


NET = Standardised(mlp(), in_place=False)


def examples():
    x = uniform(24, 6, seed=1)
    return x, NET(x).argmax(1)


def attacked(attack):
    return lambda x, y, threat: [attack(NET, x, y, threat=threat).x_adv]


def queried(x, y, threat):
    with Query(NET, batch_size=16) as query:
        y = y[:16].clone()  # an objective's own tensors are its own business
        answer = query.gradient(x[:16], lambda logits: margin(logits, y))
        return [answer.grad, *query.jacobian(x[:16]), query.logits(x[:16]), query.bare_logits(x)]


def audited(x, y, threat):
    found = holdfast.audit(NET, (x, y), threat, protocol="quick", certify="complete")
    return [found.bracket, found.verdicts, found.stages, found.diagnostics]


def trained(method):
    def run(x, y, threat):
        settings = {"epochs": 1, "batch_size": 8, "validation": 4}
        with torch.inference_mode(False):
            net = copy.deepcopy(NET)
        found = train(net, (x, torch.arange(24) % 4), threat, method=method, settings=settings)
        return [*found.losses, *(parameter.detach() for parameter in found.model.parameters())]

    return run


def verified(x, y, threat):
    declared = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(6))
    declared += "".join(f"(declare-const Y_{i} Real)" for i in range(4))
    return [verify(NET, parse_vnnlib(f"{declared}(assert (<= Y_0 {k}))"), seconds=10).word for k in (-50, 0)]


ASKED = {
    "pgd": attacked(PGD(steps=5)),
    "apgd": attacked(APGD(steps=5, objective="dlr")),
    "fab": attacked(FAB(steps=5)),
    "query": queried,
    "audit": audited,
    "certify": lambda x, y, threat: [(c.verdict, c.bound) for c in certify(NET, x, y, threat, method="complete")],
    "bounds": lambda x, y, threat: list(vars(output_bounds(NET, x, threat, method="alpha-crown")).values()),
    "distance": lambda x, y, threat: [(d.status, d.upper) for d in exact_distance(NET, x[:3], y[:3], Linf(0.3))],
    "verify": verified,
    "smoothing": lambda x, y, threat: [Smoothed(NET, 0.1).certify(x, y, samples=200).radius],
    "training": trained("trades"),
    "training by bounds": trained("crown-ibp"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("asked", ASKED)
def test_answers_are_those_of_outside(asked, mode):
    expected = ASKED[asked](*examples(), THREAT)
    with MODES[mode]():
        # Examples and budgets made here are tensors of the mode.
        found = ASKED[asked](*examples(), Linf(torch.full((24,), 0.05)) if asked in ("pgd", "certify") else THREAT)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode == "inference")
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_the_mode_is_given_back(error):
    with torch.inference_mode():
        try:
            with Query(NET) as query:
                assert not torch.is_inference_mode_enabled()
                query.bare_logits(uniform(4, 6))
                raise error or KeyboardInterrupt
        except (RuntimeError, KeyboardInterrupt):
            pass
        assert torch.is_inference_mode_enabled()


def test_a_network_of_a_file_is_made_outside(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(6, 4)\n")
    with torch.inference_mode():
        found = holdfast.audit(f"{tmp_path / 'net.py'}:net", examples(), THREAT, protocol="quick")
    assert found.examples == 24


def test_a_model_made_inside_is_refused_with_its_cure():
    with torch.inference_mode():
        model = mlp()
    before = snapshot(model)
    for ask in (lambda: PGD()(model, *examples(), threat=THREAT), lambda: certify(model, *examples(), THREAT)):
        with pytest.raises(ModelError, match=r"'1.weight' was made inside torch.inference_mode\(\).* outside of it"):
            ask()
    assert snapshot(model) == before
