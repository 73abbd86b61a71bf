"""Where questions come from: the Hub, local files in its place, or a seed.

Only tables are read (`datasets`' own formats, JSON lines, JSON, parquet); a data set's own code is never run.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow.parquet as pq
from datasets.exceptions import DatasetNotFoundError

from vopd_recipes.data import ask_only_the_cache, sciknoweval
from vopd_recipes.recipe import RecipeError, one_line
from vopd_recipes.tiny import problems as arithmetic

Row = dict[str, Any]


class Table(NamedTuple):
    """Rows, and whose they are.

    Args:
        rows: of the questions.
        dataset_name: what was read: a Hub id, the name of a local file, or `built in`.
        dataset_config: configuration on the Hub, or the part of the set that is asked. Tasks of one data set need it
            to be told apart.
        dataset_split: on the Hub.
        commit: on the Hub, after an `@`.
    """

    rows: list[Row]
    dataset_name: str
    dataset_config: str | None = None
    dataset_split: str | None = None
    commit: str = ""


Rows = Callable[[Path | None], Table]  # of the folder of local files, or None for the Hub

_ARITHMETIC_PROBLEMS = 256


def hub(dataset: str, file: str, *, config: str | None = None, split: str = "test") -> Rows:
    """The rows of a data set on the Hub, or of `file`.jsonl, .json or .parquet in a local folder."""
    return lambda data_dir: _read(dataset, file, config, split, data_dir)


def science(domain: str) -> Rows:
    """SciKnowEval's test questions of a domain; see `vopd_recipes.data.sciknoweval`."""

    def rows(data_dir: Path | None) -> Table:
        read = _read(sciknoweval.DATASET, "sciknoweval", None, "test", data_dir)
        try:
            test = [dict(row) for row in sciknoweval.split(read.rows, domain)[1]]
            return read._replace(rows=test, dataset_config=f"{domain.lower()}-L3")
        except ValueError as error:
            raise RecipeError(str(error)) from None

    return rows


def built_in(kind: str) -> Rows:
    """The held-out problems of the built-in pair, or others of the same making."""

    def rows(data_dir: Path | None) -> Table:
        problems = arithmetic.split(kind, train=0, test=_ARITHMETIC_PROBLEMS)[1]
        return Table([{"problem": problem.prompt, "answer": problem.answer} for problem in problems], "built in", kind)

    return rows


@functools.lru_cache(maxsize=2)  # four tasks read SciKnowEval one after the other
def _read(dataset: str, file: str, config: str | None, split: str, data_dir: Path | None) -> Table:
    table = _from_hub(dataset, config, split) if data_dir is None else _from_folder(data_dir, file)
    if not table.rows:
        raise RecipeError(f"{dataset if data_dir is None else data_dir / file}: it has no rows")
    return table


def _from_hub(dataset: str, config: str | None, split: str) -> Table:
    try:
        loaded = datasets.load_dataset(dataset, config, split=split)
        return Table(loaded.to_list(), dataset, config, split, _commit(loaded))
    except Exception as error:  # the readers raise dozens of types; each becomes one line
        if isinstance(error, ConnectionError):
            ask_only_the_cache()  # until the questions are read: there are ten tasks
        raise RecipeError(f"{dataset}: {_reason(dataset, error)}") from error


def _commit(loaded: datasets.Dataset) -> str:
    """`@` and the commit that was read, as the addresses of its files have it; nothing where they have none."""
    found = re.search(r"@[0-9a-f]{40}(?=/)", " ".join(loaded.info.download_checksums or ()))
    return found[0] if found else ""


def _reason(dataset: str, error: Exception) -> str:
    text = one_line(error)
    if isinstance(error, DatasetNotFoundError) and "gated" in text:
        return (
            f"a gated data set, and this machine has no access: accept its terms at https://huggingface.co/datasets/"
            f"{dataset} and run `hf auth login`, or give a local file by DATA_DIR"
        )
    if isinstance(error, ConnectionError) or "offline" in text.lower():
        return "the Hub cannot be reached; check the network, or give a local file by DATA_DIR"
    return f"cannot be read from the Hub: {text[:300]}"


def _from_folder(folder: Path, file: str) -> Table:
    for suffix in (".jsonl", ".json", ".parquet"):
        path = folder / f"{file}{suffix}"
        if path.is_file():
            break
    else:
        raise RecipeError(f"DATA_DIR: {folder} holds no {file}.jsonl, {file}.json or {file}.parquet")
    try:
        if suffix == ".parquet":
            return Table(pq.read_table(path).to_pylist(), path.name)
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
        return Table(rows, path.name)
    except (OSError, ValueError) as error:
        raise RecipeError(f"DATA_DIR: {path} cannot be read: {one_line(error, 200)}") from None
