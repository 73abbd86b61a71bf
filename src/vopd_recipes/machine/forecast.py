"""What the trial says of a whole run: whether it fits, against the planner's figure, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import torch

from vopd_recipes.machine.report import Report
from vopd_recipes.machine.surroundings import cpu_bytes
from vopd_recipes.machine.trial import Seen, Trial
from vopd_recipes.models import layout, unsharded
from vopd_recipes.planner import (
    CONTEXT_BYTES,
    GB,
    VLLM_ASLEEP_BYTES,
    Plan,
    PromptCount,
    Setup,
    Sharding,
    count_prompts,
    optimizer_steps,
    plan,
    read_anywhere,
    read_setup,
    smallest_change,
    unlaunched,
    verdict,
)
from vopd_recipes.recipe import Recipe, RecipeError

_TOLERANCE = 1.1  # of memory: what is measured over what was planned
_SLACK = 2**26  # bytes of small tensors that nobody plans


@dataclass(frozen=True)
class Asked:
    """The recipe as the user named it, and what is read off it before there are processes that know each other."""

    path: Path
    overrides: list[str]
    recipe: Recipe
    setup: Setup | RecipeError  # what its memory depends on, or why nobody can say
    prompts: PromptCount

    @staticmethod
    def read(path: Path, overrides: list[str]) -> Asked:
        """On any machine, and without meeting other processes.

        Raises:
            RecipeError: anything wrong with the recipe, in one line.
        """
        with unlaunched():  # reading a recipe once more would make accelerate forget the processes that have met
            recipe = read_anywhere(path, overrides)[0]
            setup: Setup | RecipeError
            try:
                setup = read_setup(path, overrides, recipe.training.vllm_tensor_parallel_size, 0)
            except RecipeError as error:  # an optimiser that nobody has counted
                setup = error
            return Asked(path, overrides, recipe, setup, count_prompts(recipe))


def check_memory(report: Report, asked: Asked, trainer: Trial) -> None:
    """The long row's memory is what the planner said, and the recipe's own longest row has room."""
    accelerator, seen = trainer.accelerator, trainer.seen
    on_gpu, processes = accelerator.device.type == "cuda", accelerator.num_processes
    most = int(accelerator.gather(torch.tensor([seen.bytes], device=accelerator.device)).max())
    there = torch.cuda.get_device_properties(accelerator.device).total_memory if on_gpu else cpu_bytes() // processes
    rows = f"a row of {seen.sequences} × {trainer.longest[0] + seen.completion} tokens took {_size(most)} of tensors"
    if isinstance(asked.setup, RecipeError):
        report.right("memory", f"{rows}; {asked.setup}")
        return
    kind = layout(accelerator)
    sharding = kind if kind in get_args(Sharding) else "none"
    setup = replace(asked.setup, gpus=processes, gpu_bytes=there, sharding=cast(Sharding, sharding))
    row = replace(setup, prompts=seen.sequences, generations=1, completion_tokens=seen.completion)
    try:
        with unsharded():  # ZeRO-3 would shard the planner's models, which have shapes and no data
            short, whole = plan(row), plan(setup)
            change = None if whole.fits else smallest_change(whole.setup)
    except RecipeError as error:  # a model that nobody can count
        report.right("memory", f"{rows}; {error}")
        return
    planned = max(map(short.need, ("teacher", "loss", "backward"))) - _assumed(short)
    report.judge(
        "memory",
        most <= _TOLERANCE * planned + _SLACK,
        f"{rows}, planned {_size(planned)}",
        "the planner does not know this model: leave that much more room, and file an issue with this line",
    )
    report.judge(
        "room",
        whole.fits if on_gpu else whole.peak <= there,  # a CPU's vLLM has a cache of its own
        f"{_size(whole.peak)} planned of {_size(there)} for each process" if not on_gpu else verdict(whole),
        f"smallest change that fits: {', '.join(change[0])}" if change else "a smaller row or model, or more memory",
    )


def _size(count: int) -> str:
    return f"{count / GB:.2f} GB" if count >= GB // 10 else f"{count / 1e6:.1f} MB"


def _assumed(planned: Plan) -> int:
    """What the planner adds for things that are no tensors."""
    return CONTEXT_BYTES + (VLLM_ASLEEP_BYTES if planned.setup.sampler == "vllm" else 0)


def forecast(report: Report, asked: Asked, trainer: Trial) -> None:
    """Seconds by phase, and what they say of a whole run in which every completion is as long as it may be."""
    training, seen = asked.recipe.training, trainer.seen
    short, long = seen.lines[1], seen.lines[2]
    row, optimizer = long["time/teacher"] + long["time/student"], long["time/optimizer"]
    report.right(
        "seconds",
        f"rollout {short['time/rollout']:.2f} (completions of {seen.short}), hand-over {short['time/sync']:.2f}, "
        f"long row: teacher {long['time/teacher']:.2f}, student {long['time/student']:.2f}; optimiser {optimizer:.2f}",
    )
    completion = training.max_completion_length
    rollout = short["time/rollout"] * completion / seen.short
    sequences = int(training.gradient_accumulation_steps) * training.per_device_train_batch_size
    tokens = sequences * training.num_generations * (trainer.longest[0] + completion)
    rows = row * tokens / (seen.sequences * (trainer.longest[0] + seen.completion))
    step = rollout + short["time/sync"] + rows + optimizer
    prompts = asked.prompts
    parts = f"at most {_duration(step)} a step ({_duration(rollout)} of it rollout) with completions of {completion}"
    if prompts.count is None and training.max_steps <= 0:
        report.right("forecast", f"{parts}; how many steps is not known: {prompts.words}")
        return
    steps = optimizer_steps(training, prompts.count or 0, trainer.accelerator.num_processes)
    surely = "" if training.max_steps > 0 else prompts.surely
    report.right("forecast", f"{parts}; {surely}{steps:,} steps: {_duration(steps * step)}, evaluations not counted")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def largest_errors(seen: Seen) -> float:
    """The larger of the loss's two errors; one that is no number is the largest there is."""
    errors = seen.loss_errors or (float("inf"),)
    return max(error if error == error else float("inf") for error in errors)
