"""The paper's columns for a results table: of the same model, or of the same pair distilled in the same way.

The numbers are the library's (`vopd_recipes.paper`); `paper.json` beside this file is a link to them.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from vopd_recipes.loss import method_of
from vopd_recipes.paper import distilled, undistilled


def published_columns(model: str, recipe: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Heading → task → `avg/pass` (science: `avg`) in percent, as printed; empty for models the paper has not.

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
