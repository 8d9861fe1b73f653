"""The gallery as a page: what was run into a folder, with figures, claims and verdicts."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from holdfast.errors import RunError
from holdfast.files import read_text, write_whole
from holdfast.words import plain

__all__ = ["write_page"]

_WORDS, _NUMBER = ("text", "source", "expected", "verdict"), "measured"


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
    found = [path for name in names if os.path.lexists(path := folder / f"{name}.json")]
    read = {path.stem: _read(path) for path in found}
    verdicts = [claim["verdict"] for document in read.values() for claim in document["claims"]]
    parts = [
        "# The gallery of the lab",
        f"Experiments: {len(read)}. Claims: {len(verdicts)}, of which {verdicts.count('refuted')} refuted. "
        "This page is made by `holdfast lab NAME --out DIR` out of what it wrote to the folder; the numbers behind a "
        "figure are in `NAME.json`.",
        "\n".join(f"- [{name}](#{name}): {_escaped(document['title'])}" for name, document in read.items()),
        *(_section(folder, name, document) for name, document in read.items()),
    ]
    text = "\n\n".join(parts) + "\n"
    write_whole(page, lambda part: part.write_text(text, encoding="utf-8"), "give an --out folder that can be written")
    return page


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_text(path, RunError))
        words = [{key: str(claim[key]) for key in _WORDS} for claim in document["claims"]]
        numbers = [{_NUMBER: float(claim[_NUMBER])} for claim in document["claims"]]
        claims = [said | measured for said, measured in zip(words, numbers, strict=True)]
        return {"title": str(document["title"]), "claims": claims}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RunError(
            f"{path}: not what the lab writes; run `holdfast lab {path.stem}` into the folder again"
        ) from error


def _section(folder: Path, name: str, document: dict[str, Any]) -> str:
    title = _escaped(document["title"])
    figure = [f"![{title}]({name}.png)"] if (folder / f"{name}.png").exists() else []
    table = [
        "| claim | source | expected | measured | verdict |",
        "|---|---|---:|---:|---|",
        *(
            f"| {_escaped(claim['text'])} | {_escaped(claim['source'])} | {_escaped(claim['expected'])} "
            f"| {claim['measured']:.6g} | {_escaped(claim['verdict'])} |"
            for claim in document["claims"]
        ),
    ]
    return "\n\n".join([f"## {name}", f"{title[:1].upper()}{title[1:]}.", *figure, "\n".join(table)])


def _escaped(text: str) -> str:
    """Text in one line that Markdown leaves as it is."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", plain(text))
