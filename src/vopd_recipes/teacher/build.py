"""Who scores: from a recipe of one teacher (`Recipe.by_teacher`) to its server, and from models to teachers.

`teacher_backend: NAME` is the module `NAME_backend` of this room, with the two functions below.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from vopd_recipes.recipe import Recipe
from vopd_recipes.teacher.interface import Teacher
from vopd_recipes.teacher.local import LocalTeacher
from vopd_recipes.teacher.own_base import OwnBase


def teacher_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """The teacher's, found to agree with the student's; `None` where a server has it, and is asked later.

    Raises:
        RecipeError: there is none, or it is another one.
    """
    found: PreTrainedTokenizerBase | None = _backend(recipe).teacher_tokenizer(recipe, tokenizer)
    return found


def connect_to_teacher(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, longest: int) -> Teacher | None:
    """The server that a recipe names, checked; `None` for a local teacher.

    Args:
        recipe: of one teacher.
        tokenizer: the student's.
        longest: tokens of the longest prompt that this teacher reads, with its completion.

    Raises:
        RecipeError: it is not there, or is another model, or cannot give what the estimator needs.
    """
    teacher: Teacher | None = _backend(recipe).connect_to_teacher(recipe, tokenizer, longest)
    return teacher


def _backend(recipe: Recipe) -> Any:
    return import_module(f"{__package__}.{recipe.training.teacher_backend}_backend")


def as_teachers(
    given: nn.Module | Teacher | Mapping[str | None, nn.Module | Teacher],
    student: nn.Module,
    accelerator: Accelerator,
    wrapped: Callable[[], nn.Module],
    offload: Collection[str | None],
    compiled: bool,
) -> dict[str | None, Teacher]:
    """What a trainer was given, as teachers by name; `None` is the name of the only one.

    Args:
        given: models, or what stands for them elsewhere; the student itself, where it has adapters, is its own base.
        student: is trained.
        accelerator: the trainer's.
        wrapped: gives the student inside its distributed wrapper.
        offload: names of models that wait in CPU memory between their turns.
        compiled: see `fused_loss`.
    """
    named: Mapping[Any, nn.Module | Teacher] = given if isinstance(given, Mapping) else {None: given}
    found: dict[str | None, Teacher] = {}
    for name, one in named.items():
        if one is student and isinstance(one, PeftModel):
            found[name] = OwnBase(one, accelerator, wrapped, compiled)
        elif isinstance(one, nn.Module):
            found[name] = LocalTeacher(one, accelerator, name in offload, compiled)
        else:
            found[name] = one
    return found
