"""The gallery as a page: what was run into a folder, with figures, claims and verdicts."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdfast.errors import RunError
from holdfast.lab.files import write_whole

__all__ = ["write_page"]

_KEYS = ("text", "source", "expected", "measured", "verdict")


def write_page(folder: Path, names: Iterable[str]) -> Path:
    """Write ``index.md`` from the files that :meth:`holdfast.lab.Experiment.save` left in a folder.

    It is made anew every time, so that an experiment that was run again is shown as it is now.

    Parameters
    ----------
    folder : Path
        With a ``NAME.json``, and a ``NAME.png`` or none, for each experiment that was run.
    names : iterable of str
        Of the experiments, in the order of the page; those that have no file are left out.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    RunError
        When a file is not what the lab wrote, or the page cannot be written.
    """
    page = folder / "index.md"
    found = [path for name in names if (path := folder / f"{name}.json").exists()]
    read = {path.stem: _read(path) for path in found}
    verdicts = [claim["verdict"] for document in read.values() for claim in document["claims"]]
    parts = [
        "# The gallery of the lab",
        f"Experiments: {len(read)}. Claims: {len(verdicts)}, of which {verdicts.count('refuted')} refuted. "
        "This page is made by `holdfast lab NAME --out DIR` out of what it wrote to the folder; the numbers behind a "
        "figure are in `NAME.json`.",
        "\n".join(f"- [{name}](#{name}): {_plain(document['title'])}" for name, document in read.items()),
        *(_section(folder, name, document) for name, document in read.items()),
    ]
    try:
        write_whole(page, ("\n\n".join(parts) + "\n").encode())
    except OSError as error:
        raise RunError(f"{page}: {error.strerror or error}; give an --out folder that can be written") from error
    return page


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        claims = [{key: claim[key] for key in _KEYS} for claim in document["claims"]]
        return {"title": str(document["title"]), "claims": claims}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: not what the lab writes; run `holdfast lab {path.stem}` into the folder again"
        ) from error


def _section(folder: Path, name: str, document: dict[str, Any]) -> str:
    title = _plain(document["title"])
    figure = [f"![{title}]({name}.png)"] if (folder / f"{name}.png").exists() else []
    table = [
        "| claim | source | expected | measured | verdict |",
        "|---|---|---:|---:|---|",
        *(
            f"| {_plain(claim['text'])} | {_plain(claim['source'])} | {claim['expected']} | {claim['measured']:.6g} "
            f"| {claim['verdict']} |"
            for claim in document["claims"]
        ),
    ]
    return "\n\n".join([f"## {name}", f"{title[0].upper()}{title[1:]}.", *figure, "\n".join(table)])


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
