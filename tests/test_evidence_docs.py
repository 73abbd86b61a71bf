"""docs/evidence.md says what the files of docs/evidence say: its tables are made from them again, its pictures too."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from PIL import Image, ImageChops

from vopd_recipes.evidence import draw_baselines

ROOT = Path(__file__).parents[1]
Table = tuple[list[str], dict[str, dict[str, str]]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the pictures, and the tables."""
    spec = importlib.util.spec_from_file_location("draw_evidence", ROOT / "scripts" / "draw_evidence.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("drawn")
    return folder, "\n\n".join(script.draw(ROOT / "docs" / "evidence", folder))


def tables_in(text: str) -> list[Table]:
    """Headings, and first cell → heading → cell, of every Markdown table."""
    found = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        lines = [[cell.strip().strip("*") for cell in line.split("|")[1:-1]] for line in block.strip().splitlines()]
        heading, _, *rows = lines
        assert len({row[0] for row in rows}) == len(rows) and {len(row) for row in rows} == {len(heading)}, heading
        heading = [f"p of {before}" if name == "p" else name for before, name in zip(["", *heading], heading)]
        found.append((heading, {row[0]: dict(zip(heading, row)) for row in rows}))
    return found


# Tables of the page that are made from no file, by their first two headings.
EXEMPT = {
    ("at hand", "take"),  # what to choose
    ("", "CPU time over OPD's"),  # of scripts/benchmark_step.py
    ("ratio to OPD", "OPD, authors' released code (constant 1)"),  # of runs that are not kept
}


def untold(page: str, made: list[Table]) -> list[list[str]]:
    """Headings of a page's tables that no table made from the files has, with these rows, columns and numbers.

    A table of the page may leave out columns and rows.
    """

    def is_part_of(told: Table, other: Table) -> bool:
        (heading, rows), (headings, theirs) = told, other
        return heading[0] == headings[0] and all(
            theirs.get(name, {}).get(column) == cell for name, row in rows.items() for column, cell in row.items()
        )

    told = [table for table in tables_in(page) if tuple(table[0][:2]) not in EXEMPT]
    return [table[0] for table in told if not any(is_part_of(table, other) for other in made)]


def test_every_number_of_the_tables_is_in_the_files(drawn: tuple[Path, str]) -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert untold(page, tables_in(drawn[1])) == []
    assert {tuple(heading[:2]) for heading, _ in tables_in(page)} >= EXEMPT


def test_a_wrong_number_and_a_table_of_no_file_are_found(drawn: tuple[Path, str]) -> None:
    """In each table in turn: its last digit, its first heading, its first row's name."""
    page, made = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), tables_in(drawn[1])
    for block in re.findall(r"(?:^\|.*\|$\n?)+", page, flags=re.MULTILINE):
        ((heading, rows),) = tables_in(block)
        if tuple(heading[:2]) in EXEMPT:
            continue
        last = [found.start() for found in re.finditer(r"\d", block)][-1]
        digit = block[:last] + str((int(block[last]) + 1) % 10) + block[last + 1 :]
        renamed = block.replace(heading[0], "something else", 1)
        another = block.replace(f"| {next(iter(rows))} |", "| something else |", 1)
        assert untold(block, made) == [] and all(len(untold(text, made)) == 1 for text in (digit, renamed, another))


def differ(made: Image.Image, kept: Image.Image) -> bool:
    """Whether two pictures show something else, by squares of 8 pixels in grey, of 255.

    Letters whose edges have another shade, or a pixel's shift, move no square by more than 32 and all of them by less
    than 2 in the mean; a single point of a curve that is a fifth higher moves one by 97.
    """
    if made.size != kept.size:
        return True
    small = (made.width // 8, made.height // 8)
    first, second = (
        np.asarray(picture.convert("L").resize(small, Image.Resampling.BOX), dtype=float) for picture in (made, kept)
    )
    moved = np.abs(first - second)
    return bool(moved.max() > 48 or moved.mean() > 2)


def test_the_pictures_are_those_of_the_files(drawn: tuple[Path, str]) -> None:
    pictures = sorted(drawn[0].glob("*.png"))
    assert len(pictures) >= 6
    for picture in pictures:
        with Image.open(picture) as made, Image.open(ROOT / "docs" / picture.name) as kept:
            assert not differ(made, kept), picture.name


def test_a_picture_of_other_numbers_is_found(tmp_path: Path) -> None:
    """And one whose letters are drawn otherwise, or that lies a pixel further, is none."""
    with Image.open(ROOT / "docs" / "evidence-baselines.png") as picture:
        kept = picture.convert("L")
    content = json.loads((ROOT / "docs" / "evidence" / "baselines-smollm2.json").read_text(encoding="utf-8"))

    def drawn_anew() -> Image.Image:
        with Image.open(draw_baselines(content, tmp_path / "drawn.png")) as picture:
            return picture.convert("L")

    with rc_context({"text.antialiased": False}):
        assert not differ(drawn_anew(), kept)
    assert not any(differ(ImageChops.offset(kept, *by), kept) for by in ((1, 0), (0, 1)))
    _, measured = content["errors"]["student"][4]
    measured["value"] *= 1.2
    assert differ(drawn_anew(), kept)
    assert differ(kept.resize((kept.width, kept.height + 1)), kept)


def test_the_files_are_small() -> None:
    files = list((ROOT / "docs" / "evidence").iterdir())
    assert files and sum(file.stat().st_size for file in files) < 1_000_000
    assert {file.suffix for file in files} == {".json"}
