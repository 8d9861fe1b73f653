"""``holdfast quickstart``: the main job on bundled data, start to finish."""

from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from holdfast.audit import AuditResult, audit
from holdfast.cli.progress import watching
from holdfast.data import load_data
from holdfast.errors import RunError
from holdfast.models.networks import digits_conv
from holdfast.report.terminal import percent, show_result
from holdfast.threats import Linf
from holdfast.train import Method, PGDTraining, Standard, fit

__all__ = ["run_quickstart"]

THREAT = Linf(0.15)
EPOCHS = 30
FACTORY = "holdfast.models.networks:digits_conv"


def run_quickstart(out: Path, seed: int, console: Console, progress: Console) -> None:
    """Train an ordinary and an adversarially trained network on ``digits``, audit both, and show the brackets."""
    # Networks this small gain nothing from threads, and on busy cores lose a great deal.
    torch.set_num_threads(1)
    methods: dict[str, Method] = {"ordinary": Standard(), "adversarial": PGDTraining(THREAT)}
    console.print(
        f"Two networks of the same shape learn scikit-learn's handwritten digits (8x8 grey images), one ordinarily and "
        f"one on inputs that an adversary changed by up to {THREAT.eps:g} in every pixel ({THREAT.name}, PGD). "
        "Then both are audited on 500 digits that neither has seen.\n"
    )
    results: dict[str, AuditResult] = {}
    for name, method in methods.items():
        weights = out / name / "weights.safetensors"
        _train(method, weights, name, seed, progress)
        with watching(progress, f"auditing the {name} network") as show:
            results[name] = audit(
                FACTORY, "digits", THREAT, weights=weights, run=out / name, seed=seed, on_progress=show
            )
        console.rule(f"the {name} network")
        show_result(results[name], console)
        console.print()
    console.print(_brackets(results))
    console.print(
        "\nThe same audit by hand, and on your own model and data:\n\n"
        f"  holdfast audit --model {FACTORY} --weights {out / 'adversarial' / 'weights.safetensors'} \\\n"
        f"      --data digits --threat {THREAT.name} --run DIR\n"
        "  holdfast audit --model FILE.py:FACTORY --weights FILE --data npz:FILE --threat linf:8/255 --run DIR",
        soft_wrap=True,
    )


def _train(method: Method, weights: Path, name: str, seed: int, progress: Console) -> None:
    with torch.random.fork_rng(devices=[]), progress.status(f"training the {name} network") as status:
        torch.manual_seed(seed)
        network = digits_conv()
        fit(
            network,
            load_data("digits", split="train"),
            method,
            epochs=EPOCHS,
            seed=seed,
            on_epoch=lambda done, loss: status.update(
                f"training the {name} network: epoch {done} of {EPOCHS}, loss {loss:.3f}"
            ),
        )
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        before = weights.read_bytes() if weights.exists() else b""
        save_file(network.state_dict(), weights)
        if weights.read_bytes() != before:
            # Verdicts on other weights (another seed or machine) are no use to this network's audit.
            (weights.parent / "run.sqlite").unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{weights}: {error.strerror or error}; give an --out folder that can be written") from error


def _brackets(results: dict[str, AuditResult]) -> Table:
    table = Table(
        "network",
        title=f"In short: {THREAT.name} on digits",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for header in ("clean", "robust: proved", "not broken", "worst class"):
        table.add_column(header, justify="right")
    for name, result in results.items():
        lower, upper = result.bracket
        worst = next(row for row in result.per_class if row.label == result.worst_class)
        shares = (result.clean_accuracy, lower, upper, worst.robust_accuracy)
        table.add_row(name, *map(percent, shares))
    return table
