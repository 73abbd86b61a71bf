"""Accuracy against steps: every published step evaluated once, and a picture of all."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from vopd_recipes.files import finish_axis, new_figure, read_results, results_path, save_figure
from vopd_recipes.hub.download import list_revisions
from vopd_recipes.recipe import RecipeError

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step-(\d{8})")


def sweep_steps(api: HfApi, repo_id: str, evals: Path, evaluate: Callable[[str], None]) -> dict[int, dict[str, Any]]:
    """Evaluate every complete step; step → results, in order.

    Args:
        api: the Hub.
        repo_id: `org/name`.
        evals: folder of the evaluation: results lie in `<org>--<name>/<revision>` below it.
        evaluate: evaluates one revision, which leaves a results file there. It is asked for every step: what is
            measured already, on which weights and which tasks, the evaluation knows.

    Raises:
        RecipeError: there is no complete step.
    """
    revisions = [revision for revision in list_revisions(api, repo_id) if _STEP.fullmatch(revision.name)]
    for revision in revisions:
        if revision.missing:
            logger.warning("%s is not complete (%s): left out", revision.name, revision.missing[0])
    complete = [revision.name for revision in revisions if not revision.missing]
    if not complete:
        raise RecipeError(f"{repo_id}: no step is published there; python scripts/download.py {repo_id} --list")
    for name in complete:
        evaluate(name)
    # What the last evaluation left; results of other protocols are kept below `earlier`, and are none of this sweep's.
    paths = {name: results_path(evals, repo_id, name) for name in complete}
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        raise RecipeError(f"{repo_id}: no results of {missing[0]} came out below {evals}")
    return {int(name.removeprefix("step-")): read_results(path) for name, path in paths.items()}


def plot_sweep(results: dict[int, dict[str, Any]], title: str, path: Path) -> Path:
    """Draw avg@n of each task against steps, with 95 % intervals (1.96 standard errors)."""
    tasks = sorted({task for content in results.values() for task in content["tasks"]})
    figure, (axis,) = new_figure(1, 7, 4.2)
    for task in tasks:
        points = [(step, content["tasks"][task]) for step, content in results.items() if task in content["tasks"]]
        axis.errorbar(
            [step for step, _ in points],
            [100 * scores["avg"] for _, scores in points],
            yerr=[196 * scores["stderr"] for _, scores in points],
            marker="o",
            markersize=4,
            linewidth=1.4,
            capsize=3,
            label=f"{task} (avg@{points[0][1]['n']})",
        )
    finish_axis(axis, title, xlabel="step", ylabel="accuracy (%)")
    return save_figure(figure, path)
