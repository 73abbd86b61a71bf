"""What an evaluation's `results.json` says, for all who read one: comparison, sweep, model card, data set of results.

Beside a task's numbers stand its title and data set (`dataset_name`, `dataset_config`, `dataset_split`: of what was
read), so that no reader has to know the tasks, and one that was added a minute ago is shown as what it is. A file from
before these fields is read as well: its tasks go by their names, and nothing is claimed about their data sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vopd_recipes.recipe import RecipeError

SCHEMA_VERSION = 1
# What must be equal for two evaluations' tasks to stand in one file.
SAME_MEASUREMENT = ("weights_hash", "protocol", "sampling", "backend", "dtype")


def results_path(root: Path, model: str, revision: str) -> Path:
    """`<root>/<model>/<revision>/results.json`, with slashes as two dashes."""
    return root / model.replace("/", "--") / revision.replace("/", "--") / "results.json"


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        RecipeError: it is none, or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = {"model", "revision", *SAME_MEASUREMENT} <= content.keys()
        if content["schema_version"] == SCHEMA_VERSION and content["tasks"] and whole:
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise RecipeError(f"{path} is not a results file of `make evaluate` (schema_version {SCHEMA_VERSION})")


def title_of(task: str, scores: Mapping[str, Any]) -> str:
    """A task as tables have it; its name where the file does not say.

    Args:
        task: its name.
        scores: what the file says of it.
    """
    return str(scores.get("title", task))
