"""The documentation does what it says.

A page's blocks run in order in a folder of their own:

- ``python`` blocks share a namespace; a block whose first line is ``# NAME.py`` or ``# NAME.toml`` is saved under that
  name instead;
- a ``text`` block straight after a ``python`` block is what that printed;
- in ``console`` blocks the ``$ holdfast`` commands run, and ``$ echo $?`` says how the one before exited (0 where
  nothing does). The lines after a command are what it printed, numbers aside; ``...`` stands for any lines.

``<!-- needs: shared -->`` before a block leaves it to machines that have the shared models, and ``<!-- slow -->``
anywhere in a page marks its test. The files that the tutorial makes are there on every page.
"""

import contextlib
import importlib
import inspect
import io
import json
import re
import shlex
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
from typer.testing import CliRunner

import holdfast
from helpers.shared import SHARED
from holdfast import attacks, errors
from holdfast.audit import AuditResult, diagnosis
from holdfast.audit.custom import ATTACKS
from holdfast.audit.protocols import PROTOCOLS, spatial
from holdfast.certify import Certificate, Distance, SmoothingResult, Verification
from holdfast.certify.bounds.rules.table import CASTS, RULES
from holdfast.certify.certificate import METHODS
from holdfast.certify.output import BoundMethod
from holdfast.cli.main import INTERRUPTED, app
from holdfast.lab import EXPERIMENTS, write_page
from holdfast.tasks import objectives
from holdfast.testing import ZOO
from holdfast.train import Recipe
from holdfast.train import methods as training

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SHARED_FILES = {
    "nets.py": "models/nets.py",
    "convexadv.pth": "models/convexadv_linf0.1.pth",
    "lenet5.pt": "models/advertorch_lenet5_adv_linf0.3.pt",
    "mnist": "data/mnist",
}
NORMS = ("linf", "l2", "l1", "l0")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it starts on, and what the comment before it says."""

    language: str
    text: str
    line: int
    shared: bool
    follows: bool  # straight after another block


def blocks(page: Path) -> Iterator[Block]:
    text, end = page.read_text(), -1
    for found in re.finditer(r"^```(\w*)\n(.*?)^```\n", text, re.MULTILINE | re.DOTALL):
        before = text[: found.start()]
        shared = before.rstrip().endswith("<!-- needs: shared -->")
        follows = end >= 0 and not text[end : found.start()].strip()
        yield Block(found[1], found[2], before.count("\n") + 1, shared, follows)
        end = found.end()


def run_page(page: Path, folder: Path) -> dict[str, Any]:
    """Run a page's blocks in a folder and return the names that its Python leaves."""
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    printed: str | None = None
    try:
        with contextlib.chdir(folder), torch.random.fork_rng(devices=[]):
            for block in blocks(page):
                where = f"{page.relative_to(ROOT)}:{block.line}"
                if block.shared and not SHARED.is_dir():
                    printed = None
                elif file := re.match(r"# (\w+\.(?:py|toml))\n", block.text):
                    Path(file[1]).write_text(block.text)
                elif block.language == "python":
                    printed = run_python(block, module, where)
                elif block.language == "text" and block.follows and printed is not None:
                    assert_shown(block.text, printed, where)
                elif block.language == "console":
                    run_console(block, where)
    finally:
        del sys.modules[module.__name__]
    return vars(module)


def run_python(block: Block, module: types.ModuleType, where: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile("\n" * block.line + block.text, where, "exec"), vars(module))
    return out.getvalue()


def run_console(block: Block, where: str) -> None:
    code, checked = 0, True
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.replace("\\\n", " ").partition("\n")
        if command == "echo $?":
            assert int(shown) == code, where
            checked = True
        elif command.startswith("holdfast"):
            assert checked, f"{where}: a command exited with {code} and nothing says so"
            result = CliRunner().invoke(app, shlex.split(command)[1:])
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            code, checked = result.exit_code, result.exit_code == 0
            assert_shown(shown, result.output, f"{where}: {command}")
    assert checked, f"{where}: a command exited with {code} and nothing says so"


