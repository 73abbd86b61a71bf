r"""The sampled estimators when the teacher is a server that scores: a few of its log-probabilities, no hidden states.

What is known of q at each position is log q(y) of the sampled token and log q(v) on a support of k tokens that was
chosen without looking at y. That is enough for

    none        b = 0
    constant    b = c
    value_topk  b = -KL(p̄‖q̄) on the support, both renormalised there (Eq. 15)

with the gradient of `fused.py`, A (p - 1[y]) ρ, swept the same way with one projection instead of two. The exact
KL(p‖q) is not: `TokenStats.reverse_kl` is -r(y) here, its unbiased estimate from one sample.

p is the student's distribution over the tokens that both models name, for that is what y was drawn from: normalised
over a longer head, E[∇log p] would not be zero and every baseline would move the mean gradient. log q is the server's,
over its own whole vocabulary; what it gives to tokens beyond shifts r by a constant, which moves no mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vopd_recipes.loss.definition import Estimator, TokenStats, importance_weight
from vopd_recipes.loss.fused import BUFFER_BYTES, Gradients, Head, product_operand, project, row_dot


@dataclass(frozen=True)
class Scores:
    """What the server says of N completion tokens, in nats."""

    logprobs: Tensor  # [N] log q(y)
    support_ids: Tensor  # [N, k]; -1 where a row has fewer
    support_logprobs: Tensor  # [N, k]

    def to(self, device: torch.device) -> Scores:
        """The same on a device."""
        return Scores(*(getattr(self, name).to(device) for name in ("logprobs", "support_ids", "support_logprobs")))


def baseline_from_support(student: Tensor, scores: Scores, estimator: Estimator) -> Tensor:
    """b of each position, [N], from the student's logits or log-probabilities on the support [N, k]."""
    if estimator.baseline == "none":
        return torch.zeros_like(scores.logprobs)
    if estimator.baseline == "constant":
        return torch.full_like(scores.logprobs, estimator.baseline_constant)
    absent = scores.support_ids < 0
    logp = student.masked_fill(absent, -torch.inf).log_softmax(-1)
    teacher_logp = scores.support_logprobs.to(logp.dtype).masked_fill(absent, -torch.inf).log_softmax(-1)
    rewards = (teacher_logp - logp).masked_fill(absent, 0)  # -∞ less -∞
    if estimator.reward_floor is not None:
        rewards = rewards.clamp_min(estimator.reward_floor)
    return (logp.exp() * rewards).sum(-1)


def reference_scored_loss(
    student_logits: Tensor,
    targets: Tensor,
    scores: Scores,
    estimator: Estimator,
    *,
    token_weights: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
) -> tuple[Tensor, TokenStats]:
    """`scored_loss` as its definition, from logits [N, V] and with autograd: the oracle of its tests."""
    logp = student_logits.log_softmax(-1)
    target_logp = logp.gather(1, targets[:, None])[:, 0]
    if token_weights is None:
        token_weights = logp.new_full(targets.shape, 1 / max(len(targets), 1))
    support = logp.detach().gather(1, scores.support_ids.clamp_min(0))
    reward = scores.logprobs.to(logp.dtype) - target_logp.detach()
    clipped = reward if estimator.reward_floor is None else reward.clamp_min(estimator.reward_floor)
    baseline = baseline_from_support(support, scores, estimator).to(logp.dtype)
    weight = importance_weight(target_logp.detach(), rollout_logprobs, estimator.importance_sampling_cap)
    loss = (token_weights * -weight * (clipped - baseline) * target_logp).sum()
    p = logp.detach().exp()
    return loss, TokenStats(
        student_logprob=target_logp.detach().float(),
        teacher_logprob=scores.logprobs.float(),
        reward=clipped.float(),
        baseline=baseline.float(),
        advantage=(clipped - baseline).float(),
        reverse_kl=-reward.float(),
        entropy=-(p * logp.detach()).sum(-1).float(),
    )


