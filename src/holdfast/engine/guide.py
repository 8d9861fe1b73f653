"""Another model to follow where a model's own gradients lead nowhere."""

from dataclasses import dataclass

from holdfast.models.query import Query

__all__ = ["Guide"]


@dataclass(frozen=True)
class Guide:
    """A stand-in whose objectives and gradients an attack follows, while the model itself says what fools it.

    With a twin of the model whose backward pass is repaired, this is BPDA (Athalye, Carlini and Wagner, "Obfuscated
    gradients give a false sense of security", ICML 2018, section 4.1); with a surrogate of its own it is a transfer
    attack that asks the model at every step.

    Parameters
    ----------
    query : Query
        The stand-in, entered as a context manager: a model of the same inputs and classes.
    passes : int
        What a look at it costs in passes of the model, forward and backward each.
    """

    query: Query
    passes: int = 1
