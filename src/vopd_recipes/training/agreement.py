"""Before the first step, and after each: is what samples the completions the student?

The engine's log-probabilities of its first completions against the trainer's own, mean |log p_train − log p_rollout|
over their first tokens. In float32 two right implementations differ by rounding, 1e-6 or so; in bfloat16 a token moves
by some 0.01 nats. A gap of 0.03 in float32 is another model, and training goes on without an error from its samples.
The trainer's side goes the way of training, wrapped forward, packed row, head and all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vopd_recipes.loss import Estimator, Head, TokenStats, fused_loss
from vopd_recipes.models import causal_lm_of, evaluating, noise_of
from vopd_recipes.packing import MicroBatch, Sample, pack

_LARGEST_LATER = 0.5  # of a later window, after which training stops
_SAMPLES, _TOKENS = 4, 16
_LARGEST_EXACT, _LARGEST_ROUNDED = 1e-3, 0.05  # nats per token, on average


class _Itself:
    """A `TeacherView` of the student by the student, over the tokens that can be drawn."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def student_loss(
        self, hidden: Tensor, head: Head, batch: MicroBatch, estimator: Estimator, weights: Tensor, variance: bool
    ) -> tuple[Tensor, TokenStats]:
        bias = None if head.bias is None else head.bias[: self._vocabulary]
        drawn = replace(head, weight=head.weight[: self._vocabulary], bias=bias)
        return fused_loss(hidden, head, hidden, drawn, batch.targets, Estimator(), token_weights=weights)


@torch.no_grad()
def first_gap(run: Any, samples: list[Sample]) -> float:
    """In nats per token, over all processes. Collective.

    Args:
        run: the trainer.
        samples: this process's first completions.
    """
    few = [
        replace(each, completion_ids=each.completion_ids[:_TOKENS], rollout_logprobs=each.rollout_logprobs[:_TOKENS])
        for each in samples[:_SAMPLES]
    ]
    batch = pack(few, 1)[0].to(run.accelerator.device)
    weights = torch.zeros_like(batch.rollout_logprobs)
    with evaluating(run.model_wrapped):
        _, stats = run.student_loss(run.model_wrapped, batch, _Itself(run.vocabulary), weights, False)
    gap = (stats.student_logprob - batch.rollout_logprobs).abs().sum()
    total, tokens = run.accelerator.reduce(torch.stack([gap, gap.new_tensor(len(batch.targets))]), "sum").tolist()
    return total / max(tokens, 1)


def largest_gap(run: Any, first: bool) -> float:
    """Above this the two are different models: everything in float32, or something rounded.

    Later windows tell what an engine has not taken over of a step. Where something is rounded the gap is a matter of
    the model and its length, and dropout moves it: there only what is evidently another model stops a run.

    Args:
        run: the trainer.
        first: of the first completions, before any step.
    """
    modules = run.student.modules()
    dropout = noise_of(causal_lm_of(run.student).config) or any(isinstance(m, nn.Dropout) and m.p for m in modules)
    rounded = bool(run.args.bf16 or run.args.tf32)
    rounded |= run.accelerator.mixed_precision != "no"  # the launcher's, if not the recipe's
    rounded |= causal_lm_of(run.student).dtype != torch.float32 or run.args.vllm_dtype not in (None, "float32")
    if first:
        return _LARGEST_ROUNDED if rounded else _LARGEST_EXACT
    return _LARGEST_LATER if rounded or dropout else _LARGEST_EXACT
