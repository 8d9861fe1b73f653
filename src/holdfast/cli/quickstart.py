"""``holdfast quickstart``: the main job on bundled data, start to finish."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from holdfast.audit import AuditResult, audit
from holdfast.cli.progress import watching
from holdfast.data import load_data
from holdfast.errors import RunError
from holdfast.files import is_file
from holdfast.models import Model
from holdfast.models.networks import digits_conv
from holdfast.report.terminal import percent, show_result
from holdfast.threats import Ball, Linf
from holdfast.train import Method, PGDTraining, Recipe, Standard, fit
from holdfast.train.checkpoint import write_tensors
from holdfast.words import plain

__all__ = ["run_quickstart"]

TRAINED = Linf(0.15)
# Networks of this kind and size can be decided exactly there, in seconds.
EXACT = Linf(0.05)
RECIPE = Recipe(epochs=30, batch_size=64, schedule="cosine")
FACTORY = "holdfast.models.networks:digits_conv"
_CURE = "give an --out folder that can be written"


def run_quickstart(out: Path, seed: int, console: Console, progress: Console) -> None:
    """Train an ordinary and an adversarially trained network on ``digits``, audit both, and show the brackets."""
    # Networks this small gain nothing from threads, and on busy cores lose a great deal.
    torch.set_num_threads(1)
    methods: dict[str, Method] = {"ordinary": Standard(), "adversarial": PGDTraining(TRAINED)}
    console.print(
        f"Two networks of the same shape learn scikit-learn's handwritten digits (8x8 grey images), one ordinarily and "
        f"one on inputs that an adversary changed by up to {TRAINED.eps:g} in every pixel ({TRAINED.name}, PGD). "
        "Then both are audited on 500 digits that neither has seen: under that threat by attacks, and under "
        f"{EXACT.name} by attacks and proofs.\n"
    )
    rows: list[tuple[str, Ball, AuditResult]] = []
    for name, method in methods.items():
        weights = out / name / "weights.safetensors"
        _train(method, weights, name, seed, progress)
        for threat, certify in ((TRAINED, "none"), (EXACT, "complete")):
            with watching(progress, f"auditing the {name} network under {threat.name}") as show:
                result = audit(
                    Model(FACTORY, weights),
                    "digits",
                    threat,
                    run=out / name / f"{threat.eps:g}",
                    seed=seed,
                    certify=certify,
                    on_progress=show,
                )
            rows.append((name, threat, result))
        console.rule(f"the {name} network under {EXACT.name}")
        show_result(result, console)
        console.print()
    console.print(_brackets(rows))
    trained = out / "adversarial" / "weights.safetensors"
    console.print(
        "\nThe same audit by hand, and on your own model and data:\n\n"
        f"  holdfast audit --model {FACTORY} --weights {plain(shlex.quote(str(trained)))} \\\n"
        f"      --data digits --threat {EXACT.name} --certify complete --run DIR\n"
        "  holdfast audit --model FILE.py:FACTORY --weights FILE --data npz:FILE --threat linf:8/255 --run DIR",
        soft_wrap=True,
    )


def _train(method: Method, weights: Path, name: str, seed: int, progress: Console) -> None:
    with _writing(weights):
        # Before the work: later is too late to hear of it.
        weights.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), progress.status(f"training the {name} network") as status:
        torch.manual_seed(seed)
        network = digits_conv()
        fit(
            network,
            load_data("digits", split="train"),
            method,
            TRAINED,
            RECIPE,
            seed=seed,
            on_progress=lambda now: status.update(
                f"training the {name} network: step {now.step} of {now.steps}, loss {now.loss:.3f}"
            ),
        )
    with _writing(weights):
        before = weights.read_bytes() if is_file(weights) else b""
        write_tensors(weights, network.state_dict(), _CURE)
        if weights.read_bytes() != before:
            # Verdicts on other weights (another seed or machine) are no use to this network's audits.
            for store in weights.parent.glob("*/run.sqlite"):
                store.unlink()


@contextmanager
def _writing(weights: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{weights}: {error.strerror or error}; {_CURE}") from error


def _brackets(rows: list[tuple[str, Ball, AuditResult]]) -> Table:
    table = Table("network", title="In short", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for header in ("threat", "clean", "robust: proved", "not broken", "worst class"):
        table.add_column(header, justify="right")
    for name, threat, result in sorted(rows, key=lambda row: row[1].name):
        lower, upper = result.bracket
        worst = next(row for row in result.per_class if row.label == result.worst_class)
        proved = "-" if result.certified_accuracy is None else percent(lower)
        table.add_row(
            name, threat.name, percent(result.clean_accuracy), proved, percent(upper), percent(worst.robust_accuracy)
        )
    return table
