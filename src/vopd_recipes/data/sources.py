"""Rows of a file or of the Hub, one after the other: no source is held in memory, but SciKnowEval for its split.

Only tables are read (JSON lines, a JSON array, parquet, `datasets`' own formats); a data set's own code is never run.
A line that is not JSON, or not UTF-8, is a row that is left out; an array that breaks off is an error.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetNotFoundError

from vopd_recipes import sciknoweval
from vopd_recipes.data.origin import ask_only_the_cache
from vopd_recipes.data.recipe import DataRecipe, EvaluationSet, Source
from vopd_recipes.data.rows import Left, Row
from vopd_recipes.hub.queue import is_hub_id
from vopd_recipes.recipe_text import RecipeError, nearest

Numbered = tuple[int, Row | Left]

_FILES = (".jsonl", ".json", ".parquet")
_LONGEST_LINE = 64 << 20  # bytes of JSON for one row
_CHUNK = 1 << 20
_ROWS, _DECODED = 256, 32 << 20  # rows, and about the bytes of them, decoded at a time
_SPACE = re.compile(r"[ \t\r\n]*")
_NOTHING = object()


class Unreachable(RecipeError):
    """The source may well be there, but not for this machine: gated, or no network."""


def numbered_rows(source: Source) -> Iterator[Numbered]:
    """Rows with their numbers from 0; of SciKnowEval the rows of the part in question.

    Raises:
        RecipeError: the source or a column is not there.
        Unreachable: it cannot be reached or is gated.
    """
    rows = enumerate(_rows(source))
    return _science(rows, source) if source.source == "sciknoweval" else rows


def _columns(source: Source) -> list[str]:
    if source.source == "sciknoweval":
        return ["question", "choices", "answerKey", "type", "domain", "details"]
    named = [source.prompt_column, source.choices_column]
    named += [source.answer_column] if isinstance(source, DataRecipe) else []
    return list(dict.fromkeys(name for name in named if name))


def _rows(source: Source) -> Iterator[Row | Left]:
    name, path = source.dataset_name, Path(source.dataset_name)
    if path.is_file() and path.suffix in _FILES:
        return _file(path, source)
    if path.suffix in _FILES or not is_hub_id(name):
        problem = "expected a .jsonl, .json or .parquet file" if path.exists() else "no such file, and not a Hub id"
        raise RecipeError(f"dataset_name: {name}: {problem}")
    return _hub(source)


# Files ---------------------------------------------------------------------------------------------------------------


def _file(path: Path, source: Source) -> Iterator[Row | Left]:
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path, source)
            return
        with path.open("rb") as file:
            is_array = path.suffix == ".json" and file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
            file.seek(0)
            yield from _json_array(file, path) if is_array else _json_lines(file)
    except (OSError, pa.ArrowException) as error:
        raise RecipeError(f"dataset_name: cannot read {path}: {_one_line(error)}") from None


def _json_lines(file: BinaryIO) -> Iterator[Row | Left]:
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield Left("malformed", f"a line over {_LONGEST_LINE >> 20} MiB")
        elif line.strip():
            yield _row_of(line)


def _row_of(line: bytes) -> Row | Left:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Left("malformed", "not UTF-8")
    except (ValueError, RecursionError):
        return Left("malformed", "not JSON")
    return row if isinstance(row, dict) else Left("malformed", "not an object")


def _json_array(file: BinaryIO, path: Path) -> Iterator[Row | Left]:
    """The items of one JSON array, decoded as they arrive."""
    decoder, more = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
    text, number = more.decode(file.read(_CHUNK)), 0
    at, size = text.index("[") + 1, _CHUNK
    while True:
        found = _item(decoder, text, at)
        if found is None:  # the item goes on after this chunk, or is not JSON
            block = file.read(size) if len(text) - at < _LONGEST_LINE else b""
            if not block:
                raise RecipeError(f"dataset_name: {path}: item {number} of the array is not JSON")
            text, at, size = text[at:] + more.decode(block), 0, 2 * size  # twice: one long item stays linear
            continue
        row, at, is_last = found
        if row is not _NOTHING:
            yield row if isinstance(row, dict) else Left("malformed", "not an object")
        if is_last:
            return
        number, size = number + 1, _CHUNK


def _item(decoder: json.JSONDecoder, text: str, at: int) -> tuple[Any, int, bool] | None:
    """An item, where the next one starts, and whether it is the last; `None` where the text is not enough to tell."""
    try:
        at = _past_space(text, at)
        if text[at] == "]":
            return _NOTHING, at, True
        row, end = decoder.raw_decode(text, at)
        end = _past_space(text, end)
        return (row, end + 1, text[end] == "]") if text[end] in ",]" else None
    except (ValueError, IndexError, RecursionError):
        return None


def _past_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _parquet(path: Path, source: Source) -> Iterator[Row | Left]:
    with pq.ParquetFile(path) as file:
        columns = _present(source, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata), columns=columns):
            yield from _table_rows(batch)


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    return max(1, min(_ROWS, int(_DECODED / max(1.0, largest))))


def _present(source: Source, names: Iterable[str]) -> list[str]:
    """The columns to read, of a table that says which it has."""
    names, found = list(names), []
    for column in _columns(source):
        top = column if column in names else column.split(".")[0]
        if top not in names:
            known = nearest(column, names)
            raise RecipeError(f"{source.dataset_name} has no column '{column}'; it has {', '.join(names)}{known}")
        found.append(top)
    return list(dict.fromkeys(found))


def _table_rows(table: pa.RecordBatch | pa.Table) -> Iterator[Row | Left]:
    try:
        yield from table.to_pylist()
    except UnicodeDecodeError:  # one of the rows; a string column does not promise UTF-8
        for place in range(table.num_rows):
            try:
                yield table.slice(place, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield Left("malformed", "not UTF-8")


# The Hub -------------------------------------------------------------------------------------------------------------


def _hub(source: Source) -> Iterator[Row | Left]:
    """By `datasets`' cache, which is mapped into memory and not read into it."""
    name = source.dataset_name
    try:
        found = datasets.load_dataset(
            name, source.dataset_config, split=source.dataset_split, revision=source.dataset_revision
        )
    except Exception as error:  # the readers raise dozens of types; each becomes one line
        if isinstance(error, ConnectionError):
            ask_only_the_cache()
        raise _hub_error(name, error) from None
    columns = _present(source, found.column_names)
    for table in found.select_columns(columns).with_format("arrow").iter(_ROWS):
        yield from _table_rows(table)


