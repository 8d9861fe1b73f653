"""From the name of a network and of a data set to a robust model on disk."""

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holdfast.arguments import function_of, path_of, seed_of, shown, threat_of
from holdfast.data import Source, load_data
from holdfast.errors import SettingError
from holdfast.files import write_whole
from holdfast.models import load_model
from holdfast.models.architectures import is_network, make_network
from holdfast.processes import ALONE, Processes, processes_of
from holdfast.settings import names, read
from holdfast.threats import Threat
from holdfast.train.checkpoint import CURE, write_tensors
from holdfast.train.distillation import Distillation
from holdfast.train.loop import fit
from holdfast.train.methods import make_method
from holdfast.train.recipe import Recipe
from holdfast.train.recipes import default_recipe, is_large
from holdfast.train.result import Progress, TrainingResult
from holdfast.train.standard import Standard

__all__ = ["train"]


@torch.inference_mode(False)
def train(
    network: nn.Module | str,
    data: Any,
    threat: Threat | str,
    *,
    method: str = "awp:pgd",
    settings: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    trust: bool = False,
    run: str | Path | None = None,
    split: str = "train",
    examples: str | slice | range | None = None,
    seed: int = 0,
    processes: Processes = ALONE,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainingResult:
    """Train a network to withstand an adversary.

    Parameters
    ----------
    network : nn.Module or str
        The name of a network (``"conv-small"``, ``"timm:NAME"``; see
        :func:`holdfast.models.architectures.make_network`), what :func:`holdfast.load_model` reads, or a module, which
        is trained in place.
    data : str, Source, Dataset or pair of arrays
        What :func:`holdfast.load_data` reads.
    threat : Threat or str
        What the adversary may do.
    method : str
        The training method, such as ``"pgd"`` or ``"awp:trades"``. The default is adversarial training with PGD and
        weights perturbed too.
    settings : mapping, optional
        Of the method and of the recipe by name, such as ``{"steps": 10, "epochs": 20}``.
    weights : path, optional
        Where to start from; random weights otherwise.
    weights_key : str, optional
        The key of that file under which they lie, where it holds several state dicts that fit.
    trust : bool
        That code may run which a ``.pt2`` file or the folder of another run carries or names; see
        :func:`holdfast.load_model`.
    run : path, optional
        A folder for ``weights.safetensors``, ``train.json`` and a checkpoint. The same call on the same folder resumes
        a run that was stopped or killed, and ends with the same weights.
    split, examples : str
        Which part of the data.
    seed : int
        Of every random draw, the network's first weights included.
    processes : Processes
        Those that train it together, each a part of every batch; the main one writes.
    on_progress : callable
        Called after every update, in the main process alone.

    Returns
    -------
    TrainingResult
        The model is in it, in its best state and in evaluation mode.

    Raises
    ------
    HoldfastError
        Of the kind that tells what to mend; what was learned before is kept in the run's folder.
    """
    began = time.monotonic()
    threat, seed = threat_of(threat), seed_of(seed)
    function_of("on_progress", on_progress)
    if not isinstance(method, str):
        raise SettingError(f"method: a name such as 'pgd' or 'awp:trades' is needed, not {shown(method)}")
    if not isinstance(settings, Mapping | None):
        raise SettingError(f"settings: give a dict from names to values, not {shown(settings)}")
    source = load_data(data, split=split, examples=examples)
    classes = _classes(source)
    folder = None if run is None else path_of("run", run)
    name = network if isinstance(network, str) else type(network).__name__
    device = processes_of(processes).device or ("cuda" if torch.cuda.is_available() else "cpu")

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _network(network, source.shape, classes, weights, weights_key=weights_key, trust=trust).to(device)
    settings = dict(settings or {})
    chosen = {key: settings.pop(key) for key in names(Recipe) if key in settings}
    recipe = replace(
        default_recipe(name, method, len(source), large=is_large(threat)), **read(Recipe, "recipe", chosen)
    )
    teacher = copy.deepcopy(model)
    learned = make_method(method, threat, settings, teacher)
    if isinstance(learned, Distillation):
        first = Standard(temperature=learned.temperature)
        fit(teacher, source, first, threat, recipe, run=folder and folder / "teacher", seed=seed, processes=processes)
    result = fit(
        model,
        source,
        learned,
        threat,
        recipe,
        run=folder,
        seed=seed,
        processes=processes,
        on_progress=on_progress,
    )
    if folder is not None and processes.is_main:
        tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        write_tensors(folder / "weights.safetensors", tensors, CURE)
        record = {
            "holdfast": metadata.version("holdfast"),
            "torch": torch.__version__,
            "network": {"name": _lasting(name), "shape": list(source.shape), "classes": classes},
            "data": source.name,
            "threat": threat.to_dict(),
            "method": method,
            "settings": {key: str(value) for key, value in settings.items()},
            "recipe": vars(recipe),
            "seed": seed,
            "seconds": round(time.monotonic() - began, 1),
            **result.to_dict(),
        }
        write_whole(folder / "train.json", lambda part: part.write_text(json.dumps(record, indent=1) + "\n"), CURE)
    # What the main one has written the others may read next.
    processes.wait()
    return result


def _network(
    network: nn.Module | str, shape: tuple[int, ...], classes: int, weights: str | Path | None, **given: Any
) -> nn.Module:
    if isinstance(network, str) and is_network(network):
        network = make_network(network, shape, classes)
    return load_model(network, weights, **given)


def _lasting(name: str) -> str:
    """The network's name for a record that is read from anywhere: the path of a Python file from the root."""
    path, _, factory = name.rpartition(":")
    return f"{Path(path).resolve()}:{factory}" if path.endswith(".py") else name


def _classes(source: Source) -> int:
    """How many classes there are: as the data set knows, or as its labels show."""
    if source.classes is not None:
        return len(source.classes)
    return 1 + max(int(batch.y.max()) for batch in source.batches(256))
