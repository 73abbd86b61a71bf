"""`python scripts/check_machine.py RECIPE [--random] [--field value]`: is this machine right for that recipe?

Exit status 0: everything is; 1: a red line says what is not, and what to do; 2: the recipe itself cannot be read.
Under `accelerate launch` all processes take part, and the first speaks.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import set_seed

from vopd_recipes.console import Progress
from vopd_recipes.machine.forecast import Asked, check_memory, forecast, largest_errors
from vopd_recipes.machine.report import Report
from vopd_recipes.machine.surroundings import check_devices, check_exchange, check_versions
from vopd_recipes.machine.trial import STEPS, Trial, implementation_of
from vopd_recipes.models import check_models, is_sharded, untrained_student, untrained_teacher, vocabulary_of
from vopd_recipes.planner import Architecture, without_flags
from vopd_recipes.recipe import (
    ModelConfig,
    Recipe,
    RecipeError,
    find_recipe,
    is_set,
    load_recipe,
    of_teacher,
    one_line,
    one_line_errors,
)
from vopd_recipes.tiny import byte_tokenizer
from vopd_recipes.training import TrainingStopped, build_trainer, largest_gap, leave_the_group

USAGE = "usage: vopd check RECIPE [--random] [--field value ...]"
RANDOM = "--random"
# What makes a run of the recipe a trial, whatever it says itself.
_TRIAL = {
    "max_steps": str(STEPS), "logging_steps": "1", "logging_strategy": "steps", "eval_strategy": "no",
    "eval_on_start": "false", "save_strategy": "no", "load_best_model_at_end": "false", "report_to": "none",
    "push_to_hub": "false", "hub_merge": "false", "disable_tqdm": "true", "resume_from_checkpoint": "null",
    # a step that moves the student far: else a sampler that kept the old weights would hardly show
    "learning_rate": "3e-3", "lr_scheduler_type": "constant", "warmup_steps": "0",
}  # fmt: skip
_SHORT = {"cuda": 128, "cpu": 16}  # tokens of a completion
_LARGEST_ERRORS = {"exact": 1e-3, "rounded": 0.03}  # of the loss and its gradient, relative
_PROMPTS = 64  # of --random


@one_line_errors()
def main(words: list[str] | None = None) -> None:
    """Check, print, exit.

    Args:
        words: the recipe, `--random`, overrides; default: those of the process.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if words else 2)
    untrained = RANDOM in words
    path, overrides = find_recipe(words[0]), [word for word in words[1:] if word != RANDOM]
    asked = Asked.read(path, overrides)
    served = any(one.training.teacher_backend == "server" for one in asked.recipe.by_teacher().values())
    if untrained and served:
        raise RecipeError(f"{RANDOM}: the recipe's teacher is a server's; start it, and leave {RANDOM} out")
    report, start = Report(int(os.environ.get("RANK", 0))), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        _check(report, asked, folder, untrained)
    if report.faults:
        sys.exit(1)
    report.right("all right", f"in {time.perf_counter() - start:.0f} s")
    leave_the_group(asked.recipe)


def _check(report: Report, asked: Asked, folder: str, untrained: bool) -> None:
    check_versions(report, asked.recipe)
    if not check_devices(report, asked.recipe):
        return
    start = time.perf_counter()
    try:
        recipe = load_recipe(asked.path, _trial_flags(asked, folder))
        if not check_exchange(report, recipe.training.device.type == "cuda"):
            return
        longest = _longest(asked.recipe)
        trial = partial(Trial, longest=longest, teacher_prompt=_teacher_prompt(asked.recipe, longest[1]))
        trainer = _untrained(recipe, trial, Path(folder)) if untrained else build_trainer(recipe, trial)[0]
        assert isinstance(trainer, Trial)
        trainer.remove_callback(Progress)
        engine = f"rollout_backend: {recipe.training.rollout_backend}"
        report.right("models", f"built and understood, with {engine}, in {time.perf_counter() - start:.0f} s")
        trainer.train()
    except torch.OutOfMemoryError as error:
        report.fault("memory", one_line(error, 200), "scripts/plan_memory.py names the smallest change that fits")
    except TrainingStopped as error:
        report.fault("trial", one_line(error), "")
    except RecipeError as error:
        report.fault("models", str(error), "")
    else:
        _judge(report, trainer)
        check_memory(report, asked, trainer)
        forecast(report, asked, trainer)


def _trial_flags(asked: Asked, folder: str) -> list[str]:
    """The user's overrides, and the trial's over them."""
    training = asked.recipe.training
    device = "cuda" if torch.cuda.is_available() and not training.use_cpu else "cpu"
    short = min(training.max_completion_length, _SHORT[device])
    fields = {**_TRIAL, "output_dir": folder, "max_completion_length": str(short)}
    longest = asked.recipe.data.max_prompt_length + training.max_completion_length
    if training.rollout_backend == "vllm" and training.vllm_max_model_len is None and longest <= _places(asked.recipe):
        fields["vllm_max_model_len"] = str(longest)  # the engine that the run may have
    return [
        *without_flags(asked.overrides, fields),
        *(word for name, value in fields.items() for word in (f"--{name}", value)),
    ]


