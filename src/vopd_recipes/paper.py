"""The paper's published numbers, `paper.json`, for tables and cards of models that repeat its setting.

"KL for a KL: On-Policy Distillation with Control Variate Baseline", arXiv 2605.07865v1, the main table and the science
table. They stand in one file and nowhere else; `evaluation/paper.json` is another name of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from vopd_recipes.loss import method_of

PAPER = "arXiv 2605.07865"

_NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_TOP_K = 20  # of all its top-k runs
# Part of a data set's name, and the tables of what was trained on it.
_TABLES = (("dapo", "distilled", "columns"), ("sciknoweval", "distilled_science", "science_columns"))


def undistilled(model: str) -> dict[str, str]:
    """Task → `avg/pass` (science, average: `avg`) in percent of a model as it comes; empty where the paper lacks it.

    Args:
        model: Hub id of a student or teacher.
    """
    if model not in _NUMBERS["models"]:
        return {}
    found = dict(zip(_NUMBERS["columns"], _NUMBERS["models"][model]))
    found |= dict(zip(_NUMBERS["science_columns"], _NUMBERS["science"].get(model, [])))
    return found | {"average": _NUMBERS["average"][model]}


def distilled(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Task → `avg/pass` (science: `avg`) in percent, as printed; empty where the paper has no such run.

    Args:
        recipe: fields of a run. Its teacher, student, estimator and data decide. One of another library is none.
    """
    pair = f"{recipe.get('teacher_model_name_or_path')} > {recipe.get('model_name_or_path')}"
    try:
        method = method_of(recipe).title
    except (ValueError, TypeError):  # an estimator of others
        return {}
    if method.endswith("top-k") and (
        recipe.get("support_top_k", _TOP_K) != _TOP_K or recipe.get("support") == "teacher"
    ):
        return {}
    for data, table, columns in _TABLES:
        names = datasets_of(recipe)
        if names and all(data in name.lower() for name in names):
            return dict(zip(_NUMBERS[columns], _NUMBERS[table].get(pair, {}).get(method, [])))
    return {}


def published_columns(model: str, recipe: dict[str, Any]) -> dict[str, dict[str, str]]:
    """A results table's columns: of the same model, or of the same pair distilled in the same way.

    Heading → task → `avg/pass` (science: `avg`) in percent, as printed; empty for models the paper has not.

    Args:
        model: Hub id of the evaluated model.
        recipe: that it was trained by; empty where it is not known.
    """
    if own := undistilled(model):
        return {"paper": own}
    numbers = distilled(recipe)
    if not numbers:
        return {}
    before = undistilled(str(recipe["model_name_or_path"]))
    return {"paper, before": before, f"paper, {method_of(recipe).title}": numbers | _average(numbers)}


def _average(numbers: dict[str, str]) -> dict[str, str]:
    """The mean of the four avg@n, as the paper has it: in decimals, where 45.05 is 45.1."""
    four = ("math500", "minerva", "amc23", "aime")
    values = [Decimal(numbers[name].split("/")[0]) for name in four if name in numbers]
    if len(values) < 4:
        return {}
    return {"average": str((sum(values, Decimal()) / 4).quantize(Decimal("0.1"), ROUND_HALF_UP))}


def samples_of(task: str) -> int:
    """Completions per question behind the paper's numbers of a task, on which pass@n depends."""
    return int(_NUMBERS["samples"].get(task, _NUMBERS["samples"]["default"]))


def prompts_of(recipe: Mapping[str, Any]) -> int | None:
    """About how many prompts the paper has of a recipe's data; `None` where it has not that data, or of a mixture.

    Args:
        recipe: fields of a run.
    """
    if recipe.get("dataset_mixture"):
        return None
    (name,) = datasets_of(recipe)
    return next((count for data, count in _NUMBERS["prompts"].items() if data in name.lower()), None)


def datasets_of(recipe: Mapping[str, Any]) -> list[str]:
    """The data sets a run trained on, by name; none where a mixture is written as other libraries do."""
    sources = recipe.get("dataset_mixture") or [{"dataset_name": recipe.get("dataset_name")}]
    if not all(isinstance(source, Mapping) and "dataset_name" in source for source in sources):
        return []
    return [str(source["dataset_name"]) for source in sources]
