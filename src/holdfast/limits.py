"""What a file may ask for: a few bytes can claim any size, and are not to be believed with all of memory."""

from holdfast.errors import HoldfastError, ModelError

__all__ = ["MEMORY", "check_bytes"]

MEMORY: int = 4 * 2**30
"""Bytes that a reader may allocate because a file says so."""


def check_bytes(count: int, what: str, fault: type[HoldfastError] = ModelError) -> None:
    """Refuse, before anything is allocated, what a file asks for beyond :data:`MEMORY`.

    Parameters
    ----------
    count : int
        The bytes that it asks for.
    what : str
        What asks: the file, and the part of it.
    fault : type, optional
        The error to raise, which decides the exit code.

    Raises
    ------
    HoldfastError
        Of the class ``fault``, when ``count`` is larger than :data:`MEMORY`.
    """
    if count > MEMORY:
        asked = f"{count / 2**30:,.1f} GiB" if count < 2**60 else "more bytes than any memory has"
        raise fault(
            f"{what}: asks for {asked}, more than the {MEMORY / 2**30:g} GiB that a file may (holdfast.limits.MEMORY); "
            "is it the file that it says?"
        )