def scored_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    scores: Scores,
    estimator: Estimator,
    *,
    vocabulary: int | None = None,
    token_weights: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, TokenStats]:
    """The loss Σ_t w_t ℓ_t of a sampled estimator from hidden states, with its gradients formed in one sweep.

    Args:
        hidden: [N, H], with gradient.
        head: the student's; gradients of its weight and bias are formed only where they are required.
        targets: [N] int64 sampled tokens.
        scores: of the same tokens; only `value_topk` reads its support.
        estimator: `divergence: sampled` with one of the three baselines above.
        vocabulary: tokens from this id on are never sampled; p is renormalised below it, and the head's rows beyond
            get no gradient. Default: all of the head's.
        token_weights: [N] weights w; default 1/N.
        rollout_logprobs: [N] log-probabilities under the sampler, for the importance weight.
        chunk_size: tokens per chunk; the default fills `fused.BUFFER_BYTES`.

    Returns:
        The scalar loss, in float32 (float64 for float64 inputs), and the `TokenStats`, without gradient variances.
    """
    shared = head.shared(len(head.weight) if vocabulary is None else vocabulary)
    count, device = len(targets), hidden.device
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    if token_weights is None:
        token_weights = torch.full((count,), 1 / max(count, 1), dtype=dtype, device=device)
    if chunk_size is None:
        budget = BUFFER_BYTES["cpu" if device.type == "cpu" else "cuda"]
        chunk_size = max(1, budget // (len(shared.weight) * dtype.itemsize))
    sweep = _Sweep(
        shared, targets, scores, estimator, token_weights.detach().to(dtype), rollout_logprobs, chunk_size, dtype
    )
    with torch.autocast(device.type, enabled=False):
        loss = _ScoredLoss.apply(hidden, head.weight, head.bias, sweep)
    return loss, sweep.stats[0]


def student_support(hidden: Tensor, head: Head, k: int, vocabulary: int, chunk_size: int = 256) -> Tensor:
    """The student's k most likely tokens below `vocabulary` at each position, [N, k] int64, a chunk at a time."""
    chosen = []
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for rows in hidden.detach().split(chunk_size):
            dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
            chosen.append(_logits(head.shared(vocabulary), rows, dtype).topk(min(k, vocabulary), dim=-1).indices)
    return torch.cat(chosen) if chosen else torch.empty(0, k, dtype=torch.long, device=hidden.device)


def _logits(head: Head, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    out = hidden.new_empty((len(hidden), len(head.weight)), dtype=dtype)
    detached = Head(
        product_operand(head.weight.detach()), None if head.bias is None else head.bias.detach(), head.logit_scale,
        head.softcap,
    )  # fmt: skip
    project(detached, product_operand(hidden), out)
    return out


class _Sweep:
    """What the sweep reads besides the hidden states, and the statistics it leaves."""

    def __init__(
        self,
        head: Head,  # of the shared vocabulary
        targets: Tensor,
        scores: Scores,
        estimator: Estimator,
        token_weights: Tensor,
        rollout_logprobs: Tensor | None,
        chunk_size: int,
        dtype: torch.dtype,
    ) -> None:
        self.head, self.targets, self.scores, self.estimator = head, targets, scores, estimator
        self.token_weights, self.rollout_logprobs = token_weights, rollout_logprobs
        self.chunk_size, self.dtype = chunk_size, dtype
        self.stats: list[TokenStats] = []


class _ScoredLoss(torch.autograd.Function):
    """The loss, with its gradients already formed in the forward pass, as in `fused.py`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, sweep: _Sweep) -> Tensor:
        gradients = Gradients.allocate(ctx.needs_input_grad, hidden, weight, bias, sweep.dtype)
        loss = _run(hidden, sweep, gradients)
        ctx.gradients = gradients.cast(hidden, weight, bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("scored_loss: gradients already used; compute the loss again instead of retain_graph")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients]
        return *scaled, None


@torch.no_grad()
def _run(hidden: Tensor, sweep: _Sweep, gradients: Gradients) -> Tensor:
    count = len(sweep.targets)
    loss = hidden.new_zeros((), dtype=sweep.dtype)
    parts = []
    for start in range(0, count, sweep.chunk_size):
        rows = slice(start, min(start + sweep.chunk_size, count))
        logits = _logits(sweep.head, hidden[rows], sweep.dtype)
        slope = None if sweep.head.softcap is None else 1 - (logits / sweep.head.softcap).square()
        logp = logits.log_softmax(-1)
        stats, coefficient = _read(logp, rows, sweep)
        parts.append(stats)
        loss -= torch.dot(coefficient, stats["student_logprob"])
        if gradients.any:
            gradient = torch.exp(logp, out=logits).mul_(coefficient[:, None])
            gradient.scatter_add_(1, sweep.targets[rows, None], -coefficient[:, None])
            if slope is not None:
                gradient.mul_(slope)
            gradient.mul_(sweep.head.logit_scale)
            gradients.add(rows, gradient, product_operand(hidden[rows]), product_operand(sweep.head.weight.detach()))
    names = parts[0] if parts else _STATISTICS
    columns = {name: torch.cat([part[name] for part in parts]) if parts else hidden.new_empty(0) for name in names}
    floats = {name: column.float() for name, column in columns.items()}
    sweep.stats.append(TokenStats(**floats))  # type: ignore[arg-type]
    return loss


_STATISTICS = ("student_logprob", "teacher_logprob", "reward", "baseline", "advantage", "reverse_kl", "entropy")


def _read(logp: Tensor, rows: slice, sweep: _Sweep) -> tuple[dict[str, Tensor], Tensor]:
    """The statistics of a chunk from the student's log-probabilities [c, V], and w ρ A: [c]."""
    scores = Scores(
        sweep.scores.logprobs[rows].to(logp.dtype), sweep.scores.support_ids[rows], sweep.scores.support_logprobs[rows]
    )
    student_logprob = logp.gather(1, sweep.targets[rows, None])[:, 0]
    support = logp.gather(1, scores.support_ids.clamp_min(0))
    baseline = baseline_from_support(support, scores, sweep.estimator)
    reward = scores.logprobs - student_logprob
    floor = sweep.estimator.reward_floor
    clipped = reward if floor is None else reward.clamp_min(floor)
    rollout = None if sweep.rollout_logprobs is None else sweep.rollout_logprobs[rows].to(logp.dtype)
    importance = importance_weight(student_logprob, rollout, sweep.estimator.importance_sampling_cap)
    advantage = clipped - baseline
    statistics = {
        "student_logprob": student_logprob,
        "teacher_logprob": scores.logprobs,
        "reward": clipped,
        "baseline": baseline,
        "advantage": advantage,
        "reverse_kl": -reward,
        "entropy": -row_dot(logp.exp(), logp),
    }
    return statistics, sweep.token_weights[rows] * importance * advantage
