"""`teacher_backend: local`: a model of the training processes, which are the ones to load it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from vopd_recipes.models import check_tokenizers, load_tokenizer
from vopd_recipes.recipe import Recipe


def teacher_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """See `build.teacher_tokenizer`; read from where the weights will be."""
    found = load_tokenizer(recipe.model, teacher=True)
    check_tokenizers(tokenizer, found)
    return found


def connect_to_teacher(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    """See `build.connect_to_teacher`; there is nobody to connect to."""
