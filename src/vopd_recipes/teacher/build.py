"""Who scores: from a recipe of one teacher (`Recipe.by_teacher`) to its server, and from models to teachers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from vopd_recipes.models import check_tokenizers, load_teacher_head, load_tokenizer
from vopd_recipes.recipe import Recipe
from vopd_recipes.teacher.interface import Teacher
from vopd_recipes.teacher.local import LocalTeacher
from vopd_recipes.teacher.logprobs import ServerTeacher
from vopd_recipes.teacher.own_base import OwnBase
from vopd_recipes.teacher.server import TeacherServer
from vopd_recipes.teacher.states import StatesServer, StatesTeacher


def teacher_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """The teacher's, found to agree with the student's; `None` where a server has it, and is asked later.

    Raises:
        RecipeError: there is none, or it is another one.
    """
    if recipe.training.teacher_backend != "local" and recipe.training.teacher_server_scores == "logprobs":
        return None
    found = load_tokenizer(recipe.model, teacher=True)
    check_tokenizers(tokenizer, found)
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
    training, estimator = recipe.training, recipe.training.estimator
    if training.teacher_backend == "local":
        return None
    place = str(training.teacher_server_url), training.teacher_server_model
    if training.teacher_server_scores == "hidden_states":
        head = load_teacher_head(recipe.model)
        states = StatesServer(*place, head.weight.dtype, training.teacher_server_timeout)
        states.check(tokenizer, longest, head)
        return StatesTeacher(states, head, compiled=training.loss_compile)
    k = estimator.support_top_k if estimator.method.needs == "support" else 0
    server = TeacherServer(*place, k, training.teacher_server_timeout)
    teacher = ServerTeacher(server, len(tokenizer), estimator)
    server.check(tokenizer, longest, teacher.asks_for_ids)
    return teacher


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
