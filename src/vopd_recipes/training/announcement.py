"""What is said of a run before its first step, after its last, and where somebody interrupts it.

The rows of two boxes and a line; the room `console` draws them.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from vopd_recipes.console import Rows, before_and_after, duration
from vopd_recipes.files import METRICS, finished_step, last_complete_checkpoint, step_of
from vopd_recipes.models import layout
from vopd_recipes.planner import optimizer_steps
from vopd_recipes.recipe import Recipe
from vopd_recipes.teacher import OwnBase
from vopd_recipes.training.trainer import VOPDTrainer

COMMAND = "VOPD_COMMAND"  # the command line of a launcher of ours, for its processes


def title(recipe: Recipe) -> str:
    """Of the first box: what is run, of which version."""
    try:
        return f"vOPD recipes {version('vopd-recipes')}: {recipe.path}"
    except PackageNotFoundError:
        return f"vOPD recipes: {recipe.path}"


def beginning(recipe: Recipe, trainer: VOPDTrainer, resumed: int, log: Path | None) -> Rows:
    """The rows of the first box.

    Args:
        recipe: of the run.
        trainer: of the run.
        resumed: the step that it goes on from; 0 where it begins.
        log: where the noise goes.
    """
    training, estimator = recipe.training, recipe.training.estimator
    processes = trainer.accelerator.num_processes
    steps = optimizer_steps(training, len(trainer.train_dataset), processes)  # type: ignore[arg-type]
    sequences = processes * training.gradient_accumulation_steps * training.per_device_train_batch_size
    sequences *= training.num_generations
    held_out = f", {len(trainer.eval_dataset):,} held out" if trainer.eval_dataset is not None else ""  # type: ignore[arg-type]
    if held_out and training.num_generations_eval > 1:
        held_out += f", {training.num_generations_eval} samples each"
    tokens = sequences * training.max_completion_length
    rows = [("student", f"{recipe.model.model_name_or_path} ({_size(trainer.student)})")]
    rows += [("" if index else "teacher", line) for index, line in enumerate(_teacher_lines(recipe, trainer))]
    rows += [
        ("method", f"{estimator.method.title}: {estimator.equation}"),
        ("device", _device(trainer)),
        ("prompts", f"{len(trainer.train_dataset):,}{held_out}"),  # type: ignore[arg-type]
        ("steps", f"{steps:,}, each of {sequences:,} completions, at most {tokens:,} tokens"),
        ("output", f"{trainer.output_dir}: every number in {METRICS}"),
    ]
    if log is not None:
        rows.append(("", f"what libraries print: {log}"))
    return [*rows, ("resuming", f"from step {resumed} of {steps}")] if resumed else rows


def _teacher_lines(recipe: Recipe, trainer: VOPDTrainer) -> list[str]:
    """A line for each teacher, and one for what they read besides the student's prompts."""
    lines = []
    for name, one in recipe.by_teacher().items():
        whose = "" if name is None else f"{name}: "
        own_base = isinstance(trainer.teachers[name], OwnBase)
        lines.append(whose + ("the student's own base, adapters off: one copy" if own_base else _teacher_line(one)))
    if recipe.data.privileged:
        lines.append("reads more than the student: a prompt of its own")
    return lines


def _teacher_line(recipe: Recipe) -> str:
    """The one teacher of a recipe, and where it is."""
    training, name = recipe.training, recipe.model.teacher_model_name_or_path
    if training.teacher_backend == "local":
        return f"{name}{', in CPU memory between its turns' if training.teacher_offload else ''}"
    scores = training.teacher_server_scores.replace("_", " ")
    return f"{name or training.teacher_server_model or 'the model'} at {training.teacher_server_url}, its {scores}"


def _size(student: nn.Module) -> str:
    """Of all parameters and of those that are trained, whoever holds them."""
    sizes = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in student.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    return f"{_count(total)} parameters" + (f", {_count(trained)} of them trained" if trained < total else "")


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"


def _device(trainer: VOPDTrainer) -> str:
    accelerator = trainer.accelerator
    several = accelerator.num_processes > 1
    kind = f"{accelerator.num_processes} processes ({layout(accelerator)})" if several else "one process"
    if accelerator.device.type == "cuda":
        return f"{kind}, {torch.cuda.get_device_name(accelerator.device)}"
    return f"{kind}, {accelerator.device.type}, threads: {torch.get_num_threads()} of {os.cpu_count()} cores"


def ending(trainer: VOPDTrainer, seconds: float) -> Rows:
    """The rows of the last box: what has changed, where it is, and three commands to go on with.

    Args:
        trainer: of the run.
        seconds: since this process began.
    """
    folder, args = trainer.output_dir, trainer.args
    publish = f"vopd publish {folder} --hub-model-id org/name"
    if args.push_to_hub:
        publish = f"vopd download {args.hub_model_id} --list"
    return [
        *before_and_after(trainer.state.log_history),
        ("time", f"{duration(seconds)}, to step {trainer.state.global_step}"),
        ("model", str(folder)),
        ("picture", str(folder / "plots" / "training.png")),
        ("next", f"vopd report {folder}"),
        ("", f"vopd evaluate {folder}"),
        ("", publish),
    ]


def interrupted(output_dir: Path | None) -> str:
    """The line of Ctrl-C: what resumes the run, and from where."""
    last = last_complete_checkpoint(output_dir) if output_dir else None
    if output_dir and finished_step(output_dir) is not None:
        return f"interrupted; the run itself is finished; what is not on the Hub goes up with: {command()}"
    begins = f"resumes after step {step_of(last)}" if last else "begins anew"
    return f"interrupted; {begins}: {command()}"


def command() -> str:
    """The command line that started this run, by whatever launcher."""
    if (given := os.environ.get(COMMAND)) is not None:
        return given
    words, launcher = list(sys.orig_argv), Path(f"/proc/{os.getppid()}/cmdline")
    if {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys() and launcher.is_file():
        words = launcher.read_text(encoding="utf-8", errors="replace").rstrip("\0").split("\0")
    if len(words) > 1 and Path(words[0]).name.startswith("python") and _is_program(words[1]):
        words = words[1:]  # such as accelerate, which the environment's Python was asked to run
    return shlex.join([Path(words[0]).name, *words[1:]])


def _is_program(word: str) -> bool:
    """A command of the environment, and neither a script nor a flag."""
    return not word.startswith("-") and not Path(word).suffix
