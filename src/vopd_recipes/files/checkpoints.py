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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vopd_recipes.files.atomic import to_disk, write_text
from vopd_recipes.recipe import RecipeError

logger = logging.getLogger(__name__)

MARKER = "complete"
RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
_STATE = "trainer_state.json"

# Fields that may change between the two halves of a run: none of them changes an update.
_HARMLESS = re.compile(
    r"(logging|report|save|eval|push|hub|run_name|project|trackio|disable_tqdm|log_|rollout_batch_size|max_test_prompts)"
    r"|(output_dir|resume_from_checkpoint|resume_only_model)$"  # where it is, and what it resumes from
    r"|(teacher_server_(url|timeout)|teacher_offload|gradient_checkpointing|ddp_timeout|dataloader_num_workers)$"
    r"|vllm_(gpu_memory_utilization|max_model_len|enforce_eager)$"  # a server that moved, memory that ran out
)


def mark_complete(checkpoint: Path, layout: str = "none", processes: int = 1) -> None:
    """Declare a checkpoint complete, once it is on the disk; every process has written its part before.

    Args:
        checkpoint: its folder.
        layout: how the states in it are spread (`sharding.layout`).
        processes: over how many.
    """
    to_disk(checkpoint)
    write_text(checkpoint / MARKER, json.dumps({"layout": layout, "processes": processes}) + "\n")


def check_own_folder(output_dir: Path) -> None:
    """A folder of another program's is no place for a run: its checkpoints have no marker and would count as broken.

    Raises:
        RecipeError: checkpoints, or the end of a run, in a folder without a recipe of ours.
    """
    theirs = [*_checkpoints(output_dir), *(path for path in [output_dir / _STATE] if path.exists())]
    if theirs and not (output_dir / RECIPE).is_file():
        raise RecipeError(f"output_dir: {output_dir} holds another program's {theirs[0].name}; name another folder")


# What holds the optimiser's state: of one process or DDP, of FSDP (a file or a folder), of DeepSpeed.
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "latest")


def checkpoint_to_resume(output_dir: Path, named: str | None, only_model: bool) -> Path | None:
    """What a run resumes from: the checkpoint that is named, else its last complete one; `None` where it begins.

    Args:
        output_dir: the run's folder.
        named: the recipe's `resume_from_checkpoint`.
        only_model: its `resume_only_model`: a checkpoint without an optimiser will do.

    Raises:
        RecipeError: what is named is no checkpoint, or not the last one, or the optimiser's state is missing and would
            start anew.
    """
    checkpoint = _named(output_dir, named) if named else last_complete_checkpoint(output_dir)
    if checkpoint is None:
        return None
    _check_is_one(checkpoint, output_dir)
    if not (checkpoint / MARKER).is_file() and checkpoint.resolve().parent == output_dir.resolve():
        raise RecipeError(
            f"resume_from_checkpoint: {checkpoint}: was not written to its end; leave it out, and the run resumes "
            f"from the last complete checkpoint in {output_dir}"
        )
    if not only_model and not any((checkpoint / name).exists() for name in _OPTIMIZER):
        raise RecipeError(
            f"{checkpoint}: holds no optimiser (save_only_model), so moments and learning rate would start anew; set "
            "resume_only_model: true to resume like that, or name another output_dir"
        )
    step_of(checkpoint)  # else it is found out after the models are loaded
    return checkpoint


def _check_is_one(checkpoint: Path, output_dir: Path) -> None:
    if (checkpoint / _STATE).is_file():
        return
    what = "no checkpoint, it has no trainer_state.json" if checkpoint.is_dir() else "no such folder"
    if str(checkpoint).lower() in ("true", "false"):  # as other programs take it
        what = f"{what}; it takes a checkpoint's folder, not a switch"
    raise RecipeError(
        f"resume_from_checkpoint: {checkpoint}: {what}; leave it out, and the same command resumes from the last "
        f"complete checkpoint in {output_dir} by itself"
    )


def _named(output_dir: Path, named: str) -> Path:
    """The checkpoint that is named, until the run that began from it has a later one of its own.

    Where later ones are another line's, both would count as one run: rotation would remove the new ones first, and a
    step that both have would be a mixture.
    """
    checkpoint = Path(named)
    inside = checkpoint.resolve().parent == output_dir.resolve()
    later = [path for path in complete_checkpoints(output_dir) if not inside or _number(path) > _number(checkpoint)]
    if not later:
        return checkpoint
    if begun_from(output_dir) == named:  # also where the one it began from has been removed since
        return later[-1]
    _check_is_one(checkpoint, output_dir)  # first: for the sake of a wrong name nobody should move a run away
    raise RecipeError(
        f"resume_from_checkpoint: {checkpoint}: {output_dir} holds {later[-1].name}, which is later; move it away, or "
        "name another output_dir"
    )


def begun_from(output_dir: Path) -> str | None:
    """The checkpoint that the recipe of the run in a folder names, or `None`."""
    path = output_dir / RECIPE
    return _content(path).get("resume_from_checkpoint") if path.is_file() else None


