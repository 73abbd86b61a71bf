"""Prompts that are too long, in tokens of a tokenizer or in characters."""

from __future__ import annotations

from collections.abc import Callable

from vopd_recipes.data.rows import Problem
from vopd_recipes.recipe import RecipeError, one_line

LengthOf = Callable[[list[str]], list[int]]


def length_of(tokenizer_name_or_path: str | None) -> LengthOf:
    """Lengths of texts in characters, or in tokens of that tokenizer, which is loaded here.

    Raises:
        RecipeError: it cannot be loaded.
    """
    if tokenizer_name_or_path is None:
        return lambda texts: [len(text) for text in texts]
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_name_or_path)
    except Exception as error:  # whatever a broken tokenizer raises
        where = f"tokenizer_name_or_path: cannot load {tokenizer_name_or_path}"
        raise RecipeError(f"{where}: {one_line(error, 200)}") from None
    return lambda texts: [len(ids) for ids in tokenizer(texts)["input_ids"]] if texts else []


def too_long(limit: int, lengths: LengthOf) -> Callable[[list[Problem]], list[str | None]]:
    """For each problem `None`, or its length where that is over the limit."""

    def judge(problems: list[Problem]) -> list[str | None]:
        found = lengths([problem.prompt for problem in problems])
        return [None if length <= limit else f"{length} long" for length in found]

    return judge
