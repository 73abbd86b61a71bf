"""Built-in models from a plan: which problems each learns from nothing, and for how long.

A teacher is trained until it is right nearly always. A student is smaller and stopped early, because one that is never
right learns nothing from its own samples, and one that always is has nothing left to learn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from vopd_recipes.files import write_text
from vopd_recipes.grading import MathGrader
from vopd_recipes.rollout import Sampling, TransformersRollout
from vopd_recipes.tiny.pair import byte_tokenizer, save, tiny_qwen3, train_supervised
from vopd_recipes.tiny.problems import Problem, split, write

_TRAIN, _TEST, _BATCH = 20_000, 256, 64
_LONGEST = 64  # tokens of a solution, and some


@dataclass(frozen=True)
class Blueprint:
    """A model, and the kinds of problems (`problems.KINDS`) that it learns for so many steps."""

    hidden_size: int
    layers: int
    steps: int
    kinds: tuple[str, ...]
    learning_rate: float = 4e-3


def build_models(folder: Path, blueprints: Mapping[str, Blueprint], prompts: Mapping[str, str]) -> dict[str, Any]:
    """Train and save each model in `folder/<name>`, write prompts, and last `pair.json`: size and accuracy of each.

    Args:
        folder: of all that.
        blueprints: by name.
        prompts: kind → folder for its `train.jsonl` and `test.jsonl`, inside of `folder`.

    Raises:
        FileExistsError: the folder holds part of that already.
    """
    for name in blueprints:
        if (folder / name).exists():
            raise FileExistsError(f"{folder} holds part of a pair; remove it and run this again")
    problems = {kind: split(kind, _TRAIN, _TEST) for kind in prompts}
    for kind, place in prompts.items():
        write(folder / place, *problems[kind])
    found = {}
    for name, blueprint in blueprints.items():
        model = _train(blueprint, [row for kind in blueprint.kinds for row in problems[kind][0]], name)
        right = {kind: accuracy(model, problems[kind][1]) for kind in prompts}
        save(model, byte_tokenizer(), folder / name)
        found[name] = {"parameters": model.num_parameters(), "accuracy": right}
        if len(prompts) == 1:
            (found[name]["accuracy"],) = right.values()
    write_text(folder / "pair.json", json.dumps(found, indent=2) + "\n")
    return found


def _train(blueprint: Blueprint, problems: list[Problem], name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = tiny_qwen3(blueprint.hidden_size, blueprint.layers, seed=0)
    train_supervised(
        model, byte_tokenizer(), problems, steps=blueprint.steps, batch_size=_BATCH,
        learning_rate=blueprint.learning_rate, seed=0, label=f"Training the {name}",
    )  # fmt: skip
    return model


def accuracy(model: PreTrainedModel, problems: list[Problem]) -> float:
    """Share of problems that one sample at temperature 1 gets right."""
    tokenizer = byte_tokenizer()
    rollout = TransformersRollout(lambda: model, {tokenizer.eos_token_id}, 257, Sampling(), batch_size=256)
    prompts = [tokenizer(problem.prompt)["input_ids"] for problem in problems]
    completions = rollout.generate(prompts, seeds=list(range(len(prompts))), max_new_tokens=_LONGEST)
    texts = [str(tokenizer.decode(completion.token_ids, skip_special_tokens=True)) for completion in completions]
    with MathGrader() as grader:
        grades = grader.grade(texts, [problem.answer for problem in problems])
    return sum(grade.correct for grade in grades) / len(grades)
