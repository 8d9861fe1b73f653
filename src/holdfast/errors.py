"""Errors a user can mend. Each says in one line what was wrong, where, and what to do.

The command line prints the line and exits with the class's ``exit_code``; from Python they are ordinary exceptions,
all of them :class:`HoldfastError`.
"""


class HoldfastError(Exception):
    """Base of every error that holdfast raises on purpose."""

    exit_code = 1


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
    """The run folder cannot be written, is full, or belongs to another audit."""

    exit_code = 5


class ProofError(HoldfastError):
    """A proof of holdfast's own is false: an attack has broken an example that was proved robust."""

    exit_code = 6
