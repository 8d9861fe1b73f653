"""The ``holdfast`` command.

Exit codes: 0 done; 1 a fault of holdfast; 2 a setting or a usage error; 3 the model; 4 the data; 5 the run
folder; 6 a proof of holdfast's own is false; 130 interrupted.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer
from typer.core import TyperGroup

from holdfast.arguments import choice, real
from holdfast.cli import options
from holdfast.cli.terminal import Terminal
from holdfast.errors import HoldfastError, SettingError
from holdfast.processes import ALONE, Processes
from holdfast.words import plain

if TYPE_CHECKING:
    from holdfast.audit import Certification
    from holdfast.engine import Knowledge
    from holdfast.models import Model
    from holdfast.threats import Threat

__all__ = ["app"]

T = TypeVar("T")
# What is made of options, once it is asked for.
Asked = Callable[[], T]

INTERRUPTED = 130
# Typer brings a click of its own in some versions, so its errors are known by this one.
_UsageError: Any = typer.BadParameter.__base__

_out = Terminal()
_err = Terminal(stderr=True)


class _Commands(TyperGroup):
    """The commands, with usage errors in one line like all others."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        with _usage():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: Any) -> Any:
        with _usage():
            return super().invoke(ctx)


@contextmanager
def _usage() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        command = "holdfast" if error.ctx is None else error.ctx.command_path
        words = " ".join(error.format_message().split()).removesuffix(".")
        fault = SettingError(f"{words}; {command} --help lists what there is")
        _err.print(f"holdfast: {fault}", soft_wrap=True)
        raise typer.Exit(fault.exit_code) from error


app = typer.Typer(
    name="holdfast",
    cls=_Commands,
    help="Attack, certify, train and audit models against inputs chosen to break them.",
    epilog="Exit codes: 0 done, 1 a fault of holdfast, 2 settings, 3 model, 4 data, 5 run folder, 6 a false proof, "
    "130 interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@contextmanager
def _faults(kept: str) -> Iterator[Processes]:
    """Print an error in one line and exit with its code; ``kept`` says what an interruption leaves.

    What is done inside may be shared by processes that were launched together, of which the main one speaks.
    """
    processes = ALONE
    try:
        with Processes.launched() as processes:
            _out.quiet = _err.quiet = not processes.is_main
            yield processes
    except HoldfastError as error:
        _err.print(f"holdfast: {error}", soft_wrap=True)
        processes.part()
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        _err.print(f"holdfast: interrupted; {plain(kept)}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if version:
        from importlib import metadata

        _out.print(f"holdfast {metadata.version('holdfast')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        _err.print(context.get_help(), soft_wrap=True)
        raise typer.Exit(SettingError.exit_code)


@app.command()
@options.asking(model=options.model, threat=options.threat, limits=options.limits)
def audit(
    *,
    model: "Asked[Model]",
    data: options.Data,
    threat: "Asked[Threat]",
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol", help="quick, fast, standard, rand, blackbox, nearest or a .toml file; quick by default"
        ),
    ] = None,
    knowledge: Annotated[
        str, typer.Option("--knowledge", help="what a query tells the attacker: gradient, score or decision")
    ] = "gradient",
    max_forwards: Annotated[
        int | None, typer.Option("--max-forwards", help="the attacks' queries an example", min=0)
    ] = None,
    certify: options.Certify = "none",
    limits: "Asked[Certification]",
    split: options.Split = "test",
    examples: options.Examples = None,
    group: Annotated[
        str | None, typer.Option("--group", help="a column of the data's table by which to tell results apart")
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="folder for audit.json and run.sqlite; the same command resumes it")
    ] = None,
    save_inputs: Annotated[
        bool, typer.Option("--save-inputs", help="write the adversarial inputs to adversarial.npz in the run's folder")
    ] = False,
    no_adapt: Annotated[
        bool, typer.Option("--no-adapt", help="the protocol and nothing else, also where its gradients are false")
    ] = False,
) -> None:
    """Measure how a model stands up to an adversary: a bracket of robust accuracy, and what to know about it."""
    kept = "nothing was kept (give --run DIR to be able to resume)"
    if run is not None:
        kept = f"every verdict so far is kept in {run}: the same command goes on from there"
    with _faults(kept) as processes:
        from holdfast.audit import audit as run_audit
        from holdfast.cli.progress import watching
        from holdfast.report import show_result

        with watching(_err, "auditing") as show:
            result = run_audit(
                model(),
                data,
                threat(),
                protocol=protocol,
                knowledge=cast("Knowledge", knowledge),
                max_forwards=max_forwards,
                certify=replace(limits(), method=certify),
                split=split,
                examples=examples,
                group=group,
                seed=seed,
                batch_size=batch_size,
                run=run,
                save_inputs=save_inputs,
                adapt=not no_adapt,
                processes=processes,
                on_progress=show,
            )
        show_result(result, _out)
        if run is not None:
            _out.print(
                f"\n{plain(run / 'audit.json')} holds the result, "
                f"{plain(run / 'run.sqlite')} a verdict for each example",
                soft_wrap=True,
            )


