"""Data sets become tokenised prompts, with their answers where they have one.

One row in, one row out: `input_ids` (what the student continues), `prompt` (the text, for logs), `answer` (text or
`None`) and `prompt_id`, a number that stays with the row: rollout seeds derive from it, so its completion does not
depend on which device or micro-batch the prompt lands in. A row that does not fit `max_prompt_length` is dropped
and counted, not cut: a cut question is another question. What would put other words into a prompt than its author's —
a column that is not there, a null, a second BOS, an EOS at its end — is refused with row and column, or left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from vopd_recipes.grading import grade_choice
from vopd_recipes.recipe import DataConfig, RecipeError, nearest, one_line

logger = logging.getLogger(__name__)

_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_FEATURES = datasets.Features(
    prompt=datasets.Value("large_string"),
    messages=datasets.Value("bool"),
    answer=datasets.Value("large_string"),
    source=datasets.Value("int32"),  # which of `DataConfig.sources`, and which of its rows
    row=datasets.Value("int64"),
)
# Braces that LaTeX means: \boxed{answer}, \frac{a}{b}, x^{n}. A \n that YAML left as it stands is no command of its.
_LATEX = re.compile(r"\\(?![ntr]\{)[a-zA-Z]+\*?(?:\[[^\]]*\])?(?:\{[^{}]*\})+|[\^_]\{[^{}]*\}")


@dataclass(frozen=True)
class Prompts:
    """Tokenised rows to train on and to hold out, and how many were too long."""

    train: Dataset
    test: Dataset | None
    dropped: int


def read_rows(config: DataConfig, seed: int) -> tuple[Dataset, Dataset | None]:
    """Read and check every source before any model is loaded: (training rows, held-out rows).

    Each row has `prompt` (text or messages as JSON, so that sources of both forms mix) and `answer`.

    Raises:
        RecipeError: a source, split or column that is not there, prompts of the wrong form, or held-out answers that
            nothing can be graded by.
    """
    train, test = [], []
    for number, source in enumerate(config.sources()):
        rows = _plain_rows(_load(source, source["dataset_train_split"]), number, config)
        train.append(_repeat(rows, source["weight"], f"{seed}-{number}"))
        if config.dataset_test_split:
            test.append(_plain_rows(_load(source, config.dataset_test_split), number, config))
    rows = datasets.concatenate_datasets(train)
    held_out = datasets.concatenate_datasets(test) if test else None
    if config.test_size:
        rows, held_out = _hold_out(rows, config.test_size, seed)
    if held_out is not None and config.max_test_prompts:
        held_out = held_out.select(range(min(config.max_test_prompts, len(held_out))))
    if held_out is not None:
        _check_golds(held_out, config)
    return rows, held_out


def build_prompts(
    rows: tuple[Dataset, Dataset | None], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    """Tokenise what `read_rows` read.

    Raises:
        RecipeError: the tokenizer has no chat template but the recipe asks for one, or no prompt is left.
    """
    if config.chat_template and not tokenizer.chat_template:
        raise RecipeError("chat_template: true, but the student's tokenizer has none; use chat_template: false")
    train, dropped = _tokenise(rows[0], config, tokenizer)
    test = None if rows[1] is None else _tokenise(rows[1], config, tokenizer)[0]
    for name, part in (("training", train), ("held-out", test)):
        if part is not None and len(part) == 0:
            raise RecipeError(f"no {name} prompt is within max_prompt_length: {config.max_prompt_length} tokens")
    if dropped:
        logger.warning(
            "%d of %d prompts are empty or over %d tokens: dropped", dropped, len(rows[0]), config.max_prompt_length
        )
    return Prompts(train, test, dropped)


def content_hashes(train: Dataset) -> dict[str, str]:
    """SHA-256 of each source's training rows, prompts and answers in their order; the keys are `source`'s numbers."""
    hashes: dict[str, Any] = defaultdict(hashlib.sha256)
    for source, prompt, answer in zip(train["source"], train["prompt"], train["answer"]):
        hashes[str(source)].update(json.dumps([prompt, answer]).encode() + b"\n")
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


def _plain_rows(rows: Dataset, number: int, config: DataConfig) -> Dataset:
    """Every source in one form: `prompt` text (messages as JSON) and `answer` text or `None`."""
    source = config.sources()[number]
    for field in ("prompt_column", "answer_column"):
        column = source[field]
        if column is not None and column not in rows.column_names:
            raise RecipeError(
                f"{field}: {source['dataset_name']} has no column '{column}'; it has {', '.join(rows.column_names)}"
            )
    _check_template(source, rows.column_names)
    answers = source["answer_column"]

    def plain(row: dict[str, Any], index: int) -> dict[str, Any]:
        prompt = row[source["prompt_column"]]
        if is_text := isinstance(prompt, str):
            prompt = _filled(source, {**row, "prompt": prompt}, index)
        else:
            where = f"prompt_column: '{source['prompt_column']}' of {source['dataset_name']}, row {index},"
            prompt = json.dumps(_messages(prompt, where, source, config))
        answer = row[answers] if answers else None
        return {
            "prompt": prompt,
            "messages": not is_text,
            "answer": None if _is_null(answer) else str(answer),
            "source": number,
            "row": index,
        }

    columns = rows.column_names
    return rows.map(plain, with_indices=True, remove_columns=columns, features=_FEATURES, desc="Reading prompts")


def _check_template(source: dict[str, Any], columns: list[str]) -> None:
    """Each {name} of a template is a column, unless LaTeX means its braces."""
    for name in re.findall(r"\{([^\W\d]\w*)\}", _LATEX.sub("", source["prompt_template"] or "")):
        if name not in (*columns, "prompt"):
            raise RecipeError(
                f"prompt_template: {{{name}}} is no column of {source['dataset_name']}{nearest(name, columns)}; it "
                f"has {', '.join(columns)}; braces that are to stay as they are have spaces inside: {{ {name} }}"
            )


def _filled(source: dict[str, Any], row: dict[str, Any], index: int) -> str:
    template = source["prompt_template"]
    if not template:
        return row["prompt"]
    for name in re.findall(r"\{(\w+)\}", template):
        if name in row and _is_null(row[name]):
            raise RecipeError(
                f"prompt_template: column '{name}' of {source['dataset_name']}, row {index}, is null, and {{{name}}} "
                "needs its text; leave such rows out of the data set"
            )
    return fill_template(template, row)


def _is_null(value: Any) -> bool:
    """Also NaN, which is what pandas writes for a number that is not there."""
    return value is None or value != value


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


def fill_template(template: str, row: dict[str, Any]) -> str:
    r"""Replace each {column} that is a column; other braces stay, since templates say \boxed{}."""
    return re.sub(r"\{(\w+)\}", lambda match: str(row[match[1]]) if match[1] in row else match[0], template)


def _repeat(rows: Dataset, weight: float, seed: str) -> Dataset:
    """Each row ⌊weight⌋ times, and a seeded choice of the rest: the weighted rows of one epoch."""
    if weight == 1:
        return rows
    whole, part = divmod(weight, 1)
    chosen = sorted(random.Random(seed).sample(range(len(rows)), round(part * len(rows))))
    return rows.select(list(range(len(rows))) * int(whole) + chosen)


def _hold_out(rows: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """A seeded choice of `count` rows; rows with the same prompt as a held-out one leave the training set."""
    if count >= len(rows):
        raise RecipeError(f"test_size: {count} held-out prompts leave none of {len(rows)} to train on")
    chosen = sorted(random.Random(seed).sample(range(len(rows)), count))
    held_out = rows.select(chosen)
    texts = set(held_out["prompt"])
    left = [i for i, text in enumerate(rows["prompt"]) if text not in texts]
    if not left:
        raise RecipeError(f"test_size: every prompt is among the {count} held-out ones; none is left to train on")
    return rows.select(left), held_out


def _tokenise(rows: Dataset, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, int]:
    def encode(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"input_ids": _encode(row, config, tokenizer), "prompt_id": index}

    unused = ["messages", "source", "row"]
    encoded = rows.map(encode, with_indices=True, remove_columns=unused, desc="Tokenising prompts")
    kept = [i for i, ids in enumerate(encoded["input_ids"]) if 0 < len(ids) <= config.max_prompt_length]
    return encoded.select(kept), len(encoded) - len(kept)


def _encode(row: dict[str, Any], config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if not config.chat_template:
        return encode_text(row["prompt"], tokenizer)
    messages = json.loads(row["prompt"]) if row["messages"] else [{"role": "user", "content": row["prompt"]}]
    goes_on = messages[-1].get("role") == "assistant"  # `read_rows` has asked for continue_final_message
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            return_dict=True,
            **config.chat_template_kwargs,
        )
    except Exception as error:  # templates raise what they like, on messages and on their arguments
        where = f"row {row['row']} of {config.sources()[row['source']]['dataset_name']}"
        why = f"{type(error).__name__}: {one_line(error, 300)}"
        raise RecipeError(f"chat_template: cannot render {row['prompt'][:80]!r} ({where}): {why}") from error
    return list(encoded["input_ids"])


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a text that is to be continued.

    What the tokenizer puts in front (a BOS) stands there once, also where the text brings its own; what it puts behind
    (an EOS), which would say that there is nothing to continue, is left out.
    """
    whole: list[int] = list(tokenizer(text)["input_ids"])
    plain: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            front = whole[:start]
            return plain if plain[:start] == front else front + plain
    return whole
