"""Options that several commands share, and the settings that are made of them."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.errors import SettingError
from holdfast.threats import Box, Threat, parse_threat

if TYPE_CHECKING:
    from holdfast.audit import Certification
    from holdfast.models import Model

__all__ = [
    "BatchSize",
    "BoxText",
    "Certify",
    "Data",
    "Examples",
    "ModelName",
    "Seed",
    "Sizes",
    "Split",
    "ThreatText",
    "Trust",
    "Weights",
    "WeightsKey",
    "asking",
    "limits",
    "model",
    "parse_numbers",
    "parse_sizes",
    "read_box",
    "read_threat",
    "threat",
]

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="file.py:factory, package.module:factory, net.onnx, net.pt2, model.skops, the folder of holdfast train, "
        "or the name of one of its networks",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="a .safetensors, .pt or .pth file for the factory's module or network"),
]
WeightsKey = Annotated[
    str | None, typer.Option("--weights-key", help="the key in that file under which the weights lie, such as ema")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="let code run that a .pt2 file carries or the folder of a training run names")
]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", help="NAME=N, the size of a dimension that an ONNX file leaves free; one option for each"),
]
Data = Annotated[
    str,
    typer.Option("--data", help="digits, mnist:DIR, npz:FILE, csv:FILE?label=COLUMN or images:DIR", show_default=False),
]
ThreatText = Annotated[
    str,
    typer.Option(
        "--threat",
        help="what may be done to an input: linf:8/255, l2:0.5, l1:12, l0:10, l2:inf",
        show_default=False,
    ),
]
BoxText = Annotated[str, typer.Option("--box", help="bounds of inputs, LOWER,UPPER; 'none' for none")]
Split = Annotated[str, typer.Option("--split", help="which split of the data")]
Examples = Annotated[str | None, typer.Option("--examples", help="START:STOP, a part of the split")]
Seed = Annotated[int, typer.Option("--seed", help="of every random draw", min=0, max=2**64 - 1)]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="rows a call of the model; 64 on a CPU, 512 on a GPU", min=1)
]
Mean = Annotated[str | None, typer.Option("--mean", help="a normalisation to put before the model, a number a channel")]
Std = Annotated[str | None, typer.Option("--std", help="the scale of that normalisation, a number a channel")]

Certify = Annotated[
    str,
    typer.Option(
        "--certify", help="none, ibp, crown, alpha-crown, complete, own or smoothing: what proves examples robust"
    ),
]
CertifySeconds = Annotated[
    float, typer.Option("--certify-seconds", help="how long branch and bound may take, an example")
]
CertifyArithmetic = Annotated[
    str,
    typer.Option(
        "--certify-arithmetic",
        help="executed: proofs hold for the network as it runs, rounding included; exact: in exact arithmetic",
    ),
]
CertifyBudgets = Annotated[
    str | None, typer.Option("--certify-budgets", help="smaller budgets at which to prove too, such as 2/255,4/255")
]

Positive = Annotated[
    int | None,
    typer.Option(
        "--positive", help="of a binary model with one output, the class where it is positive: 1 or 0; else 1"
    ),
]
CertifyChecks = Annotated[
    int,
    typer.Option("--certify-checks", help="about how many proved examples to attack, as a check of the prover", min=0),
]

Sigma = Annotated[float | None, typer.Option("--sigma", help="the scale of smoothing's Gaussian noise")]


def parse_numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    """Numbers separated by commas.

    Raises
    ------
    SettingError
        When they are not.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingError(f"{name}: {text!r} is not a list of numbers; write 0.1307 or 0.49,0.48,0.45") from None


def parse_sizes(texts: list[str] | None) -> dict[str, int] | None:
    """Sizes of free dimensions, each as ``NAME=N``.

    Raises
    ------
    SettingError
        When one is written otherwise.
    """
    sizes = {}
    for text in texts or []:
        name, equals, number = text.rpartition("=")
        if not (name and equals and number.isascii() and number.isdigit() and len(number) < 10):
            raise SettingError(f"--size: {text!r} is not the size of a dimension; write --size height=224")
        sizes[name] = int(number)
    return sizes or None


def read_threat(text: str, box: str) -> Threat:
    """The threat and the box as typed.

    Raises
    ------
    SettingError
        When either makes no sense.
    """
    return parse_threat(text, read_box(box))


def read_box(text: str) -> Box | None:
    """The box as typed, where there is one.

    Raises
    ------
    SettingError
        When it makes no sense.
    """
    if text == "none":
        return None
    bounds = parse_numbers(text, "--box")
    if bounds is None or len(bounds) != 2:
        raise SettingError(f"--box: {text!r} is not LOWER,UPPER; write 0,1 or none")
    return Box(*bounds)


def model(
    model: ModelName,
    weights: Weights = None,
    weights_key: WeightsKey = None,
    trust: Trust = False,
    sizes: Sizes = None,
    mean: Mean = None,
    std: Std = None,
    positive: Positive = None,
) -> "Model":
    """The model, and how it is read and asked."""
    from holdfast.models import Model

    return Model(
        model,
        weights,
        weights_key=weights_key,
        trust=trust,
        sizes=parse_sizes(sizes),
        positive=positive,
        mean=parse_numbers(mean, "--mean"),
        std=parse_numbers(std, "--std"),
    )


def threat(threat: ThreatText, box: BoxText = "0,1") -> Threat:
    """What may be done to an input."""
    return read_threat(threat, box)


def limits(
    certify_seconds: CertifySeconds = 20.0,
    certify_arithmetic: CertifyArithmetic = "executed",
    certify_budgets: CertifyBudgets = None,
    certify_checks: CertifyChecks = 100,
    sigma: Sigma = None,
) -> "Certification":
    """How proofs are found, whichever method finds them."""
    from holdfast.audit import Certification

    budgets = tuple(part.strip() for part in certify_budgets.split(",")) if certify_budgets else ()
    return Certification("none", certify_seconds, certify_arithmetic, budgets, certify_checks, sigma)


def asking(**makers: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of which some of its parameters are made.

    Parameters
    ----------
    **makers
        For the parameter of that name, a function of options. The command gets it with what was typed, and calls it
        where errors are told to the user.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parts = {name: list(inspect.signature(make).parameters) for name, make in makers.items()}

        @wraps(command)
        def run(**given: Any) -> None:
            made = {name: partial(makers[name], **{part: given.pop(part) for part in parts[name]}) for name in makers}
            command(**given, **made)

        options = [
            part.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(command).parameters.items()
            for part in (inspect.signature(makers[name]).parameters.values() if name in makers else [parameter])
        ]
        vars(run)["__signature__"] = inspect.Signature(options)  # where Typer and help look
        run.__annotations__ = {option.name: option.annotation for option in options}
        return run

    return decorate