def _longest(recipe: Recipe) -> tuple[int, int]:
    """Tokens of a prompt and of a completion, as many as the recipe allows and the student has places for."""
    places = _places(recipe)
    prompt = min(recipe.data.max_prompt_length, places // 2)
    return prompt, min(recipe.training.max_completion_length, places - prompt)


def _teacher_prompt(recipe: Recipe, completion: int) -> int | None:
    """Tokens of a prompt of the teachers' own, as many as the recipe allows and all have places for; else `None`."""
    if not recipe.data.privileged:
        return None
    models = [one.model for one in recipe.by_teacher().values()]
    named = [(one.teacher_model_name_or_path, one.teacher_model_revision) for one in models]
    places = [_places_of(name, revision) if name else _places(recipe) for name, revision in named]
    longest = recipe.data.teacher_max_prompt_length or recipe.data.max_prompt_length
    return max(1, min(longest, min(places) - completion))


def _places(recipe: Recipe) -> int:
    """How long a sequence the student can read."""
    return _places_of(str(recipe.model.model_name_or_path), recipe.model.model_revision)


def _places_of(name: str, revision: str | None) -> int:
    return getattr(Architecture(name, revision).config, "max_position_embeddings", None) or sys.maxsize


def _untrained(recipe: Recipe, trial: Any, folder: Path) -> Any:
    """The trainer over random weights and random prompts: only the models' configurations are needed."""
    set_seed(recipe.training.seed)
    model, device = recipe.model, recipe.training.device
    student_of = Architecture(str(model.model_name_or_path), model.model_revision).config
    student: nn.Module = untrained_student(model, student_of, device)
    teachers = {name: _untrained_teacher(one, student, device) for name, one in recipe.by_teacher().items()}
    length = min(recipe.data.max_prompt_length, 64)
    shared = min(student_of.vocab_size, *(vocabulary_of(teacher) for teacher in teachers.values()))
    ids = torch.randint(shared, (_PROMPTS, length), generator=torch.Generator().manual_seed(0)).tolist()
    own = ("teacher_input_ids",) if recipe.data.privileged else ()
    rows = [
        {"prompt_id": i, "prompt": "", "answer": None, "teacher": name, **dict.fromkeys(("input_ids", *own), row)}
        for i, (row, name) in enumerate(zip(ids, cycle(teachers)))
    ]
    if not (is_sharded(student) or is_set("ACCELERATE_USE_FSDP")):
        for name, teacher in teachers.items():
            with of_teacher(name):
                check_models(student, teacher, ids[0], length + recipe.training.max_completion_length)
    architecture = folder / "architecture"  # of which vLLM builds the student; the weights come by hand-over
    student_of.save_pretrained(architecture)
    return trial(
        student,
        teachers,
        recipe.training,
        processing_class=byte_tokenizer(),
        model_config=ModelConfig(model_name_or_path=str(architecture)),
        train_dataset=Dataset.from_list(rows),
    )


def _untrained_teacher(recipe: Recipe, student: nn.Module, device: torch.device) -> nn.Module:
    """Of a recipe of one teacher: a model of its shape, or the student, where that is its own base."""
    model = recipe.model
    if model.teacher_is_base:
        return student
    architecture = Architecture(str(model.teacher_model_name_or_path), model.teacher_model_revision)
    return untrained_teacher(model, architecture.config, device)


def _judge(report: Report, trainer: Trial) -> None:
    """What the three steps showed."""
    seen, largest = trainer.seen, largest_gap(trainer, first=True)
    fused = ", ".join(sorted(seen.attention))
    report.judge(
        "attention",
        bool(fused) or trainer.accelerator.device.type != "cuda",
        f"{implementation_of(trainer)}: {fused or 'no fused kernel, products and a softmax'}",
        "packed rows will be slow and large: install flash-attn, or use attn_implementation: packed_sdpa",
    )
    kind = "exact" if largest < 0.01 else "rounded"
    error = largest_errors(seen)
    report.judge(
        "loss",
        error <= _LARGEST_ERRORS[kind],
        f"value and gradient are within {error:.1e} of the dense definition (bound {_LARGEST_ERRORS[kind]:g})",
        "this device computes it wrong in this type: dtype: float32 tells whether rounding is to blame",
    )
    first, second = (seen.gaps + [float("inf")] * 2)[:2]
    remedy = "what samples the completions is not the student; compare rollout_backend: transformers"
    report.judge("rollout", first <= largest, f"log-probability gap {first:.1e} nats (bound {largest:g})", remedy)
    report.judge(
        "hand-over",
        second <= largest,
        f"gap {second:.1e} nats after a step that moved the student by {seen.moved:.1e}"
        + ("" if seen.moved > largest else ", too little to tell"),
        f"the sampler did not get the step's weights (bound {largest:g}); compare rollout_backend: transformers",
    )
    norms = [line["grad_norm"] for line in seen.lines]
    report.right("steps", f"{len(norms)}, gradient norms {', '.join(f'{norm:.3g}' for norm in norms)}")
