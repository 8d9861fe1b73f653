"""Rows of an earlier session beside the data that they are about."""

from collections.abc import Iterable, Iterator

import torch

from holdfast.audit.store import RunStore
from holdfast.data import Batch
from holdfast.errors import RunError
from holdfast.threats import Recognisable, Threat

__all__ = ["agreeing"]


def agreeing(
    batches: Iterable[Batch], store: RunStore, classes: int, threat: Threat, *, inputs: bool
) -> Iterator[Batch]:
    """The batches, once what the store holds of their examples is known to be about them.

    Parameters
    ----------
    batches : iterable of Batch
        The examples.
    store : RunStore
        Its rows have been looked at by themselves.
    classes : int
        That the model knows.
    threat : Threat
        What the adversary may do.
    inputs : bool
        Whether the store keeps inputs: those that count as adversarial must be admissible.

    Raises
    ------
    RunError
        At the first row that is about other data.
    """
    for batch in batches:
        places = {index: place for place, index in enumerate(batch.index.tolist())}
        query = "SELECT idx, label, clean_prediction FROM examples WHERE idx BETWEEN ? AND ?"
        for index, label, prediction in list(store.select(query, min(places), max(places))):
            if index in places and (label != int(batch.y[places[index]]) or prediction >= classes):
                raise _refusal(store, index, f"label {label} and prediction {prediction}")
        if inputs:
            _check_inputs(batch, places, store, threat)
        yield batch


def _check_inputs(batch: Batch, places: dict[int, int], store: RunStore, threat: Threat) -> None:
    """An input that is kept for a broken example is within the threat's set, for a misclassified one it is clean."""
    query = (
        "SELECT idx, verdict, x FROM examples JOIN inputs USING (idx) "
        "WHERE idx BETWEEN ? AND ? AND verdict IN ('broken', 'misclassified')"
    )
    for index, verdict, content in list(store.select(query, min(places), max(places))):
        if index in places:
            place = torch.tensor([places[index]])
            x = batch.x[place]
            kept = torch.frombuffer(bytearray(content), dtype=torch.float32).reshape(x.shape)
            here = threat.at(batch.index[place])
            # Of a set whose inputs cannot be told by themselves, no more is known than that they are numbers.
            admitted = bool(here.admits(kept, x)) if isinstance(here, Recognisable) else bool(kept.isfinite().all())
            same = verdict == "misclassified" and torch.equal(kept, x)
            if not (same or (verdict == "broken" and admitted)):
                raise _refusal(store, index, "an input that the threat does not allow")


def _refusal(store: RunStore, index: int, what: str) -> RunError:
    return RunError(
        f"{store.where}: what it says of example {index} ({what}) is not about these data; give another --run folder, "
        "or delete it to begin anew"
    )
