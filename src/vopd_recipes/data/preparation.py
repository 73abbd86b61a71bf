"""Rows in, a training set out: read, filter, write, count.

Rows pass the filters in batches and in this order, and each is counted by the first that leaves it out:

    malformed → unverifiable → language → overlong → contaminated → duplicate → near_duplicate

Contamination comes before duplicates, so that every copy of an evaluation question is named as one. What stays is
written at once, in row groups of bounded size, so that memory grows only by the duplicate indices. The same input
gives the same bytes: nothing depends on the number of cores or on Python's hash seed, and on time only whether an
answer is one that math-verify reads within seconds.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vopd_recipes.data.answers import AnswerCheck
from vopd_recipes.data.card import data_card
from vopd_recipes.data.contamination import Contamination, Question
from vopd_recipes.data.duplicates import ExactDuplicates, NearDuplicates
from vopd_recipes.data.language import not_english
from vopd_recipes.data.lengths import LengthOf, length_of, too_long
from vopd_recipes.data.origin import Origin, hub_asked_once, is_same, origin_of, pinned
from vopd_recipes.data.recipe import DataRecipe, EvaluationSet, Source
from vopd_recipes.data.rows import Left, Problem, problem_of, question_of
from vopd_recipes.data.sources import Numbered, Unreachable, numbered_rows
from vopd_recipes.files import check_writable, sha256_of, written_whole
from vopd_recipes.hub import scrub
from vopd_recipes.recipe import RecipeError

Filter = Callable[[list[Problem]], list[str | None]]

FILTERS = ("malformed", "unverifiable", "language", "overlong", "contaminated", "duplicate", "near_duplicate")
TABLE, REMOVED, SUMMARY = "train.parquet", "removed.jsonl", "summary.json"

_BATCH_ROWS, _BATCH_CHARACTERS = 1024, 1 << 20
_GROUP_ROWS, _GROUP_CHARACTERS = 10_000, 8 << 20
_SCHEMA_VERSION = 2
_SCHEMA = pa.schema([("prompt", pa.string()), ("answer", pa.string())])


@dataclass
class Counts:
    """What happened to the rows."""

    read: int = 0
    written: int = 0
    unverifiable: int = 0  # and kept
    removed: Counter[str] = field(default_factory=Counter)  # filter → rows
    malformed: Counter[str] = field(default_factory=Counter)  # reason → rows
    characters: int = 0
    longest: int = 0


def prepare(recipe: DataRecipe) -> dict[str, Any]:
    """Make the training set in the recipe's output folder, which is whole or not there.

    Returns:
        The summary, as it stands in `summary.json`.

    Raises:
        RecipeError: a source that cannot be read, a place that cannot be written to, or no row is left.
    """
    output = Path(recipe.output_dir)
    if output.exists():
        raise RecipeError(f"output_dir: {output} is there already; delete it or name another")
    check_writable(output.parent, "output_dir")
    with hub_asked_once():
        origin = origin_of(recipe)
        rows = _peeked(pinned(recipe, origin))
        lengths = length_of(recipe.tokenizer_name_or_path)
        questions, sets = _questions(recipe.evaluation_sets)
        contamination = Contamination(questions, recipe.contamination_ngram, recipe.contamination_overlap)
        exact = ExactDuplicates()
        with written_whole(output) as folder, AnswerCheck(recipe.answer_format, _cores()) as answers:
            folder.mkdir()
            filters = _filters(recipe, answers, lengths, contamination, exact)
            counts = _write(rows, recipe, filters, folder)
            if not counts.written:
                raise RecipeError(_nothing_left(recipe, counts))
            for name, known in sets.items():
                known["hits"] = contamination.hits[name]
            summary = _summary(recipe, origin, counts, sets, exact.contradictions, folder)
            (folder / SUMMARY).write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            (folder / "README.md").write_text(data_card(summary), encoding="utf-8")
    return summary


def prepared(recipe: DataRecipe) -> dict[str, Any] | None:
    """The summary of a folder that this recipe has made before from the same input; `None` if there is none."""
    folder = Path(recipe.output_dir)
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        is_ours = summary["schema_version"] == _SCHEMA_VERSION and summary["recipe"] == _published(recipe)
        if not is_ours or not _is_whole(folder, summary):
            return None
        said = [summary["evaluation_sets"][known.name] for known in recipe.evaluation_sets]
        recorded: list[Origin | None] = [summary["source"], *(one.get("source") for one in said)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # not there, or not a summary
        return None
    with hub_asked_once():  # a set that was not checked has no origin
        now = [None if origin is None else origin_of(one) for origin, one in zip(recorded, _inputs(recipe))]
    return summary if all(map(is_same, recorded, now)) else None


def _inputs(recipe: DataRecipe) -> list[Source]:
    return [recipe, *recipe.evaluation_sets]


def _is_whole(folder: Path, summary: dict[str, Any]) -> bool:
    return all(
        (folder / name).is_file() and _facts(folder / name) == facts for name, facts in summary["files"].items()
    )


def _cores() -> int:
    """Those that this process may use; macOS does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _published(recipe: DataRecipe) -> dict[str, Any]:
    return scrub(recipe.plain())


def _peeked(recipe: DataRecipe) -> Iterator[Numbered]:
    """The rows, once the first of them is there: a source that cannot be read ends here."""
    rows = numbered_rows(recipe)
    first = next(rows, None)
    if first is None:
        raise RecipeError(f"dataset_name: {recipe.dataset_name} has no rows")
    return itertools.chain([first], rows)


