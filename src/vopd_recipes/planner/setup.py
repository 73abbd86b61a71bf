"""A recipe for GPUs, read on a machine that has none, becomes what its memory depends on.

`transformers.TrainingArguments` refuses what this machine cannot run (bfloat16 without a GPU) and starts what the
recipe names (DeepSpeed). So the few fields that speak of the machine are taken from the recipe's text, and the rest is
checked by `load_recipe` as for a run on a CPU.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from vopd_recipes.planner.architectures import Architecture, Lora
from vopd_recipes.planner.states import Setup, Sharding, TeacherSetup
from vopd_recipes.recipe import Recipe, RecipeError, find_shipped, load_recipe, read_flags, read_yaml

# What a machine without the recipe's GPUs and packages would refuse, and what is checked in its place.
OF_THE_MACHINE = {
    "use_cpu": "true", "deepspeed": "null", "tf32": "null", "report_to": "none", "ddp_backend": "null",
    "torch_compile": "false", "loss_compile": "false",
}  # fmt: skip


def read_setup(path: Path, overrides: list[str], gpus: int, gpu_bytes: int, sharding: Sharding | None = None) -> Setup:
    """What the recipe's memory depends on.

    Args:
        path: the recipe.
        overrides: command-line words, `--field value …`.
        gpus: processes, one per GPU, over all nodes.
        gpu_bytes: memory of each.
        sharding: how the launcher lays models out; default: as the recipe's `deepspeed` says, else a copy each.

    Raises:
        RecipeError: anything wrong with the recipe, in one line.
    """
    recipe, texts = read_anywhere(path, overrides)
    deepspeed = _read_deepspeed(*texts.get("deepspeed", (None, "")))
    zero = deepspeed.get("zero_optimization", {})
    stage = f"zero{zero.get('stage', 0)}" if deepspeed else None
    if stage and stage not in get_args(Sharding):
        raise RecipeError(f"{texts['deepspeed'][1]}: deepspeed: no ZeRO stage {zero['stage']}")
    accumulation = deepspeed.get("data_types", {}).get("grad_accum_dtype")
    in_float32 = not deepspeed or accumulation == "fp32"  # a launcher's configuration is one of ours
    setup = _setup(recipe, gpus, gpu_bytes, sharding or stage or "none", zero)
    compiled = str(texts.get("loss_compile", (False, ""))[0]).lower() == "true"
    return replace(setup, accumulates_float32=in_float32, loss_compile=compiled)


def read_anywhere(path: Path, overrides: list[str]) -> tuple[Recipe, dict[str, tuple[Any, str]]]:
    """The recipe, checked as for a run on a CPU, and the text of the fields that speak of the machine.

    Args:
        path: the recipe.
        overrides: command-line words, `--field value …`.

    Raises:
        RecipeError: anything wrong with the recipe, in one line.
    """
    texts = {**read_yaml(path, ()), **read_flags(overrides, {})}
    neutral = [word for name, value in OF_THE_MACHINE.items() for word in (f"--{name}", value)]
    recipe = load_recipe(path, [*without_flags(overrides, OF_THE_MACHINE), *neutral])
    return recipe, {name: text for name, text in texts.items() if name in OF_THE_MACHINE}


def _setup(recipe: Recipe, gpus: int, gpu_bytes: int, sharding: Any, zero: dict[str, Any]) -> Setup:
    model, data, training = recipe.model, recipe.data, recipe.training
    half = "bfloat16" if training.bf16 else None
    targets = model.lora_target_modules
    lora = Lora(model.lora_r, model.lora_alpha, targets if isinstance(targets, str) else tuple(targets))
    student = Architecture(
        str(model.model_name_or_path), model.model_revision, model.dtype, lora if model.use_peft else None
    )
    first, *others = [_teacher(name or "", one) for name, one in recipe.by_teacher().items()]
    longest = data.max_prompt_length + training.max_completion_length
    vllm_dtype = training.vllm_dtype or half or model.dtype
    return Setup(
        gpus=gpus,
        gpu_bytes=gpu_bytes,
        sharding=sharding,
        student=student,
        **vars(first),
        other_teachers=tuple(others),
        teacher_prompt_tokens=(data.teacher_max_prompt_length if data.privileged else None) or data.max_prompt_length,
        half=half,
        optim=getattr(training.optim, "value", training.optim),
        checkpointing=training.gradient_checkpointing,
        prompts=training.per_device_train_batch_size,
        generations=training.num_generations,
        accumulation=int(training.gradient_accumulation_steps),
        prompt_tokens=data.max_prompt_length,
        completion_tokens=training.max_completion_length,
        sampler=training.rollout_backend,
        sampler_rows=training.rollout_batch_size,
        held_out_rows=_held_out_rows(recipe, gpus),
        vllm_share=training.vllm_gpu_memory_utilization,
        vllm_parallel=training.vllm_tensor_parallel_size,
        vllm_itemsize=4 if vllm_dtype == "float32" else 2,
        vllm_length=training.vllm_max_model_len or longest,
        server_suffices=training.estimator.method.needs != "distribution" and not training.log_gradient_variance,
        optimizer_offload="offload_optimizer" in zero,
        parameter_offload="offload_param" in zero,
        reduce_bucket=_number(zero, "reduce_bucket_size"),
        overlap_comm=bool(zero.get("overlap_comm", True)),
        persistence=_number(zero, "stage3_param_persistence_threshold"),
        max_live=_number(zero, "stage3_max_live_parameters") or 10**9,
    )


def _held_out_rows(recipe: Recipe, gpus: int) -> int:
    """Completions that an evaluation samples on a device; of a test split, whose size is not known, a batch."""
    data, training = recipe.data, recipe.training
    if not training.evaluates:
        return 0
    there = training.rollout_batch_size * gpus if data.dataset_test_split else data.test_size
    return -(-min(there, data.max_test_prompts or there) // gpus) * training.num_generations_eval


def _teacher(name: str, recipe: Recipe) -> TeacherSetup:
    """Of a recipe of one teacher."""
    model, training = recipe.model, recipe.training
    local = training.teacher_backend == "local"
    head_only = not local and training.teacher_server_scores == "hidden_states"
    teacher = Architecture(
        str(model.teacher_model_name_or_path), model.teacher_model_revision, model.teacher_dtype or model.dtype
    )
    return TeacherSetup(
        teacher_name=name,
        teacher=teacher if local or head_only else None,
        teacher_offload=training.teacher_offload,
        teacher_head_only=head_only,
        own_base=local and model.teacher_is_base,
    )


def _read_deepspeed(value: Any, where: str) -> dict[str, Any]:
    """The DeepSpeed configuration that a recipe holds or names."""
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        return dict(json.loads(find_shipped(Path(str(value))).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"{where}: deepspeed: cannot read {value}: {error}") from None


def _number(zero: dict[str, Any], name: str) -> int | None:
    """A number of elements; `auto` is the Trainer's choice."""
    value = zero.get(name)
    return None if value in (None, "auto") else int(value)


def without_flags(words: list[str], names: Any) -> list[str]:
    """Flags of these names left out, with their values."""
    kept, skipping = [], False
    for word in words:
        if word.startswith("--"):
            skipping = word[2:].partition("=")[0].replace("-", "_") in names
        if not skipping:
            kept.append(word)
    return kept
