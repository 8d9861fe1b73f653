"""Checks of gradients: each fires on a model that is broken in its way, and on no honest one."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.zoo import Answering, convnet, mlp, seeded, uniform
from holdfast.audit.custom import find_protocol
from holdfast.audit.diagnosis import Subject, examine_subject
from holdfast.audit.result import Diagnostic
from holdfast.data import Batch
from holdfast.models.bpda import BPDA
from holdfast.models.query import Query
from holdfast.threats import L0, L1, L2, Ball, Linf, Spatial, Threat


class Changed(nn.Module):
    """What a function makes of a network and its input."""

    def __init__(self, net: nn.Module, answer: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.answer = net, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.net, x)


class Backward(torch.autograd.Function):
    """The identity, with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.back(grad), None


def backward(back: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda net, x: net(Backward.apply(x, back))


def examine(model: nn.Module, x: Tensor, threat: Threat, protocol: str = "quick") -> dict[str, Diagnostic]:
    """What all checks find, on the inputs and the model's own answers."""
    with Query(model) as query:
        batch = Batch(torch.arange(len(x)), x, query.bare_logits(x).argmax(1))
        subject = Subject.of(query, threat, find_protocol(protocol, threat), batch, 0)
        return {found.name: found for found in examine_subject(subject)}


def verdicts(model: nn.Module, x: Tensor, threat: Threat) -> dict[str, str]:
    return {name: found.verdict for name, found in examine(model, x, threat).items()}


X = uniform(24, 3, 6, 6, seed=5)
NET = convnet()
EPS = Linf(0.1)

LIES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "flipped": backward(lambda grad: -grad),
    "ones": backward(lambda grad: torch.ones_like(grad) * grad.abs().mean()),
    "noise": backward(lambda grad: torch.randn_like(grad) * grad.abs().mean()),
    "shifted": backward(lambda grad: grad.roll(1, -1)),
    "half flipped": backward(lambda grad: grad * torch.tensor([1.0, -1.0] * 3)),
    "too long": backward(lambda grad: 1e4 * grad),
    "grad mode": lambda net, x: net(x.flip(-1)) if torch.is_grad_enabled() else net(x),
    "detached": lambda net, x: net(x.detach()) + 0 * x.sum(),
    "noise and flipped": lambda net, x: net(Backward.apply(x + 0.1 * torch.randn_like(x), lambda grad: -grad)),
    "in single precision alone": lambda net, x: net.float()(Backward.apply(x.float(), lambda grad: -grad)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_gradient_that_lies_is_found_out(lie: str) -> None:
    found = examine(Changed(NET, LIES[lie]), X, EPS)["true gradient"]
    assert found.verdict == "fail", found
    assert found.value is not None
    assert found.threshold is not None
    assert found.value > found.threshold
    assert "BPDA" in found.advice


def test_what_lies_in_half_precision_is_found_out_and_what_does_not_is_not() -> None:
    honest, lying = (
        Changed(NET, lambda net, x: net(x).half().float()),
        Changed(NET, lambda net, x: net(Backward.apply(x.half().float(), lambda grad: -grad))),
    )
    assert examine(honest, X, EPS)["true gradient"].verdict != "fail"
    assert examine(lying, X, EPS)["true gradient"].verdict == "fail"


HONEST: dict[str, nn.Module] = {
    "pooling": NET,
    "noise of its own": Changed(NET, lambda net, x: net(x + 0.1 * torch.randn_like(x))),
    "dropout": Changed(NET, lambda net, x: net(torch.dropout(x, 0.2, True))),
    "not in float64": Changed(NET, lambda net, x: net.float()(x.float())),
    "large logits": Changed(NET, lambda net, x: 1e6 * net(x)),
    "small logits": Changed(NET, lambda net, x: 1e-6 * net(x)),
    "clamped input": Changed(NET, lambda net, x: net(x.clamp(0, 1))),
    "log-softmax": Changed(NET, lambda net, x: net(x).log_softmax(1)),
    "smooth": Changed(NET, lambda net, x: functional.softplus(net(x))),
    "float64": convnet().double(),
}


@pytest.mark.parametrize("model", HONEST)
@pytest.mark.parametrize("threat", [Linf(0.1), L2(1.0)], ids=lambda threat: threat.name)
def test_honest_gradients_raise_no_alarm(model: str, threat: Ball) -> None:
    found = examine(HONEST[model], X, threat)
    allowed = {"random model"}
    assert {name for name, one in found.items() if one.verdict in ("warn", "fail")} <= allowed, found
    assert found["true gradient"].verdict == "pass"


def test_inputs_on_a_kink_are_no_lie() -> None:
    """A background of zeros makes all ties in pooling, and the box's end is one of a clamped input."""
    x = X * (X > 0.7)
    for model in (NET, HONEST["clamped input"]):
        assert examine(model, x, EPS)["true gradient"].verdict == "pass"


@pytest.mark.parametrize(
    "threat", [L1(2.0), L0(3), Linf(math.inf), Linf(torch.linspace(0.05, 0.2, 24)), Spatial(10, 1)], ids=str
)
def test_every_kind_of_set_is_looked_at(threat: Threat) -> None:
    protocol = "nearest" if threat.name == "linf:inf" else "quick"
    with_lie = examine(Changed(NET, LIES["flipped"]), X, threat, protocol)
    assert with_lie["true gradient"].verdict == "fail"
    assert examine(NET, X, threat, protocol)["true gradient"].verdict == "pass"


def test_no_budget_gives_nothing_to_look_at() -> None:
    assert "true gradient" not in examine(NET, X, Linf(0.0))


def test_a_gradient_of_0_is_found() -> None:
    assert verdicts(Changed(NET, lambda net, x: net((8 * x).round() / 8)), X, EPS)["zero gradient"] == "fail"


def test_a_gradient_of_0_beside_the_data_is_found() -> None:
    """Values are rounded unless they are a multiple of 1/8, as they are in the data."""
    x = (8 * X).round() / 8
    model = Changed(NET, lambda net, z: net(torch.where((8 * z).round() == 8 * z, z, ((8 * z).round() / 8).detach())))
    found = examine(model, x, EPS)["zero gradient"]
    assert found.verdict == "fail"
    assert found.value == pytest.approx(1.0)


def test_a_vanished_gradient_is_found() -> None:
    model = Changed(NET, backward(lambda grad: 1e-20 * grad))
    assert verdicts(model, X, EPS)["vanishing gradient"] == "fail"
    assert verdicts(Changed(NET, lambda net, x: 1e-20 * net(x)), X, EPS)["vanishing gradient"] == "pass"


def test_nan_is_seen_where_attacks_see_0() -> None:
    bad = backward(lambda grad: grad * torch.tensor([torch.nan, 1, 1, 1, 1, 1]))
    found = examine(Changed(NET, bad), X, EPS)["gradient not finite"]
    assert (found.verdict, found.value) == ("fail", 1.0)


def test_missing_entries_are_found_where_they_matter() -> None:
    mask = torch.tensor([0.0, 1, 0, 1, 0, 1])
    found = examine(Changed(NET, backward(lambda grad: grad * mask)), X, EPS)["sparse gradient"]
    assert found.verdict == "fail"
    assert found.value == pytest.approx(0.5, abs=0.1)
    unread = Changed(NET, lambda net, x: net(x * mask))
    assert verdicts(unread, X, EPS)["sparse gradient"] == "pass"


def test_no_gradient_at_all_is_a_finding_and_not_an_error() -> None:
    def outside(net: nn.Module, x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(net(x.detach()).numpy()))

    def refusing(grad: Tensor) -> Tensor:
        raise ValueError("no way\nback")

    for answer, why in ((outside, "gradient"), (backward(refusing), "no way back")):
        found = examine(Changed(NET, answer), X, EPS)
        assert found["no gradient"].verdict == "fail"
        assert why in found["no gradient"].message
        assert "BPDA" in found["no gradient"].advice
        assert "true gradient" not in found


def test_blind_protocols_and_whole_numbers_are_left_alone() -> None:
    assert not {name for name in examine(NET, X, EPS, "blackbox") if "gradient" in name}
    words = seeded(lambda: nn.Sequential(nn.EmbeddingBag(20, 5), nn.Linear(5, 3)))
    x = torch.arange(24).reshape(6, 4) % 20
    with Query(words) as query:
        logits = query.bare_logits(x)
        subject = Subject.of(query, EPS, find_protocol("quick", EPS), Batch(torch.arange(6), x, logits.argmax(1)), 0)
        assert {found.name for found in examine_subject(subject)} <= {"few classes", "random model"}


def test_a_model_that_fails_in_a_check_fails_the_check() -> None:
    def moody(model: Answering, x: Tensor) -> Tensor:
        if not torch.isin(x, CLEAN).all():
            raise RuntimeError("out of\nplace")
        return model.logits(x)

    found = examine(Answering(moody), CLEAN, EPS)
    assert found["check failed"].verdict == "fail"
    assert "out of place" in found["check failed"].message


CLEAN = uniform(16, 6, seed=3)


def test_counts_are_the_model_s_own() -> None:
    with Query(mlp()) as query:
        query.bare_logits(CLEAN)
        batch = Batch(torch.arange(16), CLEAN, query.bare_logits(CLEAN).argmax(1))
        before = query.forwards
        examine_subject(Subject.of(query, EPS, find_protocol("quick", EPS), batch, 0))
        # Three points an example, seven directions and two ends of each, in float64.
        assert query.forwards - before >= 16 * 3 * 7 * 2


def test_bpda_is_meant() -> None:
    """A part that its user differentiates as something else is told of, and is no lie."""
    found = examine(nn.Sequential(BPDA(lambda x: (2 * x).round() / 2), NET), X, EPS)["true gradient"]
    assert found.verdict == "warn"
    assert found.value is not None
    assert found.value > 0.25
