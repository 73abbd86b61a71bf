"""What the parts of a recipe, models, prompts and training, say about each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vopd_recipes.recipe.errors import RecipeError
from vopd_recipes.recipe.teachers import NAMING, check_routes

if TYPE_CHECKING:
    from vopd_recipes.recipe.config import Recipe


def check_together(recipe: Recipe) -> None:
    """Nothing that one part says contradicts another.

    Raises:
        RecipeError: with the line that says it.
    """
    data, training = recipe.data, recipe.training
    _check_teachers(recipe)
    if (training.metric_for_best_model or "").endswith("accuracy") and not any(
        source["answer_column"] for source in data.sources()
    ):
        where = recipe.sources.get("metric_for_best_model") or str(recipe.path)
        raise RecipeError(f"{where}: metric_for_best_model: accuracy needs answers; name their answer_column")
    if training.hub_merge and not recipe.model.use_peft:
        raise RecipeError(
            f"{recipe.sources['hub_merge']}: hub_merge: only a LoRA run can be merged; set use_peft: true"
        )
    if training.rollout_backend == "vllm":
        longest = data.max_prompt_length + training.max_completion_length
        if training.vllm_max_model_len is not None and training.vllm_max_model_len < longest:
            raise RecipeError(
                f"{recipe.sources['vllm_max_model_len']}: vllm_max_model_len: {training.vllm_max_model_len} is below "
                f"max_prompt_length + max_completion_length = {longest}"
            )
    evaluates = training.eval_strategy != "no" or training.eval_on_start
    if evaluates and not (data.dataset_test_split or data.test_size):
        where = recipe.sources.get("eval_strategy") or recipe.sources.get("eval_on_start") or str(recipe.path)
        raise RecipeError(f"{where}: evaluation needs held-out prompts; set dataset_test_split or test_size")


def _check_teachers(recipe: Recipe) -> None:
    """Each can be found, and each prompt has one."""
    training, where = recipe.training, recipe.sources.get("teachers") or str(recipe.path)
    values = vars(recipe.model) | vars(training)
    for field in NAMING if training.teachers is not None else ():
        if values[field] is not None:
            raise RecipeError(f"{recipe.sources[field]}: {field}: names one teacher beside teachers; keep one of them")
    for name, one in recipe.by_teacher().items():
        local = one.training.teacher_backend == "local"
        if not one.model.teacher_model_name_or_path and (local or one.training.teacher_server_scores != "logprobs"):
            whose = "" if name is None else f"teachers: {name}: "
            why = "" if local else ", whose head reads the server's hidden states"
            raise RecipeError(f"{where}: {whose}teacher_model_name_or_path: missing; name a Hub id or a folder{why}")
    try:
        check_routes(training.teachers, recipe.data.sources(), recipe.data.teacher_column)
    except RecipeError as error:
        fields = ("teacher_column", "dataset_mixture", "teachers")
        field = next(field for field in fields if str(error).startswith(field))
        raise RecipeError(f"{recipe.sources.get(field, where)}: {error}") from None
