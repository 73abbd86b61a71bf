"""Whose a prompt is, and what a privileged teacher reads in its place.

A privileged teacher scores the student's completions after a prompt of its own: the same question with its answer, a
worked solution, or instructions. Rollouts never see it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from datasets import Dataset

from vopd_recipes.prompts.templates import filled
from vopd_recipes.recipe import DataConfig, RecipeError, nearest


def teacher_prompt(
    source: dict[str, Any], values: dict[str, Any], index: int, prompt: str, is_messages: bool
) -> str | list[dict[str, Any]]:
    """What a privileged teacher reads: text, or messages; in place of a conversation's last message, its template.

    Args:
        source: with the templates.
        values: of the row's columns, with the student's question as `prompt` and its gold answer as `answer`.
        index: of the row.
        prompt: what the student reads, text or messages as JSON.
        is_messages: which of them.
    """
    text = None
    if source["teacher_prompt_template"]:
        text = filled("teacher_prompt_template", source, values, index)
    if not (is_messages or source["teacher_system_prompt"]):
        return prompt if text is None else text
    messages = json.loads(prompt) if is_messages else [{"role": "user", "content": prompt}]
    if text is not None:
        if messages[-1]["role"] != "user":
            raise RecipeError(
                f"teacher_prompt_template: {source['dataset_name']}, row {index}, ends with the "
                f"{messages[-1]['role']}'s message, and the template replaces the user's last one; leave it out"
            )
        messages[-1] = {**messages[-1], "content": text}
    if source["teacher_system_prompt"]:
        system = {"role": "system", "content": filled("teacher_system_prompt", source, values, index)}
        messages = [system, *(message for message in messages if message["role"] != "system")]
    return messages


def check_teachers(rows: Dataset | None, config: DataConfig, known: Collection[str]) -> None:
    """Each row's teacher is one of those; of a mixture's entries that is known already."""
    if rows is None or not config.teacher_column:
        return
    for name, source, row in zip(rows["teacher"], rows["source"], rows["row"]):
        if name not in known:
            where = f"{config.sources()[source]['dataset_name']}, row {row}"
            what = "is null" if name is None else f"is '{name}'"
            raise RecipeError(
                f"teacher_column: '{config.teacher_column}' of {where}, {what}, which is not in teachers"
                f"{nearest(str(name), known)}; it has {', '.join(known)}"
            )
