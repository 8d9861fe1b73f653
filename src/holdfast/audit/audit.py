"""The audit: attacks over a data set, verdicts kept as they fall, and one honest result."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch

from holdfast.arguments import choice, function_of, path_of, seed_of, threat_of, whole, yes_or_no
from holdfast.audit.adaptation import UNCHANGED, adaptation_for
from holdfast.audit.agreement import agreeing
from holdfast.audit.certification import Certification, CertificationPlan
from holdfast.audit.custom import find_protocol
from holdfast.audit.diagnosis import Subject, examine_subject, preface
from holdfast.audit.digest import digest, digest_module
from holdfast.audit.inputs import write_inputs
from holdfast.audit.ledger import Ledger, Progress
from holdfast.audit.proofs import Proofs
from holdfast.audit.protocols import EvaluationProtocol, endless, restrict
from holdfast.audit.result import AuditResult
from holdfast.audit.rules import check_rules
from holdfast.audit.smoothing import SmoothingPlan, certify_smoothed
from holdfast.audit.store import RunStore
from holdfast.audit.summary import summarise
from holdfast.audit.tables import Expected
from holdfast.certify.certifier import normalised
from holdfast.certify.doubt import Doubt
from holdfast.certify.smoothing.smoothing import Smoothed
from holdfast.data import Batch, Source, columns_of, load_data
from holdfast.data.groups import read_groups
from holdfast.engine import Attack, Knowledge, Stage, drive
from holdfast.errors import ModelError, SettingError
from holdfast.files import write_whole
from holdfast.models import Model, OneLogit
from holdfast.models.estimators.estimator import Classifier
from holdfast.models.query import Query
from holdfast.processes import ALONE, Processes, processes_of
from holdfast.threats import Threat

__all__ = ["Progress", "audit"]


def audit(
    model: Any,
    data: Any,
    threat: Threat | str,
    *,
    protocol: str | Path | EvaluationProtocol | Sequence[Attack | Stage] | None = None,
    knowledge: Knowledge = "gradient",
    max_forwards: int | None = None,
    certify: Certification | str = "none",
    split: str = "test",
    examples: str | slice | range | None = None,
    group: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    run: str | Path | None = None,
    save_inputs: bool = False,
    adapt: bool = True,
    processes: Processes = ALONE,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> AuditResult:
    """Measure how a model stands up to an adversary.

    Parameters
    ----------
    model : Model, nn.Module, estimator, str or Path
        A module that maps ``(N, ...)`` inputs to ``(N, K)`` logits, a fitted classifier or pipeline of scikit-learn, or
        what :func:`holdfast.load_model` reads; a :class:`holdfast.Model` where there is more to say: weights, a
        normalisation. A single output is read as one logit of two classes, and the diagnostics say so.
    data : str, Source, Dataset or pair
        What :func:`holdfast.load_data` reads.
    threat : Threat or str
        What the adversary may do: ``Linf("8/255")``, ``"l2:0.5"``.
    protocol : str, Path, EvaluationProtocol or list
        The cascade of attacks: ``"quick"``, ``"fast"``, ``"standard"``, ``"rand"``, ``"blackbox"``, ``"nearest"``, a
        TOML file, or a list of attacks. By default ``"quick"``; ``"nearest"`` where the budget is infinite, and
        ``"blackbox"`` where there are no gradients.
    knowledge : str
        What the attacker learns from a query: ``"gradient"``, or only ``"score"`` or ``"decision"``; attacks that need
        more are left out. ``"score"`` at most of a model without gradients, such as a forest.
    max_forwards : int, optional
        The attacks' queries an example; with 0 the result is that of the clean model.
    certify : Certification or str
        What proves examples robust, for the lower end of the bracket: ``"none"``, ``"ibp"``, ``"crown"``,
        ``"alpha-crown"`` or ``"complete"``; ``"own"`` for a defended classifier that proves itself; a
        :class:`holdfast.Certification` where there is more to say.
    split, examples : str
        Which part of the data; see :func:`holdfast.load_data`.
    group : str or sequence, optional
        Tell results apart by a column of a table, whether it is a feature or not, or by one value an example.
    seed : int
        Of every random draw.
    batch_size : int, optional
        Rows a call of the model, 64 on a CPU and 512 on a GPU by default. Verdicts are bit for bit the same for any
        order and any split of the examples as long as it is the same.
    run : path, optional
        A folder for ``audit.json`` and ``run.sqlite``. The same call on the same folder resumes a run that was
        stopped or killed, and ends with the same verdicts. Without it nothing is written.
    save_inputs : bool
        Write the inputs that were found to ``adversarial.npz`` in the run's folder.
    adapt : bool
        Go on where a check of the gradients fails: with the gradients of the operations that the model executes, and
        with attacks that need none. The result keeps the number before, too. False for the protocol and nothing else.
    processes : Processes
        Those that share the examples. Each writes to the run's folder, which all of them must see, and all get the
        result. A model given by its name is put where its process computes.
    on_progress : callable
        Called at the start and after every step of the engine or of a proof; where there are several processes, in the
        main one, about its share.

    Returns
    -------
    AuditResult

    Raises
    ------
    HoldfastError
        Of the kind that tells what to mend: the settings, the model, the data or the run's folder. Verdicts reached
        before are kept in the run's folder.
    ProofError
        When an example that was proved has been broken. The run's folder keeps what was decided; where the same call
        resumes it, all proofs are made again and every one of them is attacked.
    """
    if max_forwards is not None:
        max_forwards = whole("max_forwards", max_forwards, 0, 2**62)
    if yes_or_no("save_inputs", save_inputs) and run is None:
        raise SettingError("save_inputs: there is no place to save to; give a run folder")
    yes_or_no("adapt", adapt)
    function_of("on_progress", on_progress)
    if processes_of(processes).count > 1 and run is None:
        raise SettingError(f"the verdicts of {processes.count} processes meet in a run folder; give one, as --run DIR")
    threat, seed = threat_of(threat), seed_of(seed)
    knowledge = choice("knowledge", knowledge, get_args(Knowledge))
    asked = Certification.of(certify)
    certification = CertificationPlan.of(asked, threat)
    subject = Model.of(model)
    source = load_data(data, split=split, examples=examples)
    check_rules(threat, source)
    groups = read_groups(source, group)
    module = subject.load(source.shape, columns_of(source))
    if knowledge == "gradient" and isinstance(module, Classifier) and not module.differentiable:
        knowledge = "score"
    plan = restrict(find_protocol(_default(threat, knowledge) if protocol is None else protocol, threat), knowledge)
    if processes.device is not None and subject.is_named:
        module.to(processes.device)
    smoothing = SmoothingPlan.of(asked.sigma, threat, source.shape) if asked.method == "smoothing" else None
    folder = None if run is None else path_of("run", run)
    mean, std = subject.normalisation
    query = subject.query(module, seed, batch_size)
    first = next(iter(source.batches(query.batch_size)))
    settings = {
        "holdfast": metadata.version("holdfast"),
        "device": query.device.type,
        "model": digest_module(module),
        "data": {"name": source.name, "examples": len(source), "digest": digest({"x": first.x, "y": first.y})},
        "threat": threat.to_dict(),
        "protocol": plan.to_dict(),
        "knowledge": knowledge,
        "seed": seed,
        "batch_size": query.batch_size,
        "normalisation": [mean, std],
        "max_forwards": max_forwards,
        "adapt": adapt,
        "save_inputs": save_inputs,
        "certify": next((proof.to_dict() for proof in (certification, smoothing) if proof is not None), None),
    }

    def batches() -> Iterator[Batch]:
        """The share of this process, in the batches that there are without others."""
        return islice(source.batches(query.batch_size), processes.rank, None, processes.count)

    with query, ExitStack() as stack:
        classes = check_classes(query, source, first)
        seen = Subject.of(query, threat, plan, first, seed)
        diagnostics = [*preface(seen, threat, first), *examine_subject(seen)]
        adaptation = UNCHANGED
        if adapt and max_forwards != 0 and knowledge == "gradient":
            adaptation = adaptation_for(seen, normalised(query.model, mean, std), threat, diagnostics, stack)
        cascade = adaptation.applied(plan)
        expected = Expected(
            positions=range(int(first.index[0]), int(first.index[0]) + len(source)),
            stages=tuple(stage.name for stage in cascade.stages),
            proofs=() if certification is None else certification.proofs(module),
            budgets=() if certification is None else certification.budgets,
            radius=None if smoothing is None else smoothing.radius,
            input_bytes=4 * math.prod(source.shape) if save_inputs else None,
        )
        store = stack.enter_context(RunStore(folder, settings, expected, processes))
        resumed = agreeing(batches(), store, classes, threat, inputs=save_inputs)
        lengths = [min(query.batch_size, len(source) - start) for start in range(0, len(source), query.batch_size)]
        told = on_progress if processes.is_main else _say_nothing
        ledger = Ledger(store, query, sum(processes.deal(lengths)), save_inputs, told)
        ledger.report()
        attack = partial(
            drive, query, threat, cascade.stages, seed=seed, max_forwards=max_forwards, samples=plan.samples
        )
        if certification is None:
            for outcomes in attack(_missing(resumed, store)):
                ledger.add(outcomes)
                ledger.report()
        else:
            certifier = certification.certifier(normalised(query.model, mean, std), query, first.x)
            share = 1.0 if store.refuted else certification.checks / len(source)
            doubt = Doubt(query, certifier.graph, share, seed, plan.samples)
            proofs = Proofs(certifier, query, certification.threat, ledger, seed, plan.samples, doubt)
            for outcomes in attack(proofs.screen(resumed)):
                proofs.keep(outcomes)
                ledger.report()
            proofs.finish(batches())
            proofs.draw_curve(batches(), certification.budgets)
        if smoothing is not None:
            smoothed = Smoothed(module, smoothing.sigma, mean=mean, std=std, batch_size=query.batch_size, seed=seed)
            certify_smoothed(smoothed, smoothing, batches(), store, ledger.report)
        store.unite()
        result = None
        if processes.is_main:
            result = summarise(
                store,
                source,
                plan,
                adaptation,
                certification,
                smoothing,
                diagnostics,
                classes=classes,
                groups=groups,
                attacked=max_forwards is None or max_forwards >= plan.samples,
                model=subject.name,
                threat=threat,
                seed=seed,
                device=str(query.device),
            )
            if folder is not None:
                if save_inputs:
                    write_inputs(store, folder / "adversarial.npz", source.shape)
                write_json(folder / "audit.json", result)
    result = processes.tell(result)
    assert result is not None  # the main one has it
    return result


def _say_nothing(progress: Progress) -> None:
    pass


def _default(threat: Threat, knowledge: Knowledge) -> str:
    if knowledge != "gradient":
        return "blackbox"
    return "nearest" if endless(threat) else "quick"


def write_json(path: Path, result: AuditResult) -> None:
    """Write a result whole or not at all.

    Raises
    ------
    RunError
        When the file cannot be written.
    """
    text = result.model_dump_json(indent=2) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"), "the verdicts are kept: repeat the command")


def _missing(batches: Iterable[Batch], store: RunStore) -> Iterator[Batch]:
    """The examples that have no verdict yet."""
    for batch in batches:
        places = torch.tensor(store.missing(batch.index.tolist()), dtype=torch.int64)
        if len(places):
            yield Batch(batch.index[places], batch.x[places], batch.y[places])


def check_classes(query: Query, source: Source, first: Batch) -> int:
    """How many classes the model knows, once they are those of the data.

    Raises
    ------
    ModelError
        When they are not, or a classifier of scikit-learn predicts other classes than its scores name.
    """
    logits = query.bare_logits(first.x)
    if source.classes is not None and len(source.classes) != logits.shape[1]:
        returned = "one logit" if isinstance(query.model, OneLogit) else f"{logits.shape[1]} logits"
        raise ModelError(
            f"the model returns {returned}, but {source.name} has {len(source.classes)} classes: the "
            "model and the data do not belong together"
        )
    if isinstance(query.model, Classifier):
        query.model.check(query.prepare(first.x), logits, source.classes)
    return logits.shape[1]
