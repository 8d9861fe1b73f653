"""Files that somebody named: whether they are files at all, their text, and new ones in their places."""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from holdfast.errors import HoldfastError, RunError

__all__ = ["check_file", "is_file", "is_folder", "read_text", "writable_name", "write_whole"]


def check_file(path: Path, fault: type[HoldfastError]) -> os.stat_result:
    """Look at a file before it is opened, since opening a pipe waits for whoever writes to it.

    Returns
    -------
    os.stat_result
        Of the file, or of the file at the end of a link.

    Raises
    ------
    HoldfastError
        Of the class ``fault``, when there is nothing at ``path``, or no regular file.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise fault(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise fault(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise fault(f"{path}: is a folder; name the file in it")
    if not stat.S_ISREG(status.st_mode):
        raise fault(f"{path}: a pipe, a socket or a device, not a file; save what it gives to a file")
    return status


def is_file(path: Path) -> bool:
    """Whether there is a regular file; unlike ``Path.is_file``, ``False`` for every path that cannot be looked at."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have, or a folder on the way is closed
        return False


def is_folder(path: Path) -> bool:
    """Whether there is a folder; unlike ``Path.is_dir``, ``False`` for every path that cannot be looked at."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_text(path: Path, fault: type[HoldfastError], limit: int = 2**24) -> str:
    """The text of a small file, in UTF-8.

    Raises
    ------
    HoldfastError
        Of the class ``fault``, when it is no regular file, has more than ``limit`` bytes, or is not text in UTF-8.
    """
    size = check_file(path, fault).st_size
    if size > limit:
        raise fault(f"{path}: {size} bytes, where at most {limit} make sense; is it the file that it says?")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise fault(f"{path}: not text in UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise fault(f"{path}: cannot be read: {error.strerror or error}") from error


def writable_name(name: str) -> str:
    """A name of a file as text that can be written anywhere: bytes that are no UTF-8 are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_whole(path: Path, write: Callable[[Path], object], cure: str) -> None:
    """Let ``write`` make a file beside ``path`` and move it there when it is complete: it is never there in part.

    Folders on the way are made. What stands at ``path`` or beside it and is no file is left alone, for a pipe would
    wait and a device would be replaced; a link at ``path`` is replaced, and none is written through.

    Parameters
    ----------
    path : Path
    write : callable
        Given the path of the file to make.
    cure : str
        What to do when that fails, for the error.

    Raises
    ------
    RunError
        When it cannot be written; what stood there before stays.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place, kinds in ((path, (0, stat.S_IFREG, stat.S_IFLNK)), (part, (0, stat.S_IFREG))):
            if _kind(place) not in kinds:
                raise RunError(f"{place}: is no file, and one is to be written there; delete it or name another place")
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise RunError(f"{path}: {getattr(error, 'strerror', None) or error}; {cure}") from error
    try:
        write(part)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise RunError(f"{path}: {error.strerror or error}; {cure}") from error


def _kind(path: Path) -> int:
    """What stands at a path, as ``stat`` numbers kinds, a link not followed; 0 for nothing."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return 0
