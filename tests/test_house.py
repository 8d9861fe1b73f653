"""The house: which packages there are, on which floors, and who imports from whom."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "src" / "holdfast"
TABLE = re.findall(r"^\| (\d?) ?\| `([a-z_/]+)` \| \S.* \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
FLOORS = {name: int(floor) for floor, name in TABLE if floor}


def module_of(path: Path) -> str:
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in HOUSE.rglob("*.py")}


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a file but those that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from at_run_time(child)


def imports(path: Path) -> Iterator[str]:
    """The modules of holdfast that a file imports, the package's own front door aside."""
    for node in at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


IMPORTS = {
    module: {name for name in imports(path) if name in MODULES and name not in (module, "holdfast")}
    for module, path in MODULES.items()
}


def room(module: str) -> str:
    """What of the table's floors a module belongs to: a package, or a module beside them."""
    return [*module.split("."), ""][1]


def package(module: str) -> str:
    """The innermost package of a module."""
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """What is left of a graph when all that imports nothing of it is taken away again and again."""
    while gone := {name for name, targets in edges.items() if not targets & set(edges)}:
        edges = {name: targets for name, targets in edges.items() if name not in gone}
    return sorted(edges)


def between(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for source, target in pairs:
        edges.setdefault(source, set()).add(target)
    return edges


def test_table_names_what_there_is_and_nothing_else() -> None:
    packages = {str(path.parent.relative_to(HOUSE)) for path in HOUSE.rglob("__init__.py")} - {"."}
    beside = {path.stem for path in HOUSE.glob("*.py")} - {"__init__", "__main__"}
    assert sorted(name for _, name in TABLE) == sorted(packages | beside)
    assert sorted(FLOORS) == sorted(name for name in packages | beside if "/" not in name)


def test_no_import_runs_up_a_floor() -> None:
    single = {path.stem for path in HOUSE.glob("*.py")}
    wrong = [
        f"{module} (floor {FLOORS[source]}) imports {name} (floor {FLOORS[target]})"
        for module, names in IMPORTS.items()
        for name in names
        if (source := room(module)) in FLOORS and (target := room(name)) != source
        if FLOORS[target] > FLOORS[source] or (FLOORS[target] == FLOORS[source] and target not in single)
    ]
    assert not wrong


def test_no_import_runs_in_a_circle() -> None:
    # A package's front door imports what is behind it, and what is behind it may import what stands in front.
    pairs = [(module, name) for module, names in IMPORTS.items() for name in names]
    files = [pair for pair in pairs if not any(MODULES[name].name == "__init__.py" for name in pair)]
    assert not circle(between(files))
    rooms = [(package(module), package(name)) for module, name in pairs]
    apart = [
        (one, two) for one, two in rooms if not f"{one}.".startswith(f"{two}.") and not f"{two}.".startswith(f"{one}.")
    ]
    assert not circle(between(apart))
