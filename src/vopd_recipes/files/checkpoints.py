"""Which checkpoints are complete, and whether they belong to this recipe.

A checkpoint is many files written one after the other, by many processes; a process killed in between leaves a folder
that looks like one. So the last thing written into it, after every process has finished, is a marker, and only
folders with the marker are ever resumed from or kept.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from vopd_recipes.files.atomic import write_text
from vopd_recipes.recipe import RecipeError

logger = logging.getLogger(__name__)

MARKER = "complete"
RECIPE = "recipe.yaml"

# Fields that may change between the two halves of a run: none of them changes an update.
_HARMLESS = re.compile(
    r"(logging|report|save|eval|push|hub|run_name|project|trackio|disable_tqdm|log_|rollout_batch_size|max_test_prompts)"
    r"|(output_dir|resume_from_checkpoint)$"  # where it is, and what it resumes from
    r"|(teacher_server_(url|timeout)|teacher_offload|gradient_checkpointing|ddp_timeout|dataloader_num_workers)$"
    r"|vllm_(gpu_memory_utilization|max_model_len|enforce_eager)$"  # a server that moved, memory that ran out
)


def mark_complete(checkpoint: Path, layout: str = "none", processes: int = 1) -> None:
    """Declare a checkpoint complete; the caller has made sure that every process has written its part.

    Args:
        checkpoint: its folder.
        layout: how the states in it are spread (`sharding.layout`).
        processes: over how many.
    """
    write_text(checkpoint / MARKER, json.dumps({"layout": layout, "processes": processes}) + "\n")


def check_same_layout(checkpoint: Path, layout: str, processes: int) -> None:
    """A run resumes with as many processes as began it: the optimiser's state and the batches are theirs.

    Raises:
        RecipeError: the checkpoint is another layout's; the Trainer would continue with a fresh optimiser, or with
            other batches.
    """
    marker = checkpoint / MARKER
    if not marker.is_file():  # named by resume_from_checkpoint, of whatever origin
        return
    before = json.loads(marker.read_text())
    if (before["layout"], before["processes"]) != (layout, processes):
        raise RecipeError(
            f"{checkpoint}: written by {before['processes']} processes ({before['layout']}), this launch has "
            f"{processes} ({layout}); start as many in the same way, or begin anew in another output_dir with "
            f"model_name_or_path: {checkpoint}"
        )


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return [path for path in _checkpoints(output_dir) if (path / MARKER).is_file()]


def _checkpoints(output_dir: Path) -> list[Path]:
    """Folders named like the Trainer's checkpoints, complete or not, oldest first."""
    found = [
        (int(match[1]), path)
        for path in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint, or `None`."""
    return next(reversed(complete_checkpoints(output_dir)), None)


def discard_incomplete(output_dir: Path) -> None:
    """Remove what a killed process left half-written, so that a new checkpoint of that step starts empty."""
    for path in _checkpoints(output_dir):
        if not (path / MARKER).is_file():
            logger.warning("%s was not written to its end: removed", path)
            shutil.rmtree(path)


def keep_newest(output_dir: Path, limit: int | None) -> None:
    """Remove the oldest complete checkpoints beyond `limit`."""
    if limit is None:
        return
    for path in complete_checkpoints(output_dir)[:-limit]:
        (path / MARKER).unlink()  # first, so that a half-removed folder is not complete either
        shutil.rmtree(path)


def check_same_recipe(output_dir: Path, resolved: dict[str, Any]) -> None:
    """A run may only be resumed by the recipe that began it.

    Raises:
        RecipeError: `output_dir` holds the checkpoints of a recipe that differs in a field that matters.
    """
    path = output_dir / RECIPE
    if not path.is_file() or last_complete_checkpoint(output_dir) is None:
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = [
        name
        for name in sorted({*before, *resolved})
        if before.get(name) != resolved.get(name) and not _HARMLESS.match(name)
    ]
    if changed:
        name = changed[0]
        raise RecipeError(
            f"output_dir: {output_dir} holds a run with {name}: {before.get(name)}, not {resolved.get(name)}; "
            "name another output_dir, or remove that folder"
        )
