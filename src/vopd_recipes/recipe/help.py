"""What `--help` says of a recipe's fields: this library's own with what they may hold, then the inherited ones.

transformers documents its fields by group, in the docstring of `TrainingArguments`; their names are read from there,
so that they are those of the installed version. What each does stands in its documentation.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from transformers import TrainingArguments

from vopd_recipes.recipe.config import DataConfig, ModelConfig, VOPDConfig, describe_fields

TRAINING_ARGUMENTS = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments"
_WIDTH, _NAME = 110, 34


def fields_help() -> str:
    """Every field that a recipe may have, under headings."""
    lines: list[str] = []
    described = {name: (text, default) for name, text, default in describe_fields()}
    for part in (ModelConfig, DataConfig, VOPDConfig):
        lines += ["", str(part.__doc__).splitlines()[0]]
        for name in part.__annotations__:
            text, default = described[name]
            lines += _hanging(f"--{name}", text if default is None else f"{text} [{_shown(default)}]")
    lines += ["", f"Inherited from transformers.TrainingArguments; each in {TRAINING_ARGUMENTS}"]
    for group, names in inherited_groups():
        names = [name for name in names if name not in described]
        lines += textwrap.wrap(f"{group}: {', '.join(names)}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def inherited_groups() -> Iterator[tuple[str, list[str]]]:
    """(heading, fields) of transformers' own fields, as it documents them."""
    groups: dict[str, list[str]] = {}
    heading = "Output"
    for line in str(TrainingArguments.__doc__).splitlines():
        if title := re.fullmatch(r" {8}> (.+)", line):
            heading = title[1].partition(" (")[0]
        elif name := re.match(r" {8}(\w+) ?\(", line):
            groups.setdefault(heading, []).append(name[1])
    yield from groups.items()


def _hanging(label: str, text: str) -> list[str]:
    """The label, and the text beside it in a column of its own."""
    column = f"{'':{_NAME}}"
    first = f"  {label:{_NAME - 3}} "
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=column, break_on_hyphens=False)


def _shown(default: Any) -> str:
    """As a recipe would hold it."""
    return default if isinstance(default, str) else json.dumps(default)
