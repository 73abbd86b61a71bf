"""Rows of a file or of the Hub, one after the other: no source is held in memory, but SciKnowEval for its split.

Only tables are read (JSON lines, a JSON array, parquet, `datasets`' own formats); a data set's own code is never run.
A row that the table's reader cannot make is left out, as one that is not JSON is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import hf_hub_download

from vopd_recipes.data import sciknoweval
from vopd_recipes.data.json_rows import json_rows
from vopd_recipes.data.origin import ask_only_the_cache
from vopd_recipes.data.recipe import DataRecipe, EvaluationSet, Source
from vopd_recipes.data.rows import Left, Row
from vopd_recipes.recipe import RecipeError, is_hub_id, nearest, one_line

Numbered = tuple[int, Row | Left]

_UNREADABLE = (ValueError, OverflowError, pa.ArrowException)
_FILES = (".jsonl", ".json", ".parquet")
_ROWS, _DECODED = 256, 32 << 20  # rows, and about the bytes of them, decoded at a time


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
            yield from json_rows(file, str(path))
    except (OSError, pa.ArrowException) as error:
        raise RecipeError(f"dataset_name: cannot read {path}: {one_line(error, 300)}") from None


def _parquet(path: Path, source: Source) -> Iterator[Row | Left]:
    with pq.ParquetFile(path) as file:
        columns = _present(source, file.schema_arrow.names)
        groups = [file.metadata.row_group(place) for place in range(file.num_row_groups)]
        largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
        for batch in file.iter_batches(batch_size=_rows_at_once(largest), columns=columns):
            yield from _readable(partial(_sliced, batch), range(batch.num_rows))


def _rows_at_once(bytes_of_a_row: float) -> int:
    return max(1, min(_ROWS, int(_DECODED / max(1.0, bytes_of_a_row))))


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


def _sliced(table: pa.RecordBatch, places: range) -> list[Row]:
    return table.slice(places.start, len(places)).to_pylist()


def _readable(read: Callable[[range], list[Row]], places: range) -> Iterator[Row | Left]:
    """All rows at once, or one by one where one of them cannot be read.

    A string column does not promise UTF-8, nor a time a year that there is.
    """
    rows: list[Row | Left]
    try:
        rows = [*read(places)]
    except _UNREADABLE:
        rows = [_one(read, place) for place in places]
    yield from rows


def _one(read: Callable[[range], list[Row]], place: int) -> Row | Left:
    try:
        return read(range(place, place + 1))[0]
    except _UNREADABLE as error:
        return Left(
            "malformed", "not UTF-8" if isinstance(error, UnicodeDecodeError) else "a value that cannot be read"
        )


# The Hub -------------------------------------------------------------------------------------------------------------


def _hub(source: Source) -> Iterator[Row | Left]:
    """By `datasets`' cache, which is mapped into memory and not read into it."""
    name = source.dataset_name
    try:
        found = _loaded(source)
    except Exception as error:  # the readers raise dozens of types; each becomes one line
        if isinstance(error, ConnectionError):
            ask_only_the_cache()
        raise _hub_error(name, error) from None
    if isinstance(found, list):
        for path in found:
            yield from _file(path, source)
        return
    chosen = found.select_columns(_present(source, found.column_names))
    step = _rows_at_once(chosen.data.nbytes / max(1, len(chosen)))
    for start in range(0, len(chosen), step):
        yield from _decoded(chosen, range(start, min(start + step, len(chosen))))


def _loaded(source: Source) -> datasets.Dataset | list[Path]:
    """The set; its files of JSON where `datasets` gives up on all of them for the sake of one row."""
    name, config, revision = source.dataset_name, source.dataset_config, source.dataset_revision
    try:
        return datasets.load_dataset(name, config, split=source.dataset_split, revision=revision)
    except (DatasetGenerationError, ValueError):
        found = datasets.load_dataset_builder(name, config, revision=revision).config.data_files or {}
        places = [url.partition("@")[2].partition("/") for url in found.get(source.dataset_split, [])]
        if not places or not all(path.endswith((".jsonl", ".json")) for _, _, path in places):
            raise
        return [Path(hf_hub_download(name, path, repo_type="dataset", revision=at)) for at, _, path in places]


def _decoded(chosen: datasets.Dataset, places: range) -> Iterator[Row | Left]:
    """Rows by `datasets`, which also undoes the JSON in which it keeps a column of several types."""

    def read(part: range) -> list[Row]:
        columns = chosen[part.start : part.stop]
        return [dict(zip(columns, values)) for values in zip(*columns.values())]

    return _readable(read, places)


def _hub_error(name: str, error: Exception) -> RecipeError:
    text = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error, 300)
    if isinstance(error, DatasetNotFoundError) and "gated" in text:
        return Unreachable(
            f"{name} is gated, and this machine has no access: accept its terms at https://huggingface.co/datasets/"
            f"{name} and run `hf auth login`, or name a local file as dataset_name"
        )
    if isinstance(error, ConnectionError) or "offline" in text.lower():
        return Unreachable(f"{name}: the Hub cannot be reached; check the network, or name a local file")
    return RecipeError(f"dataset_name: cannot read {name} from the Hub: {text}")


# SciKnowEval ---------------------------------------------------------------------------------------------------------


def _science(rows: Iterable[Numbered], source: Source) -> Iterator[Numbered]:
    """The training part for a training set, the test part for an evaluation set, and what is malformed."""
    domain = str(source.domain)
    chosen: list[dict[str, Any]] = []
    for number, row in rows:
        if isinstance(row, Left):
            yield number, row
        elif why := sciknoweval.defect(row, domain, source.level):
            yield number, Left("malformed", why)
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
