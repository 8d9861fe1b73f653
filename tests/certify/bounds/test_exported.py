"""What works in place is captured as it computes, wherever the value is read again, or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.programs import Program
from helpers.tiny import Fn
from helpers.zoo import seeded
from holdfast import Linf, ModelError, certify
from holdfast.certify.bounds.capture import capture
from holdfast.certify.bounds.exported import export, unwritten

GRID = torch.cartesian_prod(*[torch.linspace(-3, 3, 7, dtype=torch.float64)] * 3)
POINTS = torch.cat([GRID * scale for scale in (0.01, 1.0, 100.0)])


def agree(model, points=POINTS, *, rows=2):
    """The captured graph says what the model does, of a batch and of single inputs."""
    with torch.no_grad():
        graph = capture(model, points[100 : 100 + rows])
        expected, found = model(points.clone()), graph(points)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for x in points[::50]:
            torch.testing.assert_close(graph(x[None]), model(x[None].clone()), rtol=1e-9, atol=1e-9)


def test_random_programs_are_captured_as_they_compute_or_refused():
    captured = 0
    for seed in range(20):
        try:
            agree(Program(seed))
        except ModelError:
            continue
        captured += 1
    assert captured >= 13


def _buffer(x, fc):
    out = torch.zeros(len(x), 4, dtype=x.dtype)
    out[:, 0] = fc(x)[:, 0].relu()
    out[:, 1:3] = fc(x)[:, 2:].abs()
    return out


def _blank(x, fc):
    out = torch.empty(len(x), 2, dtype=x.dtype)
    out[:, 1], out[:, 0] = fc(x)[:, 0].relu(), fc(x)[:, 1]
    return out


def _on(write):
    """``write`` changes the hidden values under another name."""

    def forward(x, fc):
        h = fc(x)
        write(h)
        return h

    return forward


def _set(h, place, value):
    h[place] = value


IN_PLACE = {
    "view": _on(lambda h: h.view(-1, 2, 2).relu_()),
    "flattened": _on(lambda h: nn.ReLU(inplace=True)(h.flatten(1))),
    "unflattened": _on(lambda h: h.unflatten(1, (2, 2))[:, 1].relu_()),
    "columns": _on(lambda h: (h[:, 0].relu_(), h[:, 2].tanh_())),
    "slice": _on(lambda h: h[:, 1:3].clamp_(-1, 1)),
    "transposed": _on(lambda h: h.t()[2].abs_()),
    "chunk": _on(lambda h: h.chunk(2, 1)[1].relu_()),
    "unbound": _on(lambda h: h.unbind(1)[3].neg_()),
    "squeezed": _on(lambda h: h.unsqueeze(1).squeeze(1).relu_()),
    "reshaped": _on(lambda h: h.reshape(-1, 1, 4).relu_()),
    "detached": _on(lambda h: h.detach().relu_()),
    "dropout left out": _on(lambda h: functional.dropout(h, 0.5, False).relu_()),
    "dropout in place": _on(lambda h: functional.dropout(h, 0.5, False, True).relu_()),
    "type as": _on(lambda h: h.type_as(h)[:, 0].relu_()),
    "diagonal": _on(lambda h: h.view(-1, 2, 2).diagonal(0, 1, 2).relu_()),
    "out": _on(lambda h: torch.mul(h, 2, out=h)),
    "column assigned": _on(lambda h: _set(h, (slice(None), 0), h[:, 1].relu())),
    "columns by index": _on(lambda h: _set(h, (slice(None), [0, 2]), h[:, [1, 3]].relu())),
    "filled": _on(lambda h: h[:, 1].fill_(0.5)),
    "copied": _on(lambda h: h[:, 1:].copy_(h[:, :-1].relu())),
    "masked": _on(lambda h: h.masked_fill_(torch.tensor([True, False, False, True]), 0.5)),
    "zeros filled": _buffer,
    "new memory filled": _blank,
    "powers": _on(lambda h: h[:, :2].pow_(2)),
    "a shape of its own": lambda x, fc: fc(x).unsqueeze_(1).relu_().squeeze_(1),
    "the input": lambda x, fc: fc(x.sub_(0.5)) + fc(x[:, :3].relu_()),
    "a view of the input": lambda x, fc: (x[:, 0].relu_(), fc(x))[1],
    "a sum": lambda x, fc: fc(x).add_(fc(x).relu_()).mul_(2),
    "a constant": lambda x, fc: fc(x) + torch.ones(4, dtype=x.dtype).mul_(3),
}


@pytest.mark.parametrize("name", list(IN_PLACE))
def test_what_is_written_is_read(name):
    agree(Fn(IN_PLACE[name], seeded(lambda: nn.Linear(3, 4, dtype=torch.float64))))


def test_a_relu_on_a_view_is_in_every_certificate():
    """relu(x) + relu(3 - x) against 3.5: equal to 3 on [0, 3], and more than 3.5 below -0.5."""
    first, last = nn.Linear(1, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        first.bias.copy_(torch.tensor([0.0, 3.0]))
        last.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        last.bias.copy_(torch.tensor([3.5, 0.0]))

    def forward(x, first, last):
        h = first(x)
        h.view(-1, 2).relu_()
        return last(h)

    for eps, verdicts in ((1.4, {"certified"}), (2.0, {"broken", "undecided"})):
        x, y = torch.tensor([[1.0]]), torch.tensor([0])
        (found,) = certify(Fn(forward, first, last), x, y, Linf(eps, box=None), method="alpha-crown")
        assert found.verdict in verdicts


def test_what_nobody_reads_again_needs_no_rewriting():
    """As in most residual networks: torch rewrites whole programs, which takes longer than to export them."""
    block = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True)).eval()

    def forward(x, block):
        y = block(x)
        y += x
        return nn.functional.relu_(y).flatten(1)

    names = [str(node.target) for node in unwritten(export(Fn(forward, block), torch.ones(1, 2, 4, 4))).graph.nodes]
    assert "aten.batch_norm.default" in names
    assert {"aten.add.Tensor", "aten.relu.default"} < set(names)


class Stateful(nn.Module):
    """Counts its calls, and adds to its answer what ``use`` makes of a buffer, a constant or a parameter."""

    def __init__(self, use):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("shift", torch.zeros(4))
        self.fc = seeded(lambda: nn.Linear(3, 4))
        self.constant = torch.zeros(4)
        self.use = use

    def forward(self, x):
        self.calls += 1
        return self.fc(x) + self.use(self)


def test_a_counter_is_no_state_that_matters():
    model = Stateful(lambda model: 0).eval()
    x = torch.ones(2, 3)
    torch.testing.assert_close(capture(model, x)(x), model(x))
    assert model.calls == 1


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model: model.shift.add_(1), "changes its buffer 'shift' in place"),
        (lambda model: (model.shift[:2].add_(1), model.shift)[1], "changes its buffer 'shift' in place"),
        (lambda model: model.constant.add_(1), "changes its constant 'constant' in place"),
        (lambda model: model.fc.weight.add_(1).sum(), "changes its parameter 'fc.weight' in place"),
    ],
)
def test_state_is_refused(use, message):
    model = Stateful(use).eval().requires_grad_(False)
    weight = model.fc.weight.clone()
    with pytest.raises(ModelError, match=message):
        capture(model, torch.ones(2, 3))
    assert model.fc.weight.equal(weight)


def test_another_precision_on_the_way_is_refused():
    def forward(x, fc):
        out = torch.zeros(len(x), 4, dtype=torch.float32)
        out[:, 0] = fc(x)[:, 0]
        return out.double() + fc(x)

    with pytest.raises(ModelError, match=r"float32|no bound is known"):
        capture(Fn(forward, nn.Linear(3, 4).double()), torch.ones(2, 3).double())
