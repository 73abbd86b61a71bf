"""What a recipe would do, said before anything is loaded: `python scripts/run_vopd.py RECIPE --explain [PROCESSES]`.

What is printed is itself a recipe. Every field stands there with its value and, behind it, where the value came from:
the file and line, the flag, or nobody, which makes it the default. Comments after them say what follows from the
values: the gradient, the prompts, the optimiser steps, the tokens of a step and of the run, and the memory.

    steps = ⌈epochs · ⌈⌈⌈prompts / B⌉ / W⌉ / A⌉⌉    B prompts per device, W processes, A accumulated micro-batches

Where the prompts are not on this machine yet, the paper's count of the same data gives about how many steps.

No weights are read, no GPU is touched and no process group is started, even under a launcher. The network is asked for
one thing at most: the configuration of a model that `planner/model_configs` lacks.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vopd_recipes.paper import prompts_of
from vopd_recipes.planner.fitting import verdict
from vopd_recipes.planner.items import PHASES
from vopd_recipes.planner.memory import GB, plan
from vopd_recipes.planner.setup import OF_THE_MACHINE, read_anywhere, read_setup
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import ModelConfig, Recipe, RecipeError, VOPDConfig

FLAG = "--explain"
_GPU_GB = 80
# What launchers set for a process that is to meet others.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SOURCE_COLUMN = 50


@dataclass(frozen=True)
class PromptCount:
    """How many train, how surely (`""`, `at most ` or `about `), and how that is known."""

    count: int | None
    surely: str
    words: str


def take_flag(words: list[str]) -> tuple[int, list[str]]:
    """Processes to explain for, and the words without `--explain [PROCESSES]`; default: as many as were launched.

    Raises:
        RecipeError: no whole number of processes, or no recipe.
    """
    index = words.index(FLAG)
    number, rest = words[index + 1 : index + 2], words[index + 1 :]
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if number and number[0].isdecimal():
        processes, rest = int(number[0]), rest[1:]
    rest = words[:index] + rest
    if processes < 1:
        raise RecipeError(f"{FLAG}: {processes} processes; at least 1 trains")
    if not rest or rest[0].startswith("--"):
        raise RecipeError(f"{FLAG}: name a recipe first, as in run_vopd.py RECIPE.yaml {FLAG}")
    return processes, rest


def explain(path: Path, overrides: list[str], processes: int) -> str:
    """The text that `--explain` prints.

    Args:
        path: the recipe.
        overrides: command-line words, `--field value …`.
        processes: one per GPU, over all nodes.

    Raises:
        RecipeError: anything wrong with the recipe or with prompts that are on this machine, in one line.
    """
    with unlaunched():
        recipe, texts = read_anywhere(path, overrides)
        lines = [f"# {path}, resolved; behind each value where it comes from", ""]
        lines += _fields(recipe, texts)
        prompts = count_prompts(recipe)
        told = {
            "gradient": f"{recipe.training.estimator.equation}, at each completion token",
            **_teachers(recipe),
            "prompts": prompts.words,
            **_length(recipe.training, prompts, processes),
            "memory": _memory(path, overrides, processes),
        }
    return "\n".join([*lines, "", *(f"# {name + ':':10}{text}" for name, text in told.items())])


@contextlib.contextmanager
def unlaunched() -> Iterator[None]:
    """As if no launcher had started this process, so that nothing waits for others."""
    launched = {name: os.environ.pop(name) for name in [*os.environ] if name in _LAUNCHER or "ACCELERATE_" in name}
    try:
        yield
    finally:
        os.environ.update(launched)


def _fields(recipe: Recipe, texts: dict[str, tuple[Any, str]]) -> list[str]:
    """`field: value # source`; fields of the machine as written, not as they were replaced to be read here."""
    values = {name: value for name, value in recipe.resolved().items() if name not in OF_THE_MACHINE}
    values |= {name: value for name, (value, _) in texts.items()}
    sources = recipe.sources | {name: where for name, (_, where) in texts.items()}
    lines = {name: f"{name}: {_text(value)}" for name, value in values.items()}
    return [f"{line:{_SOURCE_COLUMN}} # {sources.get(name, 'default')}" for name, line in lines.items()]


def _text(value: Any) -> str:
    """A value on one line of YAML."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.safe_dump(value, default_style=style, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _teachers(recipe: Recipe) -> dict[str, str]:
    """Who teaches what, where that is more than one model scoring what the student reads."""
    data, lines = recipe.data, []
    for name, one in recipe.by_teacher().items():
        server = one.training.teacher_server_url if one.training.teacher_backend == "server" else None
        model = one.model.teacher_model_name_or_path or one.training.teacher_server_model or "the model"
        own_base = server is None and one.model.teacher_is_base
        where = f"at {server}" if server else "the student's own base, one copy of the weights" if own_base else "here"
        prompts = [str(source["dataset_name"]) for source in data.sources() if source["teacher"] in (None, name)]
        of = f"rows whose {data.teacher_column} is {name}" if data.teacher_column else ", ".join(prompts)
        lines.append(f"{name}: {model} ({where}), of {of}" if name else f"{model} ({where})")
    if data.privileged:
        lines.append("reads a prompt of its own: teacher_prompt_template, teacher_system_prompt")
    told = len(lines) > 1 or "own base" in lines[0]
    return {"teachers": "\n#           ".join(lines)} if told else {}


