"""What is said of examples that nothing breaks: no distance is not a distance of 0."""

import io
import json
import math
import sqlite3

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

import holdfast
from holdfast import L1, L2, Linf, SettingError
from holdfast.attacks import DDN, FAB, FMN, DeepFool, Ray, ShrinkingBall
from holdfast.cli.main import app
from holdfast.report import show_result
from holdfast.report.terminal import percent


class Gate(nn.Module):
    """Class 1 where ``x0 > 1/2`` and ``x1 < 1/2``: along ``x0``, which alone has a gradient, class 0 stays where it is
    behind the gate, and elsewhere the nearest other class is at ``|x0 - 1/2|``."""

    def forward(self, x: Tensor) -> Tensor:
        z = (x[:, 0] - 0.5).where(x[:, 1] < 0.5, -1 - 0.1 * x[:, 0])
        return torch.stack([torch.zeros_like(z), z], 1)


OPEN = torch.tensor([[0.1, 0.2], [0.2, 0.2], [0.45, 0.2], [0.7, 0.2]]), torch.tensor([0, 0, 0, 1])
CLOSED = torch.tensor([[0.9, 0.8], [0.3, 0.8]]), torch.tensor([0, 1])  # the second is misclassified
DISTANCES = [0.4, 0.3, 0.05, 0.2]


def beside(x: Tensor) -> tuple[Tensor, Tensor]:
    """A box in which ``x1`` stays what it is."""
    return torch.stack([torch.zeros(()), x[0, 1]]), torch.stack([torch.ones(()), x[0, 1]])


@pytest.mark.parametrize(
    ("attack", "make"),
    [(FMN(), Linf), (FMN(), L2), (DDN(), L2), (FAB(), L1), (DeepFool(), L2), (ShrinkingBall(), Linf), (Ray(), L2)],
    ids=lambda value: getattr(value, "name", "") or value.__name__,
)  # fmt: skip
def test_an_attack_that_finds_nothing_reports_no_distance(attack, make):
    x, y = OPEN
    found = attack(Gate(), x, y, threat=make("inf", box=beside(x)))
    assert found.success.all()
    assert torch.allclose(found.distance, torch.tensor(DISTANCES), atol=0.03)
    x, y = CLOSED
    nothing = attack(Gate(), x, y, threat=make("inf", box=beside(x)))
    assert nothing.success.tolist() == [False, True]
    assert nothing.distance.tolist() == [math.inf, 0.0]
    written = json.loads(json.dumps(nothing.to_dict(), allow_nan=False))
    assert written["distance"] == [None, 0.0]


def test_under_a_finite_budget_it_is_that_of_the_best_that_was_tried():
    x, y = OPEN
    found = FMN()(Gate(), x[:1], y[:1], threat=L2(0.1, box=beside(x)))
    assert not found.success.any()
    assert 0 <= float(found.distance) <= 0.1 + 1e-6


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    run = tmp_path_factory.mktemp("endless")
    data = tuple(torch.cat(pair) for pair in zip(OPEN, CLOSED, strict=True))
    return holdfast.audit(Gate(), data, "linf:inf", protocol=[FMN()], run=run), run


def test_store_json_and_curve_tell_what_fell_from_what_did_not(audited):
    result, run = audited
    assert result.verdicts == {"robust": 1, "broken": 4, "misclassified": 1, "undecided": 0}
    rows = dict(sqlite3.connect(run / "run.sqlite").execute("SELECT idx, distance FROM examples"))
    assert [rows[i] for i in range(4)] == pytest.approx(DISTANCES, abs=0.01)
    assert (rows[4], rows[5]) == (math.inf, 0.0)
    json.loads((run / "audit.json").read_text(), parse_constant=pytest.fail)
    # A sixth falls at each distance, after the one that is wrong at 0; one stands for ever.
    shares = [share for _, share in result.curve]
    assert shares == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert [eps for eps, _ in result.curve] == pytest.approx([0, *sorted(DISTANCES)], abs=0.01)
    assert result.robust_accuracy_at(math.inf) == pytest.approx(1 / 6)
    assert result.median_distance == pytest.approx(0.25, abs=0.01)


def test_a_budget_that_is_no_number_has_no_share(audited):
    with pytest.raises(SettingError, match="NaN is no budget"):
        audited[0].robust_accuracy_at(math.nan)


def shown(result) -> str:
    console = Console(width=200, file=io.StringIO())
    show_result(result, console)
    return " ".join(console.file.getvalue().replace("│", " ").split())


def test_the_terminal_says_of_what_the_median_is(audited):
    assert "of the adversarial inputs found; 1 more examples never broken" in shown(audited[0])
    x, y = OPEN
    finite = shown(holdfast.audit(Gate(), (x, y), "linf:0.1", protocol=[FMN()]))
    assert "of the adversarial inputs found protocol" in finite
    assert "median distance - protocol" in shown(holdfast.audit(Gate(), (x, 1 - y), "linf:0.1", protocol=[FMN()]))


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.00 %"), (1e-9, "< 0.01 %"), (0.5, "50.00 %"), (1 - 1e-9, "> 99.99 %"), (1.0, "100.00 %")],
)
def test_only_none_is_0_percent_and_only_all_are_100(share, text):
    assert percent(share) == text


def named(result) -> set[str]:
    return {diagnostic.name for diagnostic in result.diagnostics if diagnostic.verdict != "pass"}


def test_data_of_one_label_do_not_make_a_model_constant():
    x = torch.rand(20, 1, generator=torch.Generator().manual_seed(0)) * 0.3
    net = nn.Sequential(nn.Linear(1, 2))
    net[0].weight.data, net[0].bias.data = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, -0.5])
    result = holdfast.audit(net, (x, torch.zeros(20).long()), "linf:0.3")
    assert result.verdicts["broken"] > 0
    assert "one label" in named(result)
    assert not {"constant model", "no better than the majority"} & named(result)
    assert "constant model" in named(holdfast.audit(net, (x, torch.arange(20) % 2), "linf:0.3"))


def test_an_attack_on_nothing_but_mistakes_counts_no_share_of_nothing(tmp_path):
    np.savez(tmp_path / "wrong.npz", x=OPEN[0].numpy(), y=1 - OPEN[1].numpy())
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    net = nn.Linear(2, 2)\n    net.weight.data = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])\n"
        "    net.bias.data = torch.tensor([0.5, -0.5])\n    return net\n"
    )
    options = ["--model", f"{tmp_path}/net.py:net", "--data", f"npz:{tmp_path}/wrong.npz", "--threat", "linf:0.1"]
    result = CliRunner().invoke(app, ["attack", "fgsm", *options, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "nothing was attacked: all 4 examples are misclassified as they are" in result.output
    assert "0 of 0" not in result.output
