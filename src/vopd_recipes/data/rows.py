"""A row becomes a prompt with its answer, or the reason why it cannot.

Rows come from files that anybody may have written: a column may be missing or null, hold a number, a megabyte of text
or half a surrogate pair. Such a row is left out and counted; it never ends the preparation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from vopd_recipes.data.gold import answer_in, bare, letter, written_out
from vopd_recipes.data.recipe import DataRecipe, Source
from vopd_recipes.data.sciknoweval import multiple_choice
from vopd_recipes.data.words import words_of

Row = Mapping[str, Any]

_LONGEST = 1_000_000  # characters of a text that is looked at
_ABSENT = object()


@dataclass(frozen=True)
class Left:
    """Why a row is left out: the filter that counts it, and the reason."""

    by: str
    why: str


@dataclass(frozen=True)
class Problem:
    """One row of the training set.

    Args:
        number: of the row in its source, from 0.
        prompt: as the model reads it, choices included, without a template.
        answer: LaTeX, or a letter; empty where the recipe keeps rows without one.
        letters: of the choices, where the row lists them.
    """

    number: int
    prompt: str
    answer: str
    letters: str = ""

    @cached_property
    def words(self) -> str:
        """The prompt's words, see `words_of`."""
        return words_of(self.prompt)


class _Malformed(Exception):
    """Becomes a `Left`."""


def problem_of(number: int, row: Row | Left, recipe: DataRecipe) -> Problem | Left:
    """The problem that a row states, or why it states none."""
    if isinstance(row, Left):
        return row
    prompt = letters = ""
    try:
        prompt, letters = _question(row, recipe)
        column = "answerKey" if recipe.source == "sciknoweval" else recipe.answer_column
        answer = _answer(_field(row, column), column)
    except _Malformed as error:
        if prompt and recipe.keep_unverifiable:
            return Problem(number, prompt, "", letters)
        return Left("malformed", str(error))
    found = answer_in(answer, recipe.answer_in, letters)
    if not found and not recipe.keep_unverifiable:
        return Left("unverifiable", f"no answer in '{column}'")
    return Problem(number, prompt, bare(found) if recipe.answer_format == "math" else letter(found), letters)


def question_of(row: Row | Left, source: Source) -> str | Left:
    """Only the question, as evaluation sets are read."""
    if isinstance(row, Left):
        return row
    try:
        return _question(row, source)[0]
    except _Malformed as error:
        return Left("malformed", str(error))


def _question(row: Row, source: Source) -> tuple[str, str]:
    """Prompt and letters of the choices."""
    is_science = source.source == "sciknoweval"
    column = "question" if is_science else source.prompt_column
    prompt = _text(_said_by_user(_field(row, column)), column)
    choices_column = "choices" if is_science else source.choices_column
    if choices_column is None:
        return prompt, ""
    texts, labels = _choices(_field(row, choices_column), choices_column)
    return multiple_choice(prompt, texts, labels), "".join(labels)


def _field(row: Row, column: str) -> Any:
    """A column's value, or a field inside it: `reward_model.ground_truth`."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        value = value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    if value is _ABSENT:
        raise _Malformed(f"no column '{column}'")
    return value


def _said_by_user(value: Any) -> Any:
    """The text of a conversation that is one message of the user; anything else as it is."""
    if (
        isinstance(value, list)
        and len(value) == 1
        and isinstance(value[0], Mapping)
        and value[0].get("role") == "user"
    ):
        return value[0].get("content")
    return value


def _text(value: Any, column: str) -> str:
    if value is None:
        raise _Malformed(f"'{column}' is null")
    if not isinstance(value, str):
        raise _Malformed(f"'{column}' is not text")
    if len(value) > _LONGEST:
        raise _Malformed(f"'{column}' is over {_LONGEST:,} characters")
    if not value.isascii() and _is_broken(value):
        raise _Malformed(f"'{column}' is broken Unicode")
    text = value.strip()
    if not text:
        raise _Malformed(f"'{column}' is empty")
    return text


def _is_broken(text: str) -> bool:
    """Half a surrogate pair, or the character that decoders put where they could not read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return "\ufffd" in text


def _choices(value: Any, column: str) -> tuple[list[str], list[str]]:
    """Texts and letters: a list of texts is lettered from A."""
    texts, labels = value, None
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
    if not isinstance(texts, list) or not 2 <= len(texts) <= 26:
        raise _Malformed(f"'{column}' is not a list of choices")
    labels = [chr(ord("A") + place) for place in range(len(texts))] if labels is None else labels
    texts = [_text(text, column) for text in texts]
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise _Malformed(f"'{column}' has not one label for each choice")
    labels = [_text(label, column) for label in labels]
    if any(len(label) != 1 for label in labels) or len(set(labels)) < len(labels):
        raise _Malformed(f"'{column}' has labels that are not different letters")
    return texts, labels


def _answer(value: Any, column: str) -> str:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        try:
            value = written_out(value)
        except ValueError:
            raise _Malformed(f"'{column}' is not a finite number") from None
    return _text(value, column)
