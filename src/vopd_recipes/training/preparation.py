"""Before the first step: teachers are found or loaded, and every model is looked at with the prompts that it reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedTokenizerBase

from vopd_recipes.models import (
    check_models,
    check_prompts,
    end_of_sequence_ids,
    is_own_base,
    is_sharded,
    load_teacher,
    loading_teacher,
    published_end_ids,
    unshared_end,
)
from vopd_recipes.prompts import Prompts
from vopd_recipes.recipe import ModelConfig, Recipe, is_set, of_teacher
from vopd_recipes.teacher import Teacher, connect_to_teacher

logger = logging.getLogger(__name__)


def connect_to_servers(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, read: Mapping[str | None, list[list[int]]]
) -> dict[str | None, Teacher | None]:
    """Those that are found and hold the right model, by teacher; `None` for a local one.

    Args:
        recipe: of all teachers.
        tokenizer: the student's.
        read: what each teacher reads.

    Raises:
        RecipeError: one is not there, or is another model, or cannot give what the estimator needs.
    """
    servers = {}
    for name, one in recipe.by_teacher().items():
        longest = max(map(len, read[name])) + recipe.training.max_completion_length
        with of_teacher(name):
            servers[name] = connect_to_teacher(one, tokenizer, longest)
    return servers


def load_or_share(recipe: Recipe, student: nn.Module) -> nn.Module:
    """A local teacher: the student itself where that is its own base, under adapters."""
    if is_own_base(student, recipe.model):
        logger.info(
            "the teacher is the student's own base, %s: one copy of the weights, adapters off for its turn",
            recipe.model.teacher_model_name_or_path,
        )
        return student
    with loading_teacher(recipe.training.teacher_offload):
        return load_teacher(recipe.model)


def check_all(
    recipe: Recipe,
    student: nn.Module,
    teachers: dict[str | None, nn.Module | Teacher],
    tokenizer: PreTrainedTokenizerBase,
    tokenizers: dict[str | None, PreTrainedTokenizerBase | None],
    prompts: Prompts,
    read: Mapping[str | None, list[list[int]]],
) -> None:
    """The models here are understood, agree on where a text ends, and have room for what they read.

    Raises:
        RecipeError: one of them does not, before anything is trained.
    """
    room, device = recipe.training.max_completion_length, recipe.training.device
    asked = [row["input_ids"] for rows in (prompts.train, prompts.test) if rows is not None for row in rows]
    check_prompts(asked, room, student, None)
    sharded = is_sharded(student) or is_set("ACCELERATE_USE_FSDP")  # then the trainer looks at them, later
    if not sharded:
        student.to(device)  # some kernels are nowhere else, and a CPU would take minutes
        as_base = [ids for name, model in teachers.items() if model is student for ids in read[name]]
        check_models(student, None, asked[0], max(map(len, asked + as_base)) + room)
    for name, model in teachers.items():
        with of_teacher(name):
            own, theirs = read[name], tokenizers[name]
            if isinstance(model, nn.Module):
                check_prompts(own, room, None, model)
            ends = _end_ids(recipe.by_teacher()[name].model, model, theirs)
            if notice := unshared_end(student, tokenizer, ends, theirs or tokenizer):
                logger.warning("%s%s", "" if name is None else f"{name}: ", notice)
            if isinstance(model, nn.Module) and model is not student and not sharded:
                model.to(device)
                check_models(None, model, own[0], max(map(len, own)) + room)
                if recipe.by_teacher()[name].training.teacher_offload:
                    model.to("cpu")


def _end_ids(config: ModelConfig, model: nn.Module | Teacher, tokenizer: PreTrainedTokenizerBase | None) -> set[int]:
    """Tokens that end a teacher's texts: a model's own; of one on a server, what its name and tokenizer tell."""
    if isinstance(model, nn.Module):
        return end_of_sequence_ids(model, tokenizer) if tokenizer else set()
    ids = published_end_ids(config.teacher_model_name_or_path, config.teacher_model_revision)
    return ids if tokenizer is None or tokenizer.eos_token_id is None else {*ids, int(tokenizer.eos_token_id)}
