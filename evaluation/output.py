"""What an evaluation leaves: `results.json`, `results.md`, and `details/<task>.parquet` with every completion.

A results file says all that its numbers depend on. Tasks that were measured before on the same weights under the same
protocol, back end and type stay in it; results of other weights or of another protocol are moved to a folder below
`earlier`, and back when their turn comes again. Nothing in a file tells when it was made, so the same evaluation
writes the same file, but for `seconds`. Two evaluations that end together write one after the other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.tasks import TASKS
from vopd_recipes.files import SAME_MEASUREMENT, SCHEMA_VERSION, title_of, write_text, written_whole
from vopd_recipes.paper import published_columns, samples_of

if TYPE_CHECKING:  # comparing results needs no lighteval, which takes seconds to import
    from evaluation.suite import Measured

logger = logging.getLogger(__name__)

# What must be equal for two tasks' numbers to stand in one file.
_SAME = ("schema_version", "model", "revision", *SAME_MEASUREMENT)

DETAILS = pa.schema(
    {
        "question_id": pa.int64(),  # row of the data set
        "question": pa.string(),
        "prompt": pa.string(),  # before any chat template
        "gold": pa.string(),
        "sample": pa.int64(),
        "seed": pa.int64(),
        "completion": pa.string(),
        "extracted": pa.string(),
        "correct": pa.bool_(),
        "formatted": pa.bool_(),
        "truncated": pa.bool_(),
        "tokens": pa.int64(),
        "grading_error": pa.string(),
    }
)


def write_results(folder: Path, about: dict[str, Any], measured: dict[str, Measured], recipe: dict[str, Any]) -> Path:
    """Write results, details and table; the path of `results.json`.

    Args:
        folder: of this model and revision.
        about: every field of the file but the tasks.
        measured: task → what came of it.
        recipe: that the model was trained by, for the paper's column.
    """
    path, about = folder / "results.json", {"schema_version": SCHEMA_VERSION, **about}
    with _alone(folder):
        _put_earlier_ones_aside(folder, about)
        for name, task in measured.items():
            with written_whole(folder / "details" / f"{name}.parquet") as temporary:
                pq.write_table(_details(task), temporary, compression="zstd")
        before = _content_of(path).get("tasks", {})
        _say_what_shrinks(before, measured)
        tasks = {**before, **{name: task.scores for name, task in measured.items()}}
        ordered = {name: tasks[name] for name in dict.fromkeys([*TASKS, *tasks]) if name in tasks}
        content = {**about, "tasks": ordered}
        write_text(path, json.dumps(content, indent=2) + "\n")
        write_text(folder / "results.md", table(content, recipe) + "\n")
    return path


def _say_what_shrinks(before: dict[str, Any], measured: dict[str, Measured]) -> None:
    """A task's numbers are the last measurement's, also where that was a glance."""
    for name, task in measured.items():
        earlier, now = (
            [scores.get(of, 0) for of in ("problems", "n")] for scores in (before.get(name, {}), task.scores)
        )
        if any(a > b for a, b in zip(earlier, now)):
            logger.warning(
                "%s: %d problems × %d answers take the place of %d × %d; the same without LIMIT and SAMPLES brings "
                "those back, from the answers that are kept", name, *now, *earlier,
            )  # fmt: skip


def digest(task: Measured) -> str:
    """SHA-256 of the prompts and gold answers that a task's numbers are of, in order."""
    asked = [[question.doc.query, question.facts["gold"]] for question in task.questions]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the kernel opens the lock of a process that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            logger.warning("%s cannot be locked (%s): end no second evaluation there", folder, error.strerror)
        yield


def _put_earlier_ones_aside(folder: Path, about: dict[str, Any]) -> None:
    """Move results of another kind below `earlier`, and those of this kind back from there."""
    there = _content_of(folder / "results.json")
    if there and not _alike(there, about):
        aside = _aside(folder, there)
        _move(folder, aside)
        logger.warning("results of %s (%s, %s) were here before; now in %s", *_kind(there), aside)
    aside = _aside(folder, about)
    if not (folder / "results.json").is_file() and _alike(_content_of(aside / "results.json"), about):
        _move(aside, folder)