@app.command()
@options.asking(model=options.model, limits=options.limits)
def certify(
    *,
    method: Annotated[
        str,
        typer.Option("--method", help="ibp, crown, alpha-crown, complete or smoothing", show_default=False),
    ],
    model: "Asked[Model]",
    data: options.Data,
    threat: Annotated[
        str | None, typer.Option("--threat", help="what may be done to an input, such as linf:8/255; not for smoothing")
    ] = None,
    box: options.BoxText = "0,1",
    limits: "Asked[Certification]",
    split: options.Split = "test",
    examples: options.Examples = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for what is found; the same command resumes it")
    ] = None,
    alpha: Annotated[
        float, typer.Option("--alpha", help="the chance that a certificate of smoothing is false")
    ] = 0.001,
    samples: Annotated[
        int, typer.Option("--samples", help="the most that smoothing asks, an example", min=1)
    ] = 100_000,
    procedure: Annotated[
        str, typer.Option("--procedure", help="of smoothing: sequential, which stops early, or fixed")
    ] = "sequential",
) -> None:
    """Prove how many examples no admissible change turns into a mistake; or certify the smoothed classifier."""
    kept = "nothing was kept (give --out DIR to be able to resume)"
    if out is not None:
        kept = f"what was certified so far is kept in {out}: the same command goes on from there"
    with _faults(kept) as processes:
        from holdfast.certify.certificate import RUNS
        from holdfast.cli.certify import PROCEDURES, Noise, prove, smooth

        # Also those that the method does not ask for: a word that means nothing was meant for something.
        asked = replace(limits(), method=method)
        options.read_box(box)
        choice("--procedure", procedure, PROCEDURES)
        choice("--certify-arithmetic", asked.arithmetic, RUNS)
        real("--certify-seconds", asked.seconds)
        if not 0 < alpha < 1:
            raise SettingError(f"--alpha: a chance of error lies between 0 and 1, got {alpha:g}")
        part: dict[str, Any] = {"split": split, "examples": examples, "seed": seed, "batch_size": batch_size}
        if method == "smoothing":
            if processes.count > 1:
                raise SettingError(
                    "--method smoothing: one process writes the log; share the examples by audit --certify smoothing"
                )
            if threat is not None or asked.budgets:
                raise SettingError("--threat, --certify-budgets: smoothing finds the radius itself; leave them out")
            noise = Noise(asked.sigma, alpha, samples, procedure)
            smooth(model(), data, noise, out, _out, _err, **part)
        else:
            if threat is None:
                raise SettingError(f"--threat: {method} proves something about a threat; write linf:8/255")
            if asked.sigma is not None:
                raise SettingError(f"--sigma: {method} proves without noise; leave it out, or choose smoothing")
            allowed = options.read_threat(threat, box)
            prove(model(), data, allowed, asked, out, _out, _err, processes=processes, **part)


@app.command()
@options.asking(model=options.model, threat=options.threat)
def attack(
    name: Annotated[
        str,
        typer.Argument(
            metavar="ATTACK",
            help="fgsm, pgd, apgd, fab, square ...; docs/reference/attacks.md lists them",
            show_default=False,
        ),
    ],
    model: "Asked[Model]",
    data: options.Data,
    threat: "Asked[Threat]",
    out: Annotated[Path, typer.Option("--out", help="folder for adversarial.npz and audit.json", show_default=False)],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a setting of the attack, such as steps=100; repeatable")
    ] = None,
    split: options.Split = "test",
    examples: options.Examples = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
) -> None:
    """Craft adversarial inputs with one attack and save them."""
    with _faults(f"every input so far is kept in {out}: the same command goes on from there") as processes:
        from holdfast.audit import audit as run_audit
        from holdfast.audit import single
        from holdfast.cli.progress import watching
        from holdfast.report.terminal import show_diagnostics

        settings = dict(_setting(text) for text in set_ or [])
        with watching(_err, name) as show:
            result = run_audit(
                model(),
                data,
                threat(),
                protocol=single(name, settings),
                split=split,
                examples=examples,
                seed=seed,
                batch_size=batch_size,
                run=out,
                save_inputs=True,
                adapt=False,
                processes=processes,
                on_progress=show,
            )
        broken, wrong = result.verdicts["broken"], result.verdicts["misclassified"]
        if right := result.examples - wrong:
            found = f"{broken} of {right} correctly classified examples broken ({wrong} more were wrong to begin with)"
        else:
            found = f"nothing was attacked: all {wrong} examples are misclassified as they are"
        _out.print(f"{found}; inputs in {plain(out / 'adversarial.npz')}", soft_wrap=True)
        show_diagnostics(result, _out, ("one logit", "budget"))


