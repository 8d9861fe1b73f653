"""The page shows what lies in the folder, and nothing else."""

import json
import os
import re

import pytest
from PIL import Image

from holdfast.errors import RunError
from holdfast.lab import Experiment, Finding, near, write_page

NAMES = ("first", "second", "third")


def figure(data):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 4))
    drawn.subplots().plot(data["values"], color="#c8442e", lw=8)
    return drawn


def save(folder, name, measured, text="one is 1"):
    claims = (near(text, "arithmetic", measured, 1, 0),)
    experiment = Experiment(name, f"what {name} shows", lambda: None, figure)
    return experiment.save(Finding(claims, {"values": [1, 3, 2]}), folder)


def parts(page):
    """Sections by their heading."""
    return dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL))


def test_experiments_are_shown_in_the_order_of_the_gallery_with_figure_and_claims(tmp_path):
    save(tmp_path, "second", 1)
    save(tmp_path, "first", 1.25)
    page = write_page(tmp_path, NAMES)
    assert page == tmp_path / "index.md"
    assert list(parts(page)) == ["first", "second"]
    assert "Experiments: 2. Claims: 2, of which 1 refuted." in page.read_text()
    first = parts(page)["first"]
    assert "What first shows." in first
    assert "![what first shows](first.png)" in first
    assert "| one is 1 | arithmetic | 1 | 1.25 | refuted |" in first
    assert "| one is 1 | arithmetic | 1 | 1 | confirmed |" in parts(page)["second"]
    for name in ("first", "second"):
        assert f"- [{name}](#{name}): what {name} shows" in page.read_text()


def test_what_is_run_again_is_shown_anew_and_the_rest_stays(tmp_path):
    for name in NAMES:
        save(tmp_path, name, 2)
    before = parts(write_page(tmp_path, NAMES))
    save(tmp_path, "second", 1)
    after = parts(write_page(tmp_path, NAMES))
    assert "refuted" in before["second"]
    assert "confirmed" in after["second"]
    assert {name: after[name] for name in ("first", "third")} == {name: before[name] for name in ("first", "third")}


def test_no_sign_in_a_claim_breaks_the_table(tmp_path):
    save(tmp_path, "first", 1, text="||w||_1 < [a] * `b` \\ c_d_e")
    (row,) = re.findall(r"^\| .*confirmed \|$", write_page(tmp_path, NAMES).read_text(), re.MULTILINE)
    cells = re.split(r"(?<!\\)\|", row)[1:-1]
    assert len(cells) == 5
    assert re.sub(r"\\(.)", r"\1", cells[0]).strip() == "||w||_1 < [a] * `b` \\ c_d_e"


def test_an_experiment_without_a_figure_and_a_folder_without_experiments(tmp_path):
    save(tmp_path, "first", 1)[0].unlink()
    assert "png" not in parts(write_page(tmp_path, NAMES))["first"]
    (tmp_path / "first.json").unlink()
    assert "Experiments: 0. Claims: 0" in write_page(tmp_path, NAMES).read_text()


def test_a_file_that_the_lab_did_not_write_is_named(tmp_path):
    save(tmp_path, "first", 1)
    before = write_page(tmp_path, NAMES).read_text()
    for content in ('{"claims": [', json.dumps({"title": "no claims"}), "[1]"):
        (tmp_path / "second.json").write_text(content)
        with pytest.raises(RunError, match=r"second\.json: not what the lab writes; run `holdfast lab second`"):
            write_page(tmp_path, NAMES)
    assert (tmp_path / "index.md").read_text() == before


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    save(tmp_path, "first", 1)
    page = write_page(tmp_path, NAMES)
    assert {path.name for path in tmp_path.iterdir()} == {"first.png", "first.json", "index.md"}
    before = page.read_text()
    monkeypatch.setattr(
        "pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(RunError, match="No space left"):
        write_page(tmp_path, NAMES)
    assert page.read_text() == before


def test_figures_are_small_and_keep_their_colours(tmp_path):
    picture = Image.open(save(tmp_path, "first", 1)[0])
    assert picture.size == (1350, 600)
    assert picture.mode == "P"
    colours = {colour for _, colour in picture.convert("RGB").getcolors()}
    assert (0xC8, 0x44, 0x2E) in colours
    assert (255, 255, 255) in colours


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_bytes(bytes(2**24 + 1)),
        lambda path: path.write_text("[" * 10**5),
        lambda path: path.write_text(
            json.dumps({"title": "", "claims": [dict.fromkeys(("text", "source", "expected", "verdict"), "")]}).replace(
                '"verdict"', f'"measured": {"9" * 999}, "verdict"'
            )
        ),
    ],
    ids=["pipe", "device", "large", "brackets", "digits"],
)
def test_a_file_that_is_hostile_is_named(tmp_path, make):
    make(tmp_path / "second.json")
    with pytest.raises(RunError, match=r"second\.json: ") as error:
        write_page(tmp_path, NAMES)
    assert "\n" not in str(error.value)