def _kind(content: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(content.get(name) for name in ("protocol", "backend", "dtype"))


def _aside(folder: Path, content: dict[str, Any]) -> Path:
    """Of these results: named by all that may differ from others of the same model and revision."""
    same = hashlib.sha256(json.dumps([content.get(name) for name in _SAME], sort_keys=True).encode()).hexdigest()
    return folder / "earlier" / "-".join([*map(str, _kind(content)), same[:8]])


def _move(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in ("details", "results.md", "results.json"):  # last what makes it a folder of results
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
        if (source / name).exists():
            (source / name).replace(target / name)


def _content_of(path: Path) -> dict[str, Any]:
    """Of a results file; empty where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _alike(content: dict[str, Any], about: dict[str, Any]) -> bool:
    return all(content.get(name) == about[name] for name in _SAME)


def _details(task: Measured) -> pa.Table:
    rows = [
        {
            "question_id": int(question.doc.id),
            "question": question.facts["question"],
            "prompt": question.doc.query,
            "gold": question.facts["gold"],
            "sample": response.sample,
            "seed": question.answers.seed + response.sample,
            "completion": response.text,
            "extracted": grade.extracted,
            "correct": grade.correct,
            "formatted": grade.formatted,
            "truncated": not response.finished,
            "tokens": response.tokens,
            "grading_error": grade.error,
        }
        for question in task.questions
        for response, grade in zip(question.answers.responses, question.grades)
    ]
    return pa.Table.from_pylist(rows, schema=DETAILS)


def table(results: dict[str, Any], recipe: dict[str, Any]) -> str:
    """A Markdown table in percent, with the paper's numbers where it has this model or this pair."""
    tasks: dict[str, dict[str, Any]] = results["tasks"]
    columns = published_columns(results["model"], recipe)
    lines = [
        f"{results['model']}, {results['revision']} · protocol {results['protocol']} · {results['backend']} "
        f"({results['dtype']}) · weights {results['weights_hash'][:12]}",
        "",
        "| task | avg@n ± s.e. | pass@n | maj@n | n | problems | answers in form | truncated | tokens per answer |"
        + "".join(f" {name} |" for name in columns),
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|" + "--:|" * len(columns),
    ]
    for name, scores in tasks.items():
        cells = [
            title_of(name, scores),
            f"{100 * scores['avg']:.1f} ± {100 * scores['stderr']:.1f}",
            *(f"{100 * scores[key]:.1f}" for key in ("pass", "maj")),
            str(scores["n"]),
            str(scores["problems"]),
            *(f"{100 * scores[key]:.1f}" for key in ("format_rate", "truncation_rate")),
            f"{scores['tokens'] / scores['problems'] / scores['n']:.0f}",
            *(column.get(name, "") for column in columns.values()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines + _combined(tasks, columns) + _notes(results, list(columns)))


def _notes(results: dict[str, Any], columns: list[str]) -> list[str]:
    """What keeps these numbers from being set beside the paper's."""
    tasks: dict[str, dict[str, Any]] = results["tasks"]
    notes = []
    if cut := [f"{name} ({scores['problems']})" for name, scores in tasks.items() if scores.get("limit") is not None]:
        notes.append(f"LIMIT: only some questions of {', '.join(cut)}: no results of the whole sets.")
    if columns and results["protocol"] != "paper":
        notes.append(
            f"The paper's columns are of its own protocol, `paper`; these numbers are of {results['protocol']}."
        )
    others = [f"{name} ({scores['n']})" for name, scores in tasks.items() if scores["n"] != samples_of(name)]
    if columns and others:
        notes.append(f"Other numbers of samples than the paper's, on which pass@n depends: {', '.join(others)}.")
    if "paper, OPD" in columns:
        notes.append(
            "OPD in the authors' released code has a constant baseline of 1 (here `baseline: constant`); this "
            "model was trained without one."
        )
    return [line for note in notes for line in ("", note)]


def _combined(tasks: dict[str, dict[str, Any]], columns: dict[str, dict[str, str]]) -> list[str]:
    """The paper's own columns: AIME 2024 and 2025 together, and the mean of the four."""
    aime = _mean_of(tasks, ("aime24", "aime25"))
    if aime is None:
        return []
    rows = [("AIME 24/25", aime, "aime")]
    four = _mean_of({**tasks, "aime": aime}, ("math500", "minerva", "amc23", "aime"))
    if four is not None:
        rows.append(("**Avg.** (MATH-500, Minerva, AMC 23, AIME 24/25)", four, "average"))
    return [
        "| "
        + " | ".join(
            [title, f"{100 * means['avg']:.1f}", f"{100 * means['pass']:.1f}", f"{100 * means['maj']:.1f}", *[""] * 5]
            + [column.get(key, "") for column in columns.values()]
        )
        + " |"
        for title, means, key in rows
    ]


def _mean_of(tasks: dict[str, dict[str, Any]], names: tuple[str, ...]) -> dict[str, float] | None:
    if not all(name in tasks for name in names):
        return None
    return {key: fmean(tasks[name][key] for name in names) for key in ("avg", "pass", "maj")}