def count_prompts(recipe: Recipe) -> PromptCount:
    """As far as this machine can tell."""
    data = recipe.data
    names = [str(source["dataset_name"]) for source in data.sources()]
    if absent := [name for name in names if not Path(name).exists()]:
        words = f"not known: {absent[0]} is not on this machine{_how_to_get(absent[0])}"
        if (count := prompts_of(recipe.resolved())) is None:
            return PromptCount(None, "", words)
        return PromptCount(count - data.test_size, "about ", f"{words}; the paper has about {count:,}")
    rows = read_rows(data, recipe.training.seed, recipe.training.teachers or ())
    if (tokenizer := _tokenizer(recipe.model)) is None:
        limit = f"less those over {data.max_prompt_length} tokens: the student's tokenizer is not on this machine"
        return PromptCount(len(rows[0]), "at most ", f"{len(rows[0]):,}, {limit}")
    prompts = build_prompts(rows, data, tokenizer)
    mean = sum(map(len, prompts.train["input_ids"])) / len(prompts.train)
    held_out = f"; {len(prompts.test):,} held out" if prompts.test is not None else ""
    dropped = f"; {prompts.dropped:,} dropped, empty or over {data.max_prompt_length}" if prompts.dropped else ""
    words = f"{len(prompts.train):,} of {mean:.0f} tokens on average{held_out}{dropped}"
    return PromptCount(len(prompts.train), "", words)


def _how_to_get(name: str) -> str:
    """The command that writes a data set which this repository describes."""
    described = Path("recipes/data") / f"{Path(name).name}.yaml"
    return f"; python scripts/prepare_data.py {described} writes it" if described.is_file() else ""


def _tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The student's, from a folder or the cache; `None` where neither has it."""
    try:
        return AutoTokenizer.from_pretrained(
            model.model_name_or_path, revision=model.model_revision, local_files_only=True, trust_remote_code=False
        )
    except Exception:  # loaders raise what they like, and training will say what is wrong
        return None


def optimizer_steps(training: VOPDConfig, prompts: int, processes: int) -> int:
    """Steps of a whole run over that many prompts, as `transformers.Trainer` counts them."""
    if training.max_steps > 0:
        return training.max_steps
    size, rounded = training.per_device_train_batch_size, not training.dataloader_drop_last
    batches = -(-prompts // size) if rounded else prompts // size
    batches = -(-batches // processes) if rounded else batches // processes
    per_epoch = max(1, -(-batches // int(training.gradient_accumulation_steps)))
    return math.ceil(training.num_train_epochs * per_epoch)


def _length(training: VOPDConfig, prompts: PromptCount, processes: int) -> dict[str, str]:
    """The steps, and the completion tokens of one of them and of all."""
    factors = {"processes": processes}
    for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "num_generations"):
        factors[name] = int(getattr(training, name))
    sequences = math.prod(factors.values())
    tokens = sequences * training.max_completion_length
    product = " × ".join(f"{name} {value}" for name, value in factors.items())
    a_step = f"{sequences:,} sequences ({product}), at most {tokens:,} completion tokens"
    if training.max_steps <= 0 and prompts.count is None:
        each = sequences // training.num_generations
        steps = f"not known, because the number of prompts is not: one for every {each:,}, {_epochs(training)}"
        return {"steps": steps, "a step": a_step, "a run": "not known, because the number of steps is not"}
    count = optimizer_steps(training, prompts.count or 0, processes)
    if training.max_steps > 0:
        surely, steps = "", f"{count:,}, as max_steps says"
    else:
        surely, steps = prompts.surely, f"{prompts.surely}{count:,} {_epochs(training)}"
    whole = count * tokens
    total = f"about {float(f'{whole:.3g}'):,.0f}" if surely == "about " else f"{whole:,}"
    a_run = f"at most {total} completion tokens, all steps together"
    return {"steps": steps, "a step": a_step, "a run": a_run}


def _epochs(training: VOPDConfig) -> str:
    return f"in {training.num_train_epochs:g} epoch{'' if training.num_train_epochs == 1 else 's'}"


def _memory(path: Path, overrides: list[str], processes: int) -> str:
    try:
        planned = plan(read_setup(path, overrides, processes, _GPU_GB * GB))
    except RecipeError as error:  # a model that is not on this machine, or an optimiser that nobody has counted
        return f"not known: {error}"
    phases = ", ".join(f"{phase} {planned.need(phase) / GB:.2f}" for phase in PHASES)
    return f"GB per GPU, computed and not measured: {phases}\n#           {verdict(planned)}"