def check_same_layout(checkpoint: Path, layout: str, processes: int) -> None:
    """A run resumes with as many processes as began it: the optimiser's state and the batches are theirs.

    Raises:
        RecipeError: the checkpoint is another layout's; the Trainer would continue with a fresh optimiser, or with
            other batches.
    """
    if layout.startswith("zero") and not (checkpoint / "latest").is_file():
        raise RecipeError(
            f"{checkpoint}: holds no optimiser, without which DeepSpeed does not resume; begin anew in another "
            f"output_dir with model_name_or_path: {checkpoint}"
        )
    marker = checkpoint / MARKER
    if not marker.is_file():  # named by resume_from_checkpoint, of whatever origin
        return
    before = _content(marker, ("layout", "processes"))
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
    found = [path for path in output_dir.glob("checkpoint-*") if _number(path) >= 0 and path.is_dir()]
    return sorted(found, key=_number)


def _number(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 where it has none."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else -1


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint, or `None`."""
    return next(reversed(complete_checkpoints(output_dir)), None)


def discard_incomplete(output_dir: Path) -> None:
    """Remove what a killed process left half-written, so that a new checkpoint of that step starts empty."""
    if not (output_dir / RECIPE).is_file():  # only in a folder that is a run of ours
        return
    for path in _checkpoints(output_dir):
        if not (path / MARKER).is_file():
            logger.warning("%s was not written to its end: removed", path)
            shutil.rmtree(path)


def keep_newest(output_dir: Path, limit: int | None, spared: Path | None = None) -> None:
    """Remove the oldest complete checkpoints beyond `limit`, but not the one that is spared: the best so far."""
    if limit is None:
        return
    for path in complete_checkpoints(output_dir)[:-limit]:
        if spared is not None and path.name == spared.name:
            continue
        (path / MARKER).unlink()  # first, so that a half-removed folder is not complete either
        shutil.rmtree(path)


def check_same_recipe(output_dir: Path, resolved: dict[str, Any]) -> None:
    """A run may only be resumed by the recipe that began it.

    Raises:
        RecipeError: `output_dir` holds the checkpoints of a recipe that differs in a field that matters, or its end.
    """
    path = output_dir / RECIPE
    if not path.is_file() or not _has_begun(output_dir):
        return
    before = _content(path)
    changed = [
        name
        for name in sorted({*before, *resolved})
        if not _HARMLESS.match(name) and _that_matters(before.get(name)) != _that_matters(resolved.get(name))
    ]
    if changed:
        name = changed[0]
        raise RecipeError(
            f"output_dir: {output_dir} holds a run with {name}: {before.get(name)}, not {resolved.get(name)}; "
            "name another output_dir, or remove that folder"
        )


def _that_matters(value: Any) -> Any:
    """Of `teachers`, a mapping of mappings of fields, those that may not change; anything else whole."""
    if not isinstance(value, dict):
        return value
    return {name: _that_matters(part) for name, part in value.items() if not _HARMLESS.match(str(name))}


def check_same_prompts(
    output_dir: Path, hashes: dict[str, dict[str, str]], names: Sequence[str], max_test_prompts: int | None = None
) -> None:
    """A run resumes over the rows that it began with; a file may have been written again under its name.

    Held-out rows as well: the two halves of their curve would not be of the same questions. More or fewer of them is
    another matter, a recipe's `max_test_prompts` may change on the way.

    Args:
        output_dir: the run's folder.
        hashes: what `environment.json` is to say of the rows: `prompts_sha256` and `held_out_sha256`, each as
            `prompts.content_hashes` makes them.
        names: of the sources, by the numbers that are the hashes' keys.
        max_test_prompts: the recipe's.

    Raises:
        RecipeError: a source whose rows are others than those of the checkpoints in `output_dir`.
    """
    path = output_dir / ENVIRONMENT
    if not path.is_file() or not _has_begun(output_dir):
        return
    recorded, compared = _content(path), {"prompts_sha256": "rows"}
    recipe = output_dir / RECIPE
    if recipe.is_file() and _content(recipe).get("max_test_prompts") == max_test_prompts:
        compared["held_out_sha256"] = "held-out rows"
    for field, what in compared.items():
        before, now = recorded.get(field), hashes.get(field)
        if before is None or now is None:  # a run of an earlier version
            continue
        for number in sorted({*before, *now}, key=int):
            if before.get(number) != now.get(number):
                raise RecipeError(
                    f"dataset_name: the {what} of {names[int(number)]} have changed since the run in {output_dir} "
                    "began; bring them back, or name another output_dir"
                )


def _has_begun(output_dir: Path) -> bool:
    return last_complete_checkpoint(output_dir) is not None or finished_step(output_dir) is not None


def finished_step(output_dir: Path) -> int | None:
    """The step at which the run in a folder came to its end; `None` where its state or its weights are not there."""
    is_whole = (output_dir / _STATE).is_file() and any(output_dir.glob("*.safetensors"))
    return step_of(output_dir) if is_whole else None


def step_of(folder: Path) -> int:
    """How many steps a checkpoint, or a finished run, has behind it."""
    return int(_content(folder / _STATE, ("global_step",))["global_step"])


def _content(path: Path, fields: Sequence[str] = ()) -> dict[str, Any]:
    """What a run has written, in JSON or YAML.

    Raises:
        RecipeError: it cannot be read, or lacks one of the fields.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict) or not content.keys() >= {*fields}:
        raise RecipeError(f"{path}: damaged; move {path.parent} away, or bring the file back")
    return content
