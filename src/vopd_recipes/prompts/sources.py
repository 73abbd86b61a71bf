"""Data sets, files and mixtures of them become rows of one form, checked before anything is loaded.

What would put other words into a prompt than its author's — a column that is not there, a null, messages without their
text — is refused with row and column.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from vopd_recipes.grading import grade_choice
from vopd_recipes.prompts.teachers import check_teachers, teacher_prompt
from vopd_recipes.prompts.templates import check_template, filled, is_null
from vopd_recipes.recipe import DataConfig, RecipeError, one_line

logger = logging.getLogger(__name__)

_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_FEATURES = datasets.Features(
    prompt=datasets.Value("large_string"),
    messages=datasets.Value("bool"),
    answer=datasets.Value("large_string"),
    teacher=datasets.Value("large_string"),  # its name, where there are several
    teacher_prompt=datasets.Value("large_string"),  # what a privileged teacher reads instead, and in which form
    teacher_messages=datasets.Value("bool"),
    source=datasets.Value("int32"),  # which of `DataConfig.sources`, and which of its rows
    row=datasets.Value("int64"),
)


def read_rows(config: DataConfig, seed: int, teachers: Collection[str] = ()) -> tuple[Dataset, Dataset | None]:
    """Read and check every source before any model is loaded: (training rows, held-out rows).

    Each row has `prompt` (text or messages as JSON, so that sources of both forms mix), `answer` and `teacher`.

    Args:
        config: names the sources.
        seed: of which rows are held out or repeated.
        teachers: names that a `teacher_column` may hold.

    Raises:
        RecipeError: a source, split or column that is not there, prompts of the wrong form, a teacher that there is
            not, or held-out answers that nothing can be graded by.
    """
    train, test = [], []
    for number, source in enumerate(config.sources()):
        rows = _plain_rows(_load(source, source["dataset_train_split"]), number, config, teachers)
        train.append(_repeat(rows, source["weight"], f"{seed}-{number}"))
        if config.dataset_test_split:
            test.append(_plain_rows(_load(source, config.dataset_test_split), number, config, teachers))
    rows = datasets.concatenate_datasets(train)
    held_out = datasets.concatenate_datasets(test) if test else None
    if config.test_size:
        rows, held_out = _hold_out(rows, config.test_size, seed)
    if held_out is not None and config.max_test_prompts:
        held_out = held_out.select(_dealt(held_out["source"], config.max_test_prompts))
    if held_out is not None:
        _check_golds(held_out, config)
    for part in (rows, held_out):
        check_teachers(part, config, teachers)
    if idle := sorted(set(teachers) - set(rows["teacher"])) if config.teacher_column else []:
        raise RecipeError(f"teachers: {idle[0]}: no row's {config.teacher_column} names it; leave it out")
    return rows, held_out


def _dealt(sources: Sequence[int], count: int) -> list[int]:
    """The first rows of each source, `count` in all, dealt to the sources in turn; of a single one its first rows."""
    seen: Counter[int] = Counter()
    turns = []
    for row, source in enumerate(sources):
        turns.append((seen[source], row))
        seen[source] += 1
    return sorted(row for _, row in sorted(turns)[:count])


def content_hashes(rows: Dataset) -> dict[str, str]:
    """SHA-256 of each source's rows, prompts and answers in their order; the keys are `source`'s numbers."""
    hashes: dict[str, Any] = defaultdict(hashlib.sha256)
    columns = ("source", "prompt", "answer", "teacher", "teacher_prompt")
    for source, prompt, answer, *teachers in zip(*(rows[name] for name in columns)):
        hashed = [prompt, answer, *(value for value in teachers if value is not None)]
        hashes[str(source)].update(json.dumps(hashed).encode() + b"\n")
    return {source: found.hexdigest() for source, found in hashes.items()}


def _load(source: dict[str, Any], split: str) -> Dataset:
    name = source["dataset_name"]
    try:
        found = _open(Path(name), name, source["dataset_config"], split)
    except RecipeError:
        raise
    except Exception as error:  # the readers raise dozens of types; each becomes one line
        cause = error.__cause__ or error
        empty = isinstance(cause, StopIteration)
        reason = "it has no rows" if empty else one_line(cause, 300)
        raise RecipeError(f"dataset_name: cannot read {name}, split {split}: {reason}") from error
    if isinstance(found, DatasetDict):
        if split not in found:
            raise RecipeError(f"dataset_name: {name} has no split '{split}'; it has {', '.join(found)}")
        found = found[split]
    if len(found) == 0:
        raise RecipeError(f"dataset_name: {name}, split {split}, has no rows")
    return found


def _open(path: Path, name: str, configuration: str | None, split: str) -> Dataset | DatasetDict:
    """A file, a folder of `<split>.jsonl` (or json, parquet), a saved data set, or a Hub id."""
    if path.is_dir():
        if any((path / marker).exists() for marker in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(str(path))
            return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
        files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in _READERS}
        if split not in files:
            raise RecipeError(f"dataset_name: {name} holds no {split}.jsonl, {split}.json or {split}.parquet")
        path, split = files[split], "train"
    if path.is_file():  # for datasets, one file is one split: train
        if path.suffix not in _READERS:
            raise RecipeError(f"dataset_name: {name}: expected a .json, .jsonl or .parquet file")
        return datasets.load_dataset(_READERS[path.suffix], data_files=str(path), split=split)
    if name.startswith((".", "/", "~")) or path.suffix in _READERS:
        raise RecipeError(f"dataset_name: no such file or folder: {name}")
    return datasets.load_dataset(name, configuration, split=split)


def _plain_rows(rows: Dataset, number: int, config: DataConfig, teachers: Collection[str]) -> Dataset:
    """Every source in one form: `prompt` text (messages as JSON) and `answer` text or `None`."""
    source = config.sources()[number]
    for field, column in (
        ("prompt_column", source["prompt_column"]),
        ("answer_column", source["answer_column"]),
        ("teacher_column", config.teacher_column),
    ):
        if column is not None and column not in rows.column_names:
            raise RecipeError(
                f"{field}: {source['dataset_name']} has no column '{column}'; it has {', '.join(rows.column_names)}"
            )
    for field in ("prompt_template", "teacher_prompt_template", "teacher_system_prompt"):
        check_template(field, source, rows.column_names)
    answers = source["answer_column"]
    only = next(iter(teachers)) if len(teachers) == 1 else None

    def plain(row: dict[str, Any], index: int) -> dict[str, Any]:
        prompt = row[source["prompt_column"]]
        answer = row[answers] if answers else None
        if is_text := isinstance(prompt, str):
            asked = prompt
            prompt = filled("prompt_template", source, {**row, "prompt": prompt}, index)
        else:
            where = f"prompt_column: '{source['prompt_column']}' of {source['dataset_name']}, row {index},"
            messages = _messages(prompt, where, source, config)
            asked, prompt = str(messages[-1].get("content")), json.dumps(messages)
        values = {"answer": answer, **row, "prompt": asked, **({"answer": answer} if answers else {})}
        theirs = teacher_prompt(source, values, index, prompt, not is_text) if config.privileged else None
        if isinstance(theirs, list) and not config.teacher_reads_chat:
            raise RecipeError(f"{where} holds chat messages, also for the teacher; set teacher_chat_template: true")
        name = row[config.teacher_column] if config.teacher_column else source["teacher"] or only
        return {
            "prompt": prompt,
            "messages": not is_text,
            "answer": None if is_null(answer) else str(answer),
            "teacher": None if is_null(name) else str(name),
            "teacher_prompt": theirs if theirs is None or isinstance(theirs, str) else json.dumps(theirs),
            "teacher_messages": isinstance(theirs, list),
            "source": number,
            "row": index,
        }

    return map_anew(rows, plain, rows.column_names, "Reading prompts", features=_FEATURES)


def map_anew(rows: Dataset, change: Callable[..., Any], removed: list[str], said: str, **more: Any) -> Dataset:
    """Each row, with its number, as `change` makes it now.

    Not from the cache of datasets: that knows a function by its own code, not by that of what it calls, and an update
    of this package would go on with the prompts of the last one.
    """
    return rows.map(change, with_indices=True, remove_columns=removed, desc=said, load_from_cache_file=False, **more)


def _messages(prompt: Any, where: str, source: dict[str, Any], config: DataConfig) -> list[dict[str, Any]]:
    """Chat messages that a template can render, without the nulls which parquet fills absent keys with."""
    if not isinstance(prompt, list) or not prompt or not all(isinstance(message, dict) for message in prompt):
        raise RecipeError(f"{where} holds {str(prompt)[:40]!r}; expected text or a list of chat messages")
    if not config.chat_template:
        raise RecipeError(f"{where} holds chat messages; set chat_template: true")
    if source["prompt_template"]:
        raise RecipeError(f"{where} holds chat messages, which prompt_template cannot fill; leave one of them out")
    messages = _without_nulls(prompt)
    for number, (before, message) in enumerate(zip(prompt, messages)):
        absent = [key for key in ("role", "content") if key in before and message.get(key) in (None, [])]
        if absent and not (absent == ["content"] and message.get("tool_calls")):
            raise RecipeError(f"{where} has a null as the {absent[0]} of message {number}; leave such rows out")
    if messages[-1].get("role") == "assistant" and not config.continue_final_message:
        raise RecipeError(
            f"{where} ends with the assistant's message; set continue_final_message: true to have the student go on "
            "with it, or end conversations with the user's"
        )
    return messages


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value if item is not None] if isinstance(value, list) else value


def _check_golds(held_out: Dataset, config: DataConfig) -> None:
    """Each held-out answer is one that a completion can be graded by."""
    for answer, source, row in zip(held_out["answer"], held_out["source"], held_out["row"]):
        if answer is None:
            continue
        reason = None if answer.strip() else "is empty; text, or null where there is none"
        if reason is None and config.answer_format == "choice":
            try:
                grade_choice("", answer)
            except ValueError as error:
                reason = f"is none: {error}"
        if reason:
            read = config.sources()[source]
            raise RecipeError(
                f"answer_column: the held-out answer '{read['answer_column']}' of {read['dataset_name']}, row {row}, "
                f"{reason}"
            )


def _repeat(rows: Dataset, weight: float, seed: str) -> Dataset:
    """Each row ⌊weight⌋ times, and a seeded choice of the rest: the weighted rows of one epoch."""
    if weight == 1:
        return rows
    whole, part = divmod(weight, 1)
    chosen = sorted(random.Random(seed).sample(range(len(rows)), round(part * len(rows))))
    return rows.select(list(range(len(rows))) * int(whole) + chosen)


def _hold_out(rows: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """A seeded choice of `count` rows; rows with the same prompt as a held-out one leave the training set.

    The same prompt is the same words: a question that stands there under two templates is two.
    """
    if count >= len(rows):
        raise RecipeError(f"test_size: {count} held-out prompts leave none of {len(rows)} to train on")
    chosen = sorted(random.Random(seed).sample(range(len(rows)), count))
    held_out = rows.select(chosen)
    texts = set(held_out["prompt"])
    left = [i for i, text in enumerate(rows["prompt"]) if text not in texts]
    if not left:
        raise RecipeError(f"test_size: every prompt is among the {count} held-out ones; none is left to train on")
    return rows.select(left), held_out
