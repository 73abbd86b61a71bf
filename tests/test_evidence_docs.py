"""docs/evidence.md says what the files of docs/evidence say: its tables are made from them again, its pictures too."""

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

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
        heading = [f"p of {before}" if name == "p" else name for before, name in zip(["", *heading], heading)]
        found.append((heading, {row[0]: dict(zip(heading, row)) for row in rows}))
    return found


def test_every_number_of_the_tables_is_in_the_files(drawn: tuple[Path, str]) -> None:
    """A table of the page may leave columns out, and rows, and add a column that is no other's."""
    made = tables_in(drawn[1])
    told = tables_in((ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"))
    checked = 0
    for heading, rows in told:
        for other, theirs in made:
            if heading[0] != other[0] or not rows.keys() <= theirs.keys() or not set(heading) <= set(other):
                continue
            if all(theirs[name][column] == cell for name, row in rows.items() for column, cell in row.items()):
                checked += 1
                break
        else:
            assert not any(heading[0] == other[0] and set(heading) <= set(other) for other, _ in made), heading
    assert checked >= 9  # tables of outcomes, their differences, and what was measured on frozen students


def test_the_pictures_are_those_of_the_files(drawn: tuple[Path, str]) -> None:
    """By their size: fonts may differ by a pixel's shade between machines."""
    pictures = sorted(drawn[0].glob("*.png"))
    assert len(pictures) == 6
    for picture in pictures:
        with Image.open(picture) as made, Image.open(ROOT / "docs" / picture.name) as kept:
            assert made.size == kept.size, picture.name


def test_the_files_are_small() -> None:
    files = list((ROOT / "docs" / "evidence").iterdir())
    assert files and sum(file.stat().st_size for file in files) < 1_000_000
    assert {file.suffix for file in files} == {".json"}
