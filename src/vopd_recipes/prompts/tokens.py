"""Rows become tokens.

One row in, one row out: `input_ids` (what the student continues), `prompt` (the text, for logs), `answer` (text or
`None`), `teacher` (its name, or `None`), `teacher_input_ids` where teachers read prompts of their own, and
`prompt_id`, a number that stays with the row: rollout seeds derive from it, so its completion does not depend on which
device or micro-batch the prompt lands in. A row that does not fit `max_prompt_length` is dropped and counted, not cut:
a cut question is another question. A second BOS and an EOS at the end are left out.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from vopd_recipes.prompts.sources import map_anew
from vopd_recipes.recipe import DataConfig, RecipeError, nearest, one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompts:
    """Tokenised rows to train on and to hold out, and how many were too long."""

    train: Dataset
    test: Dataset | None
    dropped: int


def build_prompts(
    rows: tuple[Dataset, Dataset | None], config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    """Tokenise what `read_rows` read.

    Raises:
        RecipeError: the tokenizer has no chat template but the recipe asks for one, the template does not know what it
            is given, or no prompt is left.
    """
    if config.chat_template and not tokenizer.chat_template:
        raise RecipeError("chat_template: true, but the student's tokenizer has none; use chat_template: false")
    if config.privileged and config.teacher_reads_chat and not tokenizer.chat_template:
        raise RecipeError("teacher_chat_template: true, but the student's tokenizer has no chat template")
    _check_chat_template_kwargs(config, tokenizer)
    train, dropped = _tokenise(rows[0], config, tokenizer)
    test = None if rows[1] is None else _tokenise(rows[1], config, tokenizer)[0]
    for name, part in (("training", train), ("held-out", test)):
        if part is not None and len(part) == 0:
            raise RecipeError(f"no {name} prompt is within max_prompt_length: {config.max_prompt_length} tokens")
    if dropped:
        theirs = config.teacher_max_prompt_length or config.max_prompt_length
        also = f", or their teacher's over {theirs} (teacher_max_prompt_length)" if config.privileged else ""
        words = "%d of %d prompts are empty or over %d tokens%s: dropped"
        logger.warning(words, dropped, len(rows[0]), config.max_prompt_length, also)
    return Prompts(train, test, dropped)


def _check_chat_template_kwargs(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Each is a word of the template, or of one of several by name: Jinja passes over those it does not know."""
    given, templates = config.chat_template_kwargs, tokenizer.chat_template
    texts = [given.get("chat_template"), *(templates.values() if isinstance(templates, dict) else [templates])]
    words = set(re.findall(r"\w+", " ".join(map(str, texts))))
    # What the tokenizer itself takes; tools and documents it only hands on.
    taken = inspect.signature(tokenizer.apply_chat_template).parameters.keys() - {"tools", "documents", "kwargs"}
    for name in given:
        if name not in words | taken:
            raise RecipeError(
                f"chat_template_kwargs: the tokenizer's chat template says nothing of '{name}', which would change no "
                f"prompt{nearest(str(name), sorted(words))}"
            )


def read_by(prompts: Prompts, teacher: str | None) -> list[list[int]]:
    """Tokens of every prompt, training and held-out, that a teacher reads.

    Raises:
        RecipeError: all of its own were too long, so that it would teach nothing.
    """
    column = "teacher_input_ids" if "teacher_input_ids" in prompts.train.column_names else "input_ids"
    read = [
        ids
        for part in (prompts.train, prompts.test)
        if part is not None
        for name, ids in zip(part["teacher"], part[column])
        if teacher is None or name == teacher
    ]
    if not read:
        raise RecipeError(f"teachers: {teacher}: each of its prompts is over max_prompt_length; raise it")
    return read


def _tokenise(rows: Dataset, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, int]:
    limits = {"input_ids": config.max_prompt_length}
    if config.privileged:
        limits["teacher_input_ids"] = config.teacher_max_prompt_length or config.max_prompt_length

    def encode(row: dict[str, Any], index: int) -> dict[str, Any]:
        ids = {"input_ids": _encode(row, "", config.chat_template, config, tokenizer), "prompt_id": index}
        if config.privileged:
            ids["teacher_input_ids"] = _encode(row, "teacher_", config.teacher_reads_chat, config, tokenizer)
        return ids

    unused = ["messages", "teacher_prompt", "teacher_messages", "source", "row"]
    encoded = map_anew(rows, encode, unused, "Tokenising prompts")
    lengths = zip(*(([len(ids) for ids in encoded[name]]) for name in limits))
    kept = [i for i, row in enumerate(lengths) if all(0 < n <= most for n, most in zip(row, limits.values()))]
    return encoded.select(kept), len(encoded) - len(kept)


def _encode(
    row: dict[str, Any], whose: str, chat: bool, config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Tokens of the student's prompt (`whose` is empty) or of the teacher's (`teacher_`)."""
    prompt, is_messages = row[f"{whose}prompt"], row[f"{whose}messages"]
    if not chat:
        return encode_text(prompt, tokenizer)
    messages = json.loads(prompt) if is_messages else [{"role": "user", "content": prompt}]
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
        raise RecipeError(f"{whose}chat_template: cannot render {prompt[:80]!r} ({where}): {why}") from error
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
