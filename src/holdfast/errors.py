"""Errors a user can mend. Each says in one line what was wrong, where, and what to do.

The command line prints the line and exits with the class's ``exit_code``; from Python they are ordinary exceptions,
all of them :class:`HoldfastError`.
"""

from holdfast.words import plain

# No message of ours is so long; names and texts in it may be.
_LONGEST, _END = 2000, 500


class HoldfastError(Exception):
    """Base of every error that holdfast raises on purpose.

    Parameters
    ----------
    message : str
        What to say. What it quotes of files, models and data is made :func:`plain <holdfast.words.plain>` here, so
        that it is one line wherever it is printed; the middle of what is longer than 2,000 characters is left out.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        words = plain(message)
        super().__init__(words if len(words) <= _LONGEST else f"{words[: _LONGEST - _END]} ... {words[-_END:]}")


class SettingError(HoldfastError):
    """A setting makes no sense: an unknown threat, a negative budget, an attack that cannot do what is asked."""

    exit_code = 2


class ModelError(HoldfastError):
    """The model cannot be loaded, or does not answer as a classifier that returns logits must."""

    exit_code = 3


class DataError(HoldfastError):
    """The data cannot be read, or do not fit the model or the threat."""

    exit_code = 4


class RunError(HoldfastError):
    """The run's folder or a file cannot be written, is damaged or belongs to another run, or processes do not meet."""

    exit_code = 5


class ProofError(HoldfastError):
    """A proof of holdfast's own is false: an attack has broken an example that was proved robust."""

    exit_code = 6
