"""`teacher_backend: server`: a vLLM server, asked for log-probabilities or for hidden states."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from vopd_recipes.models import load_teacher_head
from vopd_recipes.recipe import Recipe
from vopd_recipes.teacher import local_backend
from vopd_recipes.teacher.interface import Teacher
from vopd_recipes.teacher.logprobs import ServerTeacher
from vopd_recipes.teacher.server import TeacherServer
from vopd_recipes.teacher.states import StatesServer, StatesTeacher


def teacher_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """See `build.teacher_tokenizer`; hidden states have their head here, and the tokenizer beside it."""
    if recipe.training.teacher_server_scores == "logprobs":
        return None
    return local_backend.teacher_tokenizer(recipe, tokenizer)


def connect_to_teacher(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, longest: int) -> Teacher:
    """See `build.connect_to_teacher`."""
    training, estimator = recipe.training, recipe.training.estimator
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