@app.command()
def verify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="net.onnx, or whatever --model of other commands takes", show_default=False
        ),
    ],
    prop: Annotated[
        Path,
        typer.Argument(metavar="PROPERTY", help="a .vnnlib file, which describes the unsafe set", show_default=False),
    ],
    weights: options.Weights = None,
    weights_key: options.WeightsKey = None,
    trust: options.Trust = False,
    sizes: options.Sizes = None,
    timeout: Annotated[float, typer.Option("--timeout", help="the time limit in seconds", min=0)] = 600.0,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="a file for what is printed, as the competition asks")
    ] = None,
) -> None:
    """Decide a VNN-LIB property: unsat (it holds), sat (and a counterexample), timeout or unknown."""
    with _faults("nothing was decided"):
        from holdfast.cli.verify import decide

        network = {"weights": weights, "weights_key": weights_key, "trust": trust, "sizes": options.parse_sizes(sizes)}
        decide(model, network, prop, timeout, seed, out, _out, _err)


@app.command()
def train(
    data: options.Data,
    threat: options.ThreatText,
    run: Annotated[
        Path,
        typer.Option(
            "--run",
            help="folder for weights.safetensors, train.json and the audit; the same command resumes it",
            show_default=False,
        ),
    ],
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            help="mlp, conv-small, lenet5, preact-resnet18, wide-resnet-28-10, timm:NAME, torchvision:NAME or hf:NAME",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="a network of your own instead: file.py:factory or package.module:factory"),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="pgd, trades, n-fgsm, ibp, awp:trades ...; docs/reference/training.md lists them"
        ),
    ] = "awp:pgd",
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="passes over the examples; the recipe's by default")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="a setting of the method or the recipe, such as steps=10 or lr=0.01; repeatable"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="weights to start from; random ones otherwise")
    ] = None,
    weights_key: options.WeightsKey = None,
    trust: options.Trust = False,
    examples: options.Examples = None,
    box: options.BoxText = "0,1",
    seed: options.Seed = 0,
    track: Annotated[
        list[str] | None, typer.Option("--track", help="tell tensorboard, mlflow or wandb how it goes; repeatable")
    ] = None,
    protocol: Annotated[str, typer.Option("--audit", help="the protocol of the audit at the end, or none")] = "fast",
    audited: Annotated[str, typer.Option("--audit-examples", help="START:STOP, the test examples to audit")] = ":1000",
    certify: Annotated[
        str | None,
        typer.Option(
            "--certify",
            help="what the audit proves with; alpha-crown for certified training, else none",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a robust model, and audit it."""
    kept = f"what was learned up to the last checkpoint is kept in {run}: the same command goes on from there"
    with _faults(kept) as processes:
        from holdfast.cli.train import run_train

        if (arch is None) == (model is None):
            raise SettingError("give --arch NAME for a network by name, or --model file.py:factory for your own")
        settings = dict(_setting(text) for text in set_ or [])
        if epochs is not None:
            settings["epochs"] = str(epochs)
        run_train(
            cast("str", arch or model),
            data,
            options.read_threat(threat, box),
            run,
            _out,
            _err,
            typed=["--threat", threat, "--box", box],
            protocol=protocol,
            certify=certify,
            audited=audited,
            processes=processes,
            track=track or [],
            method=method,
            settings=settings,
            weights=weights,
            weights_key=weights_key,
            trust=trust,
            examples=examples,
            seed=seed,
        )


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="folder for the networks and their audits")] = Path("quickstart"),
    seed: options.Seed = 0,
) -> None:
    """Train two small networks on bundled handwriting, one ordinarily and one adversarially, and audit both."""
    with _faults(f"what is finished is kept in {out}"):
        from holdfast.cli.quickstart import run_quickstart

        run_quickstart(out, seed, _out, _err)


@app.command()
def lab(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="an experiment, or all; without it they are listed")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="folder for figures, data and a page of them all")] = None,
) -> None:
    """Run the field's claims as experiments: what is expected, what is measured, and the verdict."""
    with _faults("the experiments that are finished are kept" if out else "nothing was kept (give --out DIR)"):
        from holdfast.cli.lab import list_experiments, run_experiments

        if name is None:
            list_experiments(_out)
        else:
            run_experiments(name, out, _out, _err)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SettingError(f"--set: {text!r} is not NAME=VALUE; write steps=100")
    return name.strip(), value.strip()


if __name__ == "__main__":
    sys.exit(app())
