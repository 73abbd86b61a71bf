"""A file and flags become a checked recipe, whose models, prompts and training do not contradict each other."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from vopd_recipes.recipe.config import HINTS, PARTS, Recipe, VOPDConfig
from vopd_recipes.recipe.errors import RecipeError, one_line
from vopd_recipes.recipe.teachers import NAMING, check_routes
from vopd_recipes.recipe.text import Lines, read_fields


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        path: the YAML file.
        overrides: command-line words, `--field value …`.

    Raises:
        RecipeError: anything wrong, in one line.
    """
    path = Path(path)
    values, sources = read_fields(path, overrides, HINTS, _extended)
    model, data, training = (_build(part, values, sources, path) for part in PARTS)
    recipe = Recipe(path, model, data, training, sources)
    if training.teachers is None:
        recipe = recipe.by_teacher()[None]
    _check_together(recipe)
    return recipe


def _extended(base: Lines, own: Lines) -> Lines:
    """A baseline belongs to its divergence: a file that changes that and says nothing of a baseline inherits none.

    Flags change the recipe that they are given to, and are refused where the two contradict each other.
    """
    before, _ = base.get("divergence", (VOPDConfig.divergence, ""))
    changed = own.get("divergence", (before, ""))[0] != before
    return {name: line for name, line in base.items() if not (changed and name == "baseline")} | own


def _build(part: type, values: dict[str, Any], sources: dict[str, str], path: Path) -> Any:
    names = {item.name for item in fields(part)}
    try:
        return part(**{name: value for name, value in values.items() if name in names})
    except (ValueError, TypeError, ImportError, OSError) as error:
        message = one_line(error)
        mentioned = [sources[name] for name in sources if name in re.findall(r"\w+", message)]
        where = mentioned[0] if mentioned else str(path)
        raise RecipeError(f"{where}: {message}") from error


def _check_together(recipe: Recipe) -> None:
    """Nothing that one part says contradicts another."""
    data, training = recipe.data, recipe.training
    _check_teachers(recipe)
    _check_output_dir(recipe)
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
    if training.evaluates and not (data.dataset_test_split or data.test_size):
        where = recipe.sources.get("eval_strategy") or recipe.sources.get("eval_on_start") or str(recipe.path)
        raise RecipeError(f"{where}: evaluation needs held-out prompts; set dataset_test_split or test_size")


def _check_output_dir(recipe: Recipe) -> None:
    """A run does not write where it reads; a Hub id of that name would be the folder from the second start on."""
    read = [("model_name_or_path", recipe.model.model_name_or_path)]
    for name, one in recipe.by_teacher().items():
        whose = "" if name is None else f"teachers: {name}: "
        read.append((f"{whose}teacher_model_name_or_path", one.model.teacher_model_name_or_path))
    read += [("dataset_name", source["dataset_name"]) for source in recipe.data.sources()]
    output_dir = Path(str(recipe.training.output_dir))
    for field, named in read:
        if named and Path(named).resolve() == output_dir.resolve():
            where = recipe.sources.get("output_dir") or str(recipe.path)
            raise RecipeError(
                f"{where}: output_dir: {output_dir} is the folder of {field}, and the run would overwrite what it "
                "reads; name another"
            )


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