def _questions(sets: list[EvaluationSet]) -> tuple[list[Question], dict[str, dict[str, Any]]]:
    """Every evaluation question, and for each set what the summary says of it."""
    questions: list[Question] = []
    said: dict[str, dict[str, Any]] = {}
    for known in sets:
        origin = origin_of(known)
        try:
            texts = [(number, question_of(row, known)) for number, row in numbered_rows(pinned(known, origin))]
        except RecipeError as error:
            if known.optional and isinstance(error, Unreachable):
                said[known.name] = {"questions": 0, "not_checked": str(error)}
                continue
            raise RecipeError(f"evaluation_sets, {known.name}: {error}") from None
        own = [Question(known.name, number, text) for number, text in texts if isinstance(text, str)]
        if not own:
            why = next((text.why for _, text in texts if isinstance(text, Left)), "it has no rows")
            raise RecipeError(f"evaluation_sets, {known.name}: no question in {known.dataset_name}: {why}")
        said[known.name] = {"questions": len(own), "malformed": len(texts) - len(own), "source": origin}
        questions += own
    return questions, said


def _filters(
    recipe: DataRecipe, answers: AnswerCheck, lengths: LengthOf, contamination: Contamination, exact: ExactDuplicates
) -> list[tuple[str, Filter]]:
    found: list[tuple[str, Filter]] = [("unverifiable", answers)]
    if recipe.language:
        found.append(("language", not_english))
    if recipe.max_prompt_length is not None:
        found.append(("overlong", too_long(recipe.max_prompt_length, lengths)))
    found += [("contaminated", contamination), ("duplicate", exact)]
    if recipe.near_duplicate_similarity is not None:
        found.append(("near_duplicate", NearDuplicates(recipe.near_duplicate_similarity)))
    return found


def _write(rows: Iterator[Numbered], recipe: DataRecipe, filters: list[tuple[str, Filter]], folder: Path) -> Counts:
    counts, waiting, size = Counts(), [], 0
    with (
        (folder / REMOVED).open("w", encoding="utf-8") as removed,
        pq.ParquetWriter(folder / TABLE, _SCHEMA, compression="zstd") as table,
        tqdm(unit=" rows", desc="Reading", mininterval=1.0) as bar,
    ):
        for batch in _batches(rows, recipe, counts, removed):
            for name, judge in filters:
                if name == "unverifiable" and recipe.keep_unverifiable:
                    counts.unverifiable += sum(why is not None for why in judge(batch))
                else:
                    batch = _judged(batch, name, judge, counts, removed)
            waiting += batch
            size += sum(map(_size, batch))
            if len(waiting) >= _GROUP_ROWS or size >= _GROUP_CHARACTERS:
                _write_group(table, waiting, counts)
                waiting, size = [], 0
            bar.update(counts.read - bar.n)
        _write_group(table, waiting, counts)
    return counts


def _batches(rows: Iterator[Numbered], recipe: DataRecipe, counts: Counts, removed: TextIO) -> Iterator[list[Problem]]:
    """Well-formed problems, a bounded number of characters at a time."""
    batch: list[Problem] = []
    size = 0
    for number, row in rows:
        counts.read += 1
        problem = problem_of(number, row, recipe)
        if isinstance(problem, Left):
            _leave(number, problem, counts, removed)
            continue
        batch.append(problem)
        size += _size(problem)
        if len(batch) == _BATCH_ROWS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def _size(problem: Problem) -> int:
    return len(problem.prompt) + len(problem.answer)


def _judged(batch: list[Problem], name: str, judge: Filter, counts: Counts, removed: TextIO) -> list[Problem]:
    kept = []
    for problem, why in zip(batch, judge(batch)):
        if why is None:
            kept.append(problem)
        else:
            _leave(problem.number, Left(name, why), counts, removed)
    return kept


def _leave(number: int, left: Left, counts: Counts, removed: TextIO) -> None:
    counts.removed[left.by] += 1
    if left.by == "malformed":
        counts.malformed[left.why] += 1
    removed.write(json.dumps({"row": number, "filter": left.by, "why": left.why}, ensure_ascii=False) + "\n")


def _write_group(table: pq.ParquetWriter, problems: list[Problem], counts: Counts) -> None:
    if problems:
        prompts = [problem.prompt for problem in problems]
        columns = [prompts, [problem.answer or None for problem in problems]]
        table.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=len(problems))
        counts.written += len(problems)
        counts.characters += sum(map(len, prompts))
        counts.longest = max(counts.longest, *map(len, prompts))


def _nothing_left(recipe: DataRecipe, counts: Counts) -> str:
    """Why no row stayed; a column that no row has is the likeliest reason and has a line of its own."""
    reason, often = (counts.malformed.most_common(1) or [("", 0)])[0]
    if often == counts.read:
        return f"{recipe.dataset_name}: every one of its {counts.read} rows is malformed: {reason}"
    said = ", ".join(f"{counts.removed[name]} {name}" for name in FILTERS if counts.removed[name])
    return f"{recipe.dataset_name}: none of {counts.read} rows is left: {said}"


def _summary(
    recipe: DataRecipe,
    origin: Origin,
    counts: Counts,
    sets: dict[str, dict[str, Any]],
    contradictions: int,
    folder: Path,
) -> dict[str, Any]:
    return {
        "schema_version": _SCHEMA_VERSION,
        "recipe": _published(recipe),
        "source": origin,
        "rows_read": counts.read,
        "rows_removed": {name: counts.removed[name] for name in FILTERS},
        "rows_written": counts.written,
        "unverifiable_kept": counts.unverifiable,
        "malformed": dict(sorted(counts.malformed.items())),
        "duplicates_with_another_answer": contradictions,
        "evaluation_sets": sets,
        "prompt_characters": {"mean": round(counts.characters / counts.written, 1), "longest": counts.longest},
        "files": {name: _facts(folder / name) for name in (TABLE, REMOVED)},
    }


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
