"""Run a function of the user's own that makes a model, and say on which of their lines it went wrong."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from holdfast.errors import ModelError
from holdfast.models.estimators.estimator import is_estimator
from holdfast.models.files import existing_file
from holdfast.words import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_numbers = itertools.count()


def call_factory(source: str, factory: str) -> Any:
    """Import ``source``, call its function ``factory`` without arguments, and return what it makes.

    Parameters
    ----------
    source
        A Python file, which is run under a private name, with its own folder first on the import path until the factory
        has returned; or the dotted name of an importable module.
    factory
        The name of a callable in it.

    Returns
    -------
    nn.Module or estimator
        A module, or a classifier of scikit-learn.

    Raises
    ------
    ModelError
        If the source or the factory is missing or raises, or if what comes back is neither.
    """
    if not source.endswith(".py"):
        return _call(_import_dotted(source), source, factory)
    path = existing_file(source).resolve()
    with _importable(path.parent):
        return _call(_import_file(path, source), source, factory)


def _call(module: ModuleType, source: str, factory: str) -> Any:
    function = getattr(module, factory, None)
    if not callable(function):
        raise ModelError(f"{source}: has no function '{factory}'; {_callables(module)}")
    try:
        made = function()
    except (Exception, SystemExit) as error:
        raise ModelError(f"{source}:{factory} {_raised(error, module.__file__)}") from error
    if isinstance(made, nn.Module) or is_estimator(made):
        return made
    hint = "; return an instance of it" if isinstance(made, type) else ""
    raise ModelError(f"{source}:{factory} returned a {type(made).__name__}, not a torch.nn.Module{hint}")


def _import_file(path: Path, source: str) -> ModuleType:
    # a private name: two files called model.py, or one that shadows a library, must not meet in sys.modules
    name = f"_holdfast_model_{next(_numbers)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{source}: not a file that Python can import")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ModelError(f"{source}: importing it {_raised(error, str(path))}") from error
    return module


def _import_dotted(source: str) -> ModuleType:
    if not all(part.isidentifier() for part in source.split(".")):
        raise ModelError(f"{source}: neither a Python file (.py) nor the dotted name of a module")
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name and f"{source}.".startswith(f"{error.name}."):
            raise ModelError(
                f"{source}: no module named '{error.name}'; install it, or give a path to a file.py"
            ) from error
        raise ModelError(f"{source}: importing it {_raised(error, None)}") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{source}: importing it {_raised(error, None)}") from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put ``folder`` first on the import path, and forget afterwards what was imported from it.

    Forgetting matters when two models are loaded whose folders both hold, say, a ``utils.py``: the second must not be
    given the first one's.
    """
    path, before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()  # the file beside it may be younger than the last look at the folder
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and not name.startswith("_holdfast_model_") and Path(file).is_relative_to(folder):
                del sys.modules[name]


def _raised(error: BaseException, file: str | None) -> str:
    """Describe an exception by type, message and the last line of ``file`` (or of any file) that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames[-1:]
    place, line = own[-1].filename, own[-1].lineno
    if isinstance(error, SyntaxError) and error.filename:
        place, line = error.filename, error.lineno
    return f"raised {type(error).__name__}: {one_line(error) or 'no message'} ({Path(place).name}:{line})"


def _callables(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return f"there are {', '.join(own[:12])}{', ...' if len(own) > 12 else ''}" if own else "it defines no function"
