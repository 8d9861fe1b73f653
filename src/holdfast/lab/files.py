"""Files that are there whole or not at all."""

from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there.

    Raises
    ------
    OSError
        When it cannot be written; what was at its place is still there then.
    """
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
