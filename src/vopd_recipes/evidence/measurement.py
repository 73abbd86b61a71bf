"""From a recipe to a measured variance: load, draw completions of the same prompts, take gradients, count."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from vopd_recipes.evidence.gradients import REDRAWS, GradientProbe
from vopd_recipes.evidence.variance import VarianceStudy, summarize
from vopd_recipes.loss import Estimator, Head, Support, TokenStats, fused_loss
from vopd_recipes.models import (
    check_models,
    check_tokenizers,
    end_of_sequence_ids,
    load_student,
    load_teacher,
    load_tokenizer,
    scale_logits,
    vocabulary_of,
)
from vopd_recipes.packing import MicroBatch, Sample, pack
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import ModelConfig, Recipe, RecipeError, one_line
from vopd_recipes.rollout import Sampling, TransformersRollout, rollout_seed

KS = (5, 20, 100)
SUPPORTS: tuple[Support, ...] = ("student", "teacher")


def supports_of(estimator: Estimator, ks: Sequence[int] = KS) -> list[Estimator]:
    """It, at every support and k."""
    return [replace(estimator, support=of, support_top_k=k) for of, k in product(SUPPORTS, ks)]


def logit_variances(
    heads: Sequence[Head], states: Sequence[Tensor], targets: Tensor, cases: Sequence[Estimator]
) -> Iterator[tuple[Estimator, TokenStats]]:
    """Each case with its statistics: every method's exact variance with respect to the logits, both supports' masses.

    Args:
        heads: of student and teacher.
        states: of both at N tokens, [N, H] and [N, H'].
        targets: [N].
        cases: give support and k.
    """
    (ours, theirs), (hidden, teacher_hidden) = heads, (of.to(head.weight.dtype) for of, head in zip(states, heads))
    for case in cases:
        estimator = replace(case, divergence="rao_blackwell", baseline="none")
        yield case, fused_loss(hidden, ours, teacher_hidden, theirs, targets, estimator, gradient_variance=True)[1]


def check_measurable(recipe: Recipe, checkpoint: Path | None, draws: int, prompts: int, redraws: int = 1) -> None:
    """Everything that can be wrong before a data set or a model is read.

    Raises:
        RecipeError: too few draws, redraws or prompts, no such checkpoint, or a recipe whose estimators have another
            mean.
    """
    if draws < 4 or draws % 2:
        raise RecipeError(
            f"--draws: {draws}: a variance is measured on pairs of draws; give an even number, 4 or more"
        )
    for name, value in (("prompts", prompts), ("redraws", redraws)):
        if value < 1:
            raise RecipeError(f"--{name} must be at least 1, got {value}")
    if checkpoint and not any((checkpoint / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise RecipeError(f"--checkpoint: {checkpoint} holds no model (no config.json or adapter_config.json)")
    if recipe.training.teachers or recipe.data.privileged:
        raise RecipeError(
            "teachers, teacher_prompt_template: variance is measured for one teacher of the same prompts"
        )
    if recipe.training.teacher_backend != "local":
        raise RecipeError(
            "teacher_backend: server does not know the whole distribution that a reference needs; use local"
        )
    for name, neutral in (("reward_clip_lambda", None), ("allow_biased_sampling", False)):
        if (value := getattr(recipe.training, name)) != neutral:
            where = recipe.sources.get(name, str(recipe.path))
            raise RecipeError(f"{where}: {name}: {value} changes the mean of the sampled gradients; leave it out")


@dataclass(frozen=True)
class Frozen:
    """A student that stands still, its teacher, and the prompts it completes again and again.

    Args:
        recipe: gives seed, lengths and sizes.
        student: in evaluation mode.
        teacher: in evaluation mode.
        rows: of the prompts.
        rollout: samples from the student.
    """

    recipe: Recipe
    student: Any
    teacher: Any
    rows: list[dict[str, Any]]
    rollout: TransformersRollout

    def micro_batches(self, draw: int) -> list[MicroBatch]:
        """Completions of all prompts, others at every draw, packed."""
        training = self.recipe.training
        seeds = [rollout_seed(training.seed, draw, row["prompt_id"], 0) for row in self.rows]
        prompts = [row["input_ids"] for row in self.rows]
        completions = self.rollout.generate(prompts, seeds, training.max_completion_length)
        samples = [
            Sample(row["prompt_id"], row["input_ids"], completion.token_ids, completion.logprobs, completion.finished)
            for row, completion in zip(self.rows, completions)
        ]
        rows = pack(samples, math.ceil(len(samples) / training.per_device_train_batch_size))
        return [row.to(training.device) for row in rows]


def logits_of(head: Head, hidden: Tensor) -> Tensor:
    """[N, V] float64, of states [N, H]."""
    products = nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias)
    return scale_logits(products.double(), head)


def freeze(recipe: Recipe, checkpoint: Path | None, prompts: int) -> Frozen:
    """Load student, teacher and the recipe's first prompts.

    Raises:
        RecipeError: what cannot be loaded or is not understood, and a teacher that is the student.
    """
    training = recipe.training
    data = read_rows(recipe.data, training.seed)
    tokenizer = load_tokenizer(recipe.model)
    check_tokenizers(tokenizer, load_tokenizer(recipe.model, teacher=True))
    rows = build_prompts(data, recipe.data, tokenizer).train
    kept = [rows[index] for index in range(min(prompts, len(rows)))]
    torch.manual_seed(training.seed)  # LoRA's initial weights
    student: Any = load_checkpoint(recipe.model, checkpoint).eval()
    teacher: Any = load_teacher(recipe.model)
    for model in (student, teacher):
        model.to(training.device)
    check_models(student, teacher, kept[0]["input_ids"])
    _check_disagreement(student, teacher, kept[0]["input_ids"])
    rollout = TransformersRollout(
        lambda: student,
        end_of_sequence_ids(student, tokenizer),
        min(vocabulary_of(student), vocabulary_of(teacher)),
        Sampling(),
        training.rollout_batch_size,
    )
    return Frozen(recipe, student, teacher, kept, rollout)


def _check_disagreement(student: Any, teacher: Any, prompt: Sequence[int]) -> None:
    tokens = torch.tensor([prompt], device=student.device)
    with torch.no_grad():
        ours, theirs = (model(input_ids=tokens, use_cache=False).logits for model in (student, teacher))
    if torch.equal(ours, theirs):
        raise RecipeError("teacher_model_name_or_path: it agrees with the student everywhere: no gradient to measure")


def measure_variance(
    recipe: Recipe, checkpoint: Path | None, draws: int, prompts: int, redraws: int = REDRAWS
) -> dict[str, Any]:
    """Complete the recipe's first prompts again and again, and compare all estimators' gradients.

    Args:
        recipe: names student, teacher, prompts, k, and how many completions a micro-batch and a rollout batch hold.
        checkpoint: folder of the student, of its weights or its adapters; default: where the recipe starts.
        draws: an even number.
        prompts: the same at every draw.
        redraws: how often tokens are drawn anew at the contexts of a draw.

    Returns:
        `variance.summarize`, and what was measured.

    Raises:
        RecipeError: see `check_measurable`, and what cannot be loaded or is not understood.
    """
    check_measurable(recipe, checkpoint, draws, prompts, redraws)
    training = recipe.training
    frozen = freeze(recipe, checkpoint, prompts)
    probe = GradientProbe(frozen.student, frozen.teacher, training.estimator, training.seed, redraws=redraws)
    study = VarianceStudy(probe.projection)
    generator = torch.Generator().manual_seed(training.seed)
    for draw in tqdm(range(draws), desc="Drawing", disable=training.disable_tqdm):
        study.add(probe.measure(frozen.micro_batches(draw), generator))
    return {
        "recipe": str(recipe.path),
        "student": str(checkpoint or recipe.model.model_name_or_path),
        "teacher": recipe.model.teacher_model_name_or_path,
        "prompts": len(frozen.rows),
        "redraws": redraws,
        "support_top_k": training.support_top_k,
        "support": training.support,
        "baseline_constant": training.baseline_constant,
        "seed": training.seed,
        **summarize(study, probe.head_is_exact),
    }


def load_checkpoint(config: ModelConfig, checkpoint: Path | None) -> PreTrainedModel | PeftModel:
    """The student of a recipe, or one that a run has saved.

    Raises:
        RecipeError: it cannot be loaded, or is an adapter of another model.
    """
    if checkpoint is None:
        return load_student(config)
    if not (checkpoint / "adapter_config.json").is_file():
        return load_student(replace(config, model_name_or_path=str(checkpoint), model_revision=None, use_peft=False))
    student = load_student(replace(config, use_peft=False))
    try:
        return PeftModel.from_pretrained(student, checkpoint, is_trainable=True)
    except Exception as error:  # PEFT raises many kinds
        raise RecipeError(
            f"--checkpoint: the adapter of {checkpoint} cannot be put on {config.model_name_or_path}: "
            f"{one_line(error, 300)}"
        ) from error