def _hub_error(name: str, error: Exception) -> RecipeError:
    text = _one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
    if isinstance(error, DatasetNotFoundError) and "gated" in text:
        return Unreachable(
            f"{name} is gated, and this machine has no access: accept its terms at https://huggingface.co/datasets/"
            f"{name} and run `hf auth login`, or name a local file as dataset_name"
        )
    if isinstance(error, ConnectionError) or "offline" in text.lower():
        return Unreachable(f"{name}: the Hub cannot be reached; check the network, or name a local file")
    return RecipeError(f"dataset_name: cannot read {name} from the Hub: {text}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


# SciKnowEval ---------------------------------------------------------------------------------------------------------


def _science(rows: Iterable[Numbered], source: Source) -> Iterator[Numbered]:
    """The training part for a training set, the test part for an evaluation set, and what is malformed."""
    domain = str(source.domain)
    chosen: list[dict[str, Any]] = []
    for number, row in rows:
        if isinstance(row, Left):
            yield number, row
        elif problem := _science_problem(row, domain, source.level):
            yield number, Left("malformed", problem)
        elif sciknoweval.belongs(row, domain, source.level):
            chosen.append({**row, "number": number})
    try:
        train, test = sciknoweval.split(chosen, domain, source.level)
    except ValueError as error:
        raise RecipeError(f"{source.dataset_name}: {error}") from None
    if isinstance(source, EvaluationSet):
        yield from ((row["number"], row) for row in test)
        return
    asked = {sciknoweval.identity(row): row["number"] for row in test}
    kept = {row["number"] for row in (*train, *test)}
    for row in chosen:
        if row["number"] not in kept:
            where = f"row {asked[sciknoweval.identity(row)]} of {sciknoweval.DATASET}"
            yield row["number"], Left("contaminated", f"{where}, which the split tests")
    yield from ((row["number"], row) for row in train)


def _science_problem(row: Row, domain: str, level: str) -> str | None:
    """Why the split could not read a row."""
    try:
        if sciknoweval.belongs(row, domain, level):
            sciknoweval.identity(row).encode()
    except KeyError as error:
        return f"no column {error}"
    except UnicodeEncodeError:
        return "broken Unicode"
    except (TypeError, AttributeError, ValueError):
        return "a column of the wrong type"
    return None
