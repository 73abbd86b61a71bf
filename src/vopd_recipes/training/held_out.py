r"""Held-out prompts during training: one sample each, or several, graded and scored.

Samples are drawn with the same seeds at every evaluation, so that two of them differ by the student alone. The reverse
KL is the exact one of every sampled token (estimated over a server's log-probabilities), over all processes. It goes
the way of training, wrapped forward and all, because a sharded student has no other; so every process runs as many
micro-batches as the others.

A figure is a ratio of sums over prompts, R = Σ a_i / Σ b_i (KL over tokens, right answers over graded ones), and its
standard error is the ratio estimator's over P prompts, √(P/(P-1) Σ (a_i - R b_i)²) / Σ b_i: the samples of a prompt
are alike, so that prompts are what is independent. It says how far another choice of prompts and samples would move
the figure.
"""

from __future__ import annotations

import math
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


# What is summed over the samples of each prompt.
_SUMS = ("completions", "truncated", "tokens", "kl", "graded", "right")


@torch.no_grad()
def held_out_values(run: Distillation, rows: list[dict[str, Any]]) -> dict[str, float]:
    """`reverse_kl` (nats per token), `completion_length`, `truncated`, `runtime` (seconds), and `accuracy` where
    prompts have answers; both also as `…_stderr`, and of several teachers as `…/<name>`. Collective.

    Args:
        run: whose student samples and whose teacher scores.
        rows: the prompts, as `prompts.build_prompts` makes them; all of them on every process.
    """
    start = time.perf_counter()
    accelerator, generations = run.accelerator, run.args.num_generations_eval
    places = range(accelerator.process_index, len(rows), accelerator.num_processes)
    mine = [rows[place] for place in places]
    with run.metrics.set_aside():
        samples = run.sample(mine, step=-1, generations=generations)
    largest_share = -(-len(rows) // accelerator.num_processes) * generations
    _record_reverse_kl(run, samples, -(-largest_share // run.args.per_device_eval_batch_size))
    correct = _graded(run, samples, [row for row in mine for _ in range(generations)])
    local = torch.zeros(len(rows), len(_SUMS), dtype=torch.float64)
    for place, sample, right in zip((p for p in places for _ in range(generations)), samples, correct):
        kl = sum(sample.statistics.get("reverse_kl", ()))
        sums = (1, not sample.finished, len(sample.completion_ids), kl, right is not None, bool(right))
        local[place] += torch.tensor(sums, dtype=torch.float64)
    table = accelerator.reduce(local.to(accelerator.device), "sum").cpu()
    of_prompt = dict(zip(_SUMS, table.T))
    values = {
        "completion_length": _ratio(of_prompt["tokens"], of_prompt["completions"])[0],
        "truncated": _ratio(of_prompt["truncated"], of_prompt["completions"])[0],
    }
    values |= _figures(of_prompt, "")
    for name in run.teacher_names:
        own = torch.tensor([row.get("teacher") == name for row in rows])
        values |= _figures({key: column[own] for key, column in of_prompt.items()}, f"/{name}")
    return {**values, "runtime": time.perf_counter() - start}


def _figures(of_prompt: dict[str, Tensor], of: str) -> dict[str, float]:
    """What can be said of some prompts, each sum [prompts]; `of` follows the names."""
    found: dict[str, float] = {}
    for name, above, below in (("reverse_kl", "kl", "tokens"), ("accuracy", "right", "graded")):
        if not of_prompt[below].any():
            continue
        found[f"{name}{of}"], error = _ratio(of_prompt[above], of_prompt[below])
        if not math.isnan(error):
            found[f"{name}_stderr{of}"] = error
    return found


def _ratio(above: Tensor, below: Tensor) -> tuple[float, float]:
    """Σ a / Σ b with its standard error; nan of a single prompt."""
    ratio, prompts = above.sum() / below.sum(), len(above)
    if prompts < 2:
        return ratio.item(), math.nan
    squares = (above - ratio * below).square().sum() * prompts / (prompts - 1)
    return ratio.item(), (squares.sqrt() / below.sum()).item()


def _record_reverse_kl(run: Distillation, samples: list[Sample], count: int) -> None:
    """Hand every sample the reverse KL of its tokens, in as many micro-batches as on every other process."""
    with evaluating(run.model_wrapped):
        batches = [batch.to(run.accelerator.device) for batch in pack(samples, count)]
        for batch, view in zip(batches, run.teacher_views(batches)):
            weights = torch.zeros_like(batch.rollout_logprobs)
            _, stats = run.student_loss(run.model_wrapped, batch, view(), weights, gradient_variance=False)
            batch.record({"reverse_kl": stats.reverse_kl.double()})


def _graded(run: Distillation, samples: list[Sample], rows: list[dict[str, Any]]) -> list[bool | None]:
    """Whether each completion is right; `None` where its prompt, of the same place in `rows`, has no answer."""
    asked = [place for place, row in enumerate(rows) if row["answer"] is not None]
    correct = _grade(run, [(samples[place], rows[place]) for place in asked])
    found: list[bool | None] = [None] * len(samples)
    for place, right in zip(asked, correct):
        found[place] = right
    return found


def _grade(run: Distillation, asked: list[tuple[Sample, dict[str, Any]]]) -> list[bool]:
    """Whether each completion is right."""
    texts = [str(run.tokenizer.decode(sample.completion_ids, skip_special_tokens=True)) for sample, _ in asked]
    golds, questions = [row["answer"] for _, row in asked], [row["prompt"] for _, row in asked]
    if run.answer_format == "choice":
        return [grade_choice(text, gold).correct for text, gold in zip(texts, golds)]
    with MathGrader() as grader:
        return [grade.correct for grade in grader.grade(texts, golds, questions)]
