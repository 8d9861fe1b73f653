"""What proves examples robust, as audits and :func:`~holdfast.certify.certify` ask it."""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor, nn

from holdfast.certify.bounds.crown import MEMORY
from holdfast.certify.bounds.graph import Graph
from holdfast.certify.certificate import Certificate, Method, Runs
from holdfast.certify.certifier import Certifier
from holdfast.certify.cover import CoverCertifier
from holdfast.certify.table import TableCertifier, TableTrees
from holdfast.errors import ModelError, SettingError
from holdfast.models.estimators.estimator import Classifier
from holdfast.models.estimators.forest import read_forest
from holdfast.threats import Ball, Coverable, Threat
from holdfast.threats.table import Table
from holdfast.threats.table.layout import layout_of

__all__ = ["ExampleProver", "needs_proofs", "prover_of"]


class ExampleProver(Protocol):
    """Quick bounds before the attacks, and thorough work on what they left."""

    @property
    def graph(self) -> Graph | None:
        """The network as it is bounded, against which a false proof is held; None where there is none."""
        ...

    @property
    def fault(self) -> str:
        """Why nothing can be proved; empty where something can."""
        ...

    def bound(self, x: Tensor, y: Tensor, threat: Threat) -> list[Certificate]:
        """What is soon known of ``N`` examples; those that :meth:`prove` may go on with carry no note.

        ``x``, ``(N, *shape)``, lie inside the threat's box; it has been looked up for them.
        """
        ...

    def prove(self, x: Tensor, y: Tensor, threat: Threat) -> Iterator[tuple[int, Certificate]]:
        """Work on ``N`` examples that were left open, and yield places and certificates as they fall.

        Every example gets one; those that stay open carry a note.
        """
        ...


def needs_proofs(threat: Threat) -> Threat:
    """The threat, if there are proofs about its sets.

    Raises
    ------
    SettingError
        When there are none.
    """
    if not isinstance(threat, Ball | Table | Coverable):
        raise SettingError(
            f"certify: there are no proofs about {threat.name}, only about norm balls, tables and sets that boxes cover"
        )
    return threat


def prover_of(
    model: nn.Module,
    x: Tensor,
    method: Method,
    threat: Threat,
    *,
    seconds: float,
    logits: Callable[[Tensor], Tensor],
    memory: int = MEMORY,
    arithmetic: Runs = "executed",
) -> ExampleProver:
    """What proves something of a model, normalisation included, about a threat.

    Parameters
    ----------
    model : nn.Module
        The network.
    x : Tensor
        ``(N, *shape)`` some of its inputs.
    method : str
        How far to go.
    threat : Threat
        One that :func:`needs_proofs` has passed.
    seconds : float
        For each example, where it is a matter of time.
    logits : callable
        What the model itself says of inputs.
    memory : int
        Bytes that the coefficients of one layer may take.
    arithmetic : str
        What is proved: the network as it runs, or in exact arithmetic.
    """
    if isinstance(threat, Table) and isinstance(model, Classifier) and not model.differentiable:
        return _trees_prover(model, threat, method, seconds, logits)
    certifier = Certifier.of(
        model, x, method, seconds=seconds, logits=logits, memory=memory, arithmetic=arithmetic, threat=threat
    )
    if isinstance(threat, Table):
        return TableCertifier(certifier, layout_of(threat.rules))
    return certifier if isinstance(threat, Ball) else CoverCertifier(certifier)


def _trees_prover(
    model: Classifier, threat: Table, method: Method, seconds: float, logits: Callable[[Tensor], Tensor]
) -> ExampleProver:
    """What proves something of an ensemble of trees about the rows of a table; nothing of other such models."""
    layout = layout_of(threat.rules)
    try:
        return TableTrees(read_forest(model), layout, method, seconds, logits)
    except ModelError as error:
        return TableCertifier(Certifier(None, method, seconds, logits, str(error)), layout)
