"""Held-out prompts during training: one sample each, graded and scored.

Samples are drawn with the same seeds at every evaluation, so that two of them differ by the student alone. The reverse
KL is the exact one of every sampled token, over all processes. It goes the way of training, wrapped forward and all,
because a sharded student has no other; so every process runs as many micro-batches as the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vopd_recipes.grading import MathGrader, grade_choice
from vopd_recipes.loss import TokenStats
from vopd_recipes.models import evaluating
from vopd_recipes.packing import MicroBatch, Sample, pack
from vopd_recipes.recipe import VOPDConfig
from vopd_recipes.teacher import TeacherView
from vopd_recipes.training.metrics import StepMetrics


class Distillation(Protocol):
    """What of a training run is evaluated: `trainer.VOPDTrainer` is one."""

    args: VOPDConfig
    accelerator: Accelerator
    metrics: StepMetrics
    tokenizer: PreTrainedTokenizerBase
    answer_format: str
    model_wrapped: nn.Module
    teacher_names: list[str]  # of several

    def sample(self, prompts: list[dict[str, Any]], step: int, generations: int) -> list[Sample]:
        """The student's completions."""

    def teacher_views(self, batches: list[MicroBatch]) -> list[Callable[[], TeacherView]]:
        """What the teacher says about each micro-batch."""

    def student_loss(
        self, model: nn.Module, batch: MicroBatch, view: TeacherView, weights: Tensor, gradient_variance: bool
    ) -> tuple[Tensor, TokenStats]:
        """One forward of the wrapped student, with the loss in place of its head."""


@torch.no_grad()
def held_out_values(run: Distillation, rows: list[dict[str, Any]]) -> dict[str, float]:
    """`reverse_kl` (nats per token), `completion_length`, `truncated`, `runtime` (seconds), and `accuracy` where
    prompts have answers; of several teachers also `reverse_kl/<name>` and `accuracy/<name>`. Collective.

    Args:
        run: whose student samples and whose teacher scores.
        rows: the prompts, as `prompts.build_prompts` makes them; all of them on every process.
    """
    start = time.perf_counter()
    accelerator = run.accelerator
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    with run.metrics.set_aside():
        samples = run.sample(mine, step=-1, generations=1)
    sums = {"completions": float(len(samples)), "truncated": float(sum(not sample.finished for sample in samples))}
    sums |= _right(run, samples, mine)
    sums |= _reverse_kl(run, samples, largest_share=-(-len(rows) // accelerator.num_processes))
    local = torch.tensor(list(sums.values()), dtype=torch.float64)
    total = dict(zip(sums, accelerator.reduce(local.to(accelerator.device), "sum").tolist()))
    values = {
        "reverse_kl": total["kl"] / max(total["tokens"], 1),
        "completion_length": total["tokens"] / total["completions"],
        "truncated": total["truncated"] / total["completions"],
        "runtime": time.perf_counter() - start,
    }
    for of in _of_each(run):
        if of and total[f"tokens{of}"]:
            values[f"reverse_kl{of}"] = total[f"kl{of}"] / total[f"tokens{of}"]
        if total[f"graded{of}"]:
            values[f"accuracy{of}"] = total[f"right{of}"] / total[f"graded{of}"]
    return values


def _of_each(run: Distillation) -> list[str]:
    """What follows a sum's name: nothing for all prompts, and each teacher's name for its own."""
    return ["", *(f"/{name}" for name in run.teacher_names)]


def _reverse_kl(run: Distillation, samples: list[Sample], largest_share: int) -> dict[str, float]:
    """`kl` summed over this process's `tokens`, in as many micro-batches as on every other process."""
    sums = {f"{name}{of}": 0.0 for of in _of_each(run) for name in ("kl", "tokens")}
    with evaluating(run.model_wrapped):
        rows = pack(samples, -(-largest_share // run.args.per_device_eval_batch_size))
        batches = [batch.to(run.accelerator.device) for batch in rows]
        for batch, view in zip(batches, run.teacher_views(batches)):
            weights = torch.zeros_like(batch.rollout_logprobs)
            _, stats = run.student_loss(run.model_wrapped, batch, view(), weights, gradient_variance=False)
            for of in _of_each(run):
                kl = stats.reverse_kl[batch.tokens_of(of[1:])] if of else stats.reverse_kl
                sums[f"kl{of}"] += kl.double().sum().item()
                sums[f"tokens{of}"] += len(kl)
    return sums


def _right(run: Distillation, samples: list[Sample], rows: list[dict[str, Any]]) -> dict[str, float]:
    """How many completions of prompts with a gold answer are `right`, of how many that were `graded`."""
    asked = [(sample, row) for sample, row in zip(samples, rows) if row["answer"] is not None]
    correct = _grade(run, asked)
    sums: dict[str, float] = {}
    for of in _of_each(run):
        own = [right for right, (sample, _) in zip(correct, asked) if not of or sample.teacher == of[1:]]
        sums |= {f"right{of}": float(sum(own)), f"graded{of}": float(len(own))}
    return sums


def _grade(run: Distillation, asked: list[tuple[Sample, dict[str, Any]]]) -> list[bool]:
    """Whether each completion is right."""
    texts = [str(run.tokenizer.decode(sample.completion_ids, skip_special_tokens=True)) for sample, _ in asked]
    golds, questions = [row["answer"] for _, row in asked], [row["prompt"] for _, row in asked]
    if run.answer_format == "choice":
        return [grade_choice(text, gold).correct for text, gold in zip(texts, golds)]
    with MathGrader() as grader:
        return [grade.correct for grade in grader.grade(texts, golds, questions)]