def assert_shown(shown: str, printed: str, where: str) -> None:
    """Every line shown was printed, in that order, whatever the numbers."""
    lines = iter([plain(line) for line in printed.splitlines()])
    for line in shown.splitlines():
        if line.strip() not in ("", "..."):
            assert plain(line) in lines, f"{where}: {line!r} was not printed in:\n{printed}"


def plain(line: str) -> str:
    line = re.sub(r"\d[\d,.]*", "#", line.replace("← worst", ""))
    return " ".join(line.split())


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the tutorial has been done."""
    folder = tmp_path_factory.mktemp("tutorial")
    run_page(TUTORIAL, folder)
    return folder


def parameters() -> Iterator[Any]:
    for page in PAGES:
        if any(block.language in ("python", "console") for block in blocks(page)):
            marks = [pytest.mark.slow] if "<!-- slow -->" in page.read_text() else []
            yield pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("page", list(parameters()))
def test_page_runs(page: Path, tutorial: Path, tmp_path: Path) -> None:
    if page == TUTORIAL:
        return  # the fixture has run it
    shutil.copytree(tutorial, tmp_path, dirs_exist_ok=True)
    if SHARED.is_dir():
        for name, place in SHARED_FILES.items():
            (tmp_path / name).symlink_to(SHARED / place)
    run_page(page, tmp_path)


def test_attack_of_the_guide_passes_the_shared_tester(tutorial: Path, tmp_path: Path) -> None:
    from helpers.attacks import check_attack

    shutil.copytree(tutorial, tmp_path, dirs_exist_ok=True)
    momentum = run_page(DOCS / "how-to" / "write-an-attack.md", tmp_path)["Momentum"]
    check_attack(momentum(), "linf", forwards=11, backwards=10)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    for page in DOCS.rglob("*.md"):
        assert page.name == "index.md" or f"({page.relative_to(DOCS)})" in index, page


def section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} has no section {heading}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, header lines left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    rules = [i for i, row in enumerate(cells) if set(row[0]) <= set("-:")]
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


def test_audit_json_lists_every_field() -> None:
    page = DOCS / "reference" / "audit-json.md"
    schema = AuditResult.model_json_schema()
    for name, part in {"AuditResult": schema, **schema["$defs"]}.items():
        assert [row[0] for row in rows(section(page, name))] == list(part["properties"]), name


def test_audit_json_schema_is_the_code_s() -> None:
    written = json.loads((DOCS / "reference" / "audit.schema.json").read_text())
    assert written == AuditResult.model_json_schema()


def test_every_diagnostic_is_explained() -> None:
    folder = Path(diagnosis.__file__).parent
    names = [name for path in folder.rglob("*.py") for name in re.findall(r'name="([^"]+)"', path.read_text())]
    told = [row[0] for row in rows(section(DOCS / "reference" / "audit-json.md", "Diagnostics"))]
    assert sorted(told) == sorted(set(names))


def test_exit_codes_are_the_code_s() -> None:
    table = {int(row[0]): row[1] for row in rows((DOCS / "reference" / "exit-codes.md").read_text())}
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    expected = {value.exit_code: value.__name__ for value in classes}
    assert {code: name for code, name in table.items() if name in vars(errors)} == expected
    assert set(table) == {0, *expected, INTERRUPTED}


def test_command_line_page_lists_every_option() -> None:
    command = typer.main.get_command(app)
    page = DOCS / "reference" / "cli.md"
    commands = {"holdfast": command, **{f"holdfast {name}": c for name, c in command.commands.items()}}
    for name, described in commands.items():
        options = {option for p in described.params for option in p.opts if option.startswith("--")}
        written = {row[0].split("`")[0].split()[0] for row in rows(section(page, name)) if row[0].startswith("--")}
        assert written == options - {"--help"}, name


ATTACK_CLASSES = {
    name: value
    for name, value in vars(attacks).items()
    if name in attacks.__all__ and hasattr(value, "knowledge") and hasattr(value, "__dataclass_fields__")
}
PARTS = (attacks.Diversity, attacks.TranslationKernel, attacks.VarianceTuning)


def test_attacks_page_lists_them_all() -> None:
    named = {value: name for name, value in ATTACKS.items()}
    expected = {
        kind: (
            named.get(value, "from Python"),
            value.knowledge,
            "the nearest" if value.minimum_norm else "any in the budget",
        )
        for kind, value in ATTACK_CLASSES.items()
    }
    listed = rows(section(DOCS / "reference" / "attacks.md", "Attacks"))
    assert {linked(row[1]): (row[0], row[3], row[4]) for row in listed} == expected
    assert set(named) <= set(ATTACK_CLASSES.values())


def linked(cell: str) -> str:
    """The text of a link."""
    return cell[1 : cell.index("]")]


@pytest.mark.parametrize("row", rows(section(DOCS / "reference" / "attacks.md", "Attacks")), ids=lambda row: row[0])
@pytest.mark.parametrize("norm", NORMS)
def test_attacks_page_names_the_norms(row: list[str], norm: str) -> None:
    model = torch.nn.Linear(4, 3)
    kind = ATTACK_CLASSES[linked(row[1])]
    attack = kind(model) if kind is attacks.Transfer else kind()
    x = torch.zeros(1, 4)
    wrong = model(x).argmin(1)  # nothing to do but to say whether it could be done
    with contextlib.nullcontext() if norm in row[2].split(", ") else pytest.raises(errors.SettingError):
        attack(model, x, wrong, threat=holdfast.parse_threat(f"{norm}:1"))


@pytest.mark.parametrize("kind", [*ATTACK_CLASSES.values(), *PARTS])
def test_attacks_page_gives_the_defaults(kind: type) -> None:
    table = {row[0]: row[1] for row in rows(section(DOCS / "reference" / "attacks.md", kind.__name__))}
    assert table == {f.name: "required" if f.default is MISSING else str(f.default) for f in fields(kind)}


def test_attacks_page_gives_the_defaults_of_universal_perturbations() -> None:
    table = {row[0]: row[1] for row in rows(section(DOCS / "reference" / "attacks.md", "universal_perturbation"))}
    parameters = inspect.signature(attacks.universal_perturbation).parameters.values()
    assert table == {p.name: str(p.default) for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("norm", NORMS)
def test_protocols_page_gives_the_stages(name: str, norm: str) -> None:
    listed = [row for row in rows(section(DOCS / "reference" / "protocols.md", name)) if norm in row[1].split(", ")]
    threat = holdfast.parse_threat(f"{norm}:1")
    if not listed:
        model, x = torch.nn.Linear(4, 3), torch.zeros(1, 4)
        with pytest.raises(errors.SettingError):
            holdfast.audit(model, (x, torch.zeros(1, dtype=torch.int64)), threat, protocol=name)
        return
    built = [(row[0], eval(row[2], vars(attacks).copy())) for row in listed]
    assert built == [(stage.name, stage.attack) for stage in PROTOCOLS[name](threat).stages]


@pytest.mark.parametrize("name", spatial.PROTOCOLS)
@pytest.mark.parametrize("place", [0, 1], ids=["moves", "moves and a ball"])
def test_protocols_page_gives_the_stages_against_moves(name: str, place: int) -> None:
    page = section(DOCS / "reference" / "protocols.md", "Rotations, translations and sizes")
    table = page.split("Where a ball follows")[place]
    listed = [[part and eval(part, vars(attacks).copy()) for part in row[2:]] for row in rows(table) if row[0] == name]
    stages = (spatial.PROTOCOLS, spatial.AND_BALL)[place][name](holdfast.Linf(0.1)).stages
    assert listed == [[stage.attack, stage.polish or ""] for stage in stages]


def test_command_line_page_lists_every_attack() -> None:
    listed = section(DOCS / "reference" / "cli.md", "holdfast attack").split("```")[1]
    assert sorted(listed.split()[1:]) == sorted(ATTACKS)


def test_python_page_names_what_packages_export() -> None:
    listed = section(DOCS / "reference" / "python.md", "In sub-packages")
    # The names of the others are also those of functions.
    others = ("audit", "certify", "games", "geometry", "lab", "testing", "train")
    for package in (attacks, *(importlib.import_module(f"holdfast.{name}") for name in others)):
        lines = [line for line in listed.splitlines() if line.startswith(f"| `{package.__name__}`: ")]
        named = [name for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])]
        assert sorted(named) == sorted(package.__all__), package


def test_zoo_page_lists_every_specimen() -> None:
    listed = rows((DOCS / "reference" / "zoo.md").read_text())
    honest = {name: specimen.honest for name, specimen in ZOO.items()}
    assert {name: state == "honest" for name, state, _ in listed} == honest


def test_lab_page_lists_every_experiment() -> None:
    assert dict(rows(section(DOCS / "how-to" / "use-the-lab.md", "Gallery"))) == EXPERIMENTS


def test_gallery_is_what_the_lab_wrote(tmp_path: Path) -> None:
    gallery = DOCS / "gallery"
    for name, title in EXPERIMENTS.items():
        document = json.loads((gallery / f"{name}.json").read_text())
        assert document["title"] == title
        assert {claim["verdict"] for claim in document["claims"]} == {"confirmed"}, name
        assert (gallery / f"{name}.png").exists()
    copy = shutil.copytree(gallery, tmp_path / "gallery")
    assert write_page(copy, EXPERIMENTS).read_text() == (gallery / "index.md").read_text()


TRAINING = DOCS / "reference" / "training.md"


def test_training_page_lists_every_method() -> None:
    listed = {row[0]: row[1] for row in rows(section(TRAINING, "Methods"))}
    known = training.METHODS | {f"{name}:": kind for name, kind in training.WRAPPERS.items()}
    assert listed == {name: kind.__name__ for name, kind in known.items()}


def test_training_page_gives_the_recipe() -> None:
    table = {row[0]: row[1] for row in rows(section(TRAINING, "Recipe"))}
    assert table == {f.name: "required" if f.default is MISSING else str(f.default) for f in fields(Recipe)}


CERTIFY = DOCS / "reference" / "certify.md"


def test_certification_page_gives_the_methods() -> None:
    methods, bounds = (
        [row[0] for row in rows(table)] for table in section(CERTIFY, "Methods").split("`output_bounds(")
    )
    assert tuple(methods) == METHODS
    assert tuple(bounds) == get_args(BoundMethod)
    threat = holdfast.parse_threat("linf:0.1")
    model, x = torch.nn.Linear(4, 3), torch.full((1, 4), 0.5)
    for row in rows(section(CERTIFY, "Methods").split("`output_bounds(")[0]):
        for norm in row[2].split(", "):
            threat = holdfast.parse_threat(f"{norm}:1")
            assert len(holdfast.certify(model, x, model(x).argmax(1), threat, method=row[0])) == 1


@pytest.mark.parametrize("kind", [Certificate, Distance, Verification, SmoothingResult])
def test_certification_page_names_every_field(kind: type) -> None:
    first = section(CERTIFY, kind.__name__).split("\n\n| noise")[0]
    assert [row[0] for row in rows(first)] == [field.name for field in fields(kind)]


def test_certification_page_lists_every_operation() -> None:
    listed = [name for row in rows(section(CERTIFY, "Operations")) for name in row[1].replace("`", "").split()]
    assert sorted(listed) == sorted({name.partition(".")[0] for name in {*RULES, *CASTS}})


def test_python_page_names_everything_public() -> None:
    names = [row[0] for row in rows(section(DOCS / "reference" / "python.md", "Names"))]
    assert sorted(names) == sorted(holdfast.__all__)


def test_objectives_page_names_them_all() -> None:
    named = {row[0] for row in rows((DOCS / "reference" / "objectives.md").read_text())}
    assert named == set(objectives.__all__) - {"ObjectiveName"}


def test_run_store_page_names_every_column() -> None:
    from holdfast.audit.tables import SCHEMA

    page = DOCS / "reference" / "run-sqlite.md"
    for table, columns in re.findall(r"TABLE IF NOT EXISTS (\w+) \((.*?)\)(?: WITHOUT ROWID)?;", SCHEMA, re.DOTALL):
        names = re.findall(r"(?:^|,)\s*(\w+) (?:TEXT|INTEGER|REAL|BLOB)", columns)
        assert [row[0] for row in rows(section(page, table))] == names, table


def test_version_is_the_same_everywhere() -> None:
    assert f"version: {holdfast.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{holdfast.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
