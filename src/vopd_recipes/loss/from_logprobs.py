r"""The sampled estimators when the teacher is a server that scores: a few of its log-probabilities, no hidden states.

What is known of q at each position is log q(y) of the sampled token and log q(v) on a support S of k tokens that was
chosen without looking at y. That is enough for

    none        b = 0
    constant    b = c
    value_topk  b = -KL(p̄‖q̄) on S, both renormalised there (Eq. 15)
    tail        b = log((1 - Q_S) / (1 - P_S)), the log ratio of the masses outside S; of `rao_blackwell` alone

under `sampled` and under `rao_blackwell`, whose exact part needs just those k numbers, with the gradients of
`fused.py` and one projection instead of two. The exact KL(p‖q) is not: `TokenStats.reverse_kl` is an unbiased estimate
of it, -r(y) for `sampled` and Σ_S p log(p/q) - 1[y∉S] r(y) for `rao_blackwell`, less noisy where S has most of the
mass.

p is the student's distribution over the tokens that both models name, for that is what y was drawn from: normalised
over a longer head, E[∇log p] would not be zero and every baseline would move the mean gradient. log q is the server's,
over its own whole vocabulary; what it gives to tokens beyond shifts r by a constant, which moves no mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vopd_recipes.loss.definition import STATISTICS, SUPPORT_MASSES, TokenStats, importance_weight, not_written
from vopd_recipes.loss.estimator import Estimator
from vopd_recipes.loss.head import Head
from vopd_recipes.loss.likeliest import likeliest
from vopd_recipes.loss.sweep import Sweep, product_operand, project, row_dot, scale_back, softcap_slope, swept_loss

_DIVERGENCES = ("sampled", "rao_blackwell")


@dataclass(frozen=True)
class Scores:
    """What the server says of N completion tokens, in nats."""

    logprobs: Tensor  # [N] log q(y)
    support_ids: Tensor  # [N, k]; -1 where a row has fewer
    support_logprobs: Tensor  # [N, k]

    def to(self, device: torch.device) -> Scores:
        """The same on a device."""
        return Scores(*(values.to(device) for values in vars(self).values()))

    def of(self, rows: slice, dtype: torch.dtype) -> Scores:
        """Those of some tokens, in a type."""
        return Scores(self.logprobs[rows].to(dtype), self.support_ids[rows], self.support_logprobs[rows].to(dtype))


def baseline_from_support(student: Tensor, scores: Scores, estimator: Estimator) -> Tensor:
    """b of each position, [N], from the student's log-probabilities on the support [N, k]."""
    match estimator.baseline:
        case "none":
            return torch.zeros_like(scores.logprobs)
        case "constant":
            return torch.full_like(scores.logprobs, estimator.baseline_constant)
        case "value_topk":
            absent = scores.support_ids < 0
            logp = student.masked_fill(absent, -torch.inf).log_softmax(-1)
            teacher_logp = scores.support_logprobs.to(logp.dtype).masked_fill(absent, -torch.inf).log_softmax(-1)
            rewards = (teacher_logp - logp).masked_fill(absent, 0)  # -∞ less -∞
            return (logp.exp() * _clipped(rewards, estimator)).masked_fill(absent, 0).sum(-1)  # nan where all are
        case "tail":
            smallest = torch.finfo(student.dtype).eps * 8  # below it a difference from 1 is rounding
            masses = (1 - _mass(of, scores).clamp_max(1 - smallest) for of in (scores.support_logprobs, student))
            teacher_tail, tail = (mass.to(student.dtype).log() for mass in masses)
            return _clipped(teacher_tail - tail, estimator)
    raise not_written(estimator.method, "logprobs_loss")


def _mass(logprobs: Tensor, scores: Scores) -> Tensor:
    """Of the support, [N], from log-probabilities [N, k] on it."""
    return logprobs.masked_fill(scores.support_ids < 0, -torch.inf).exp().sum(-1)


def exact_part(student: Tensor, scores: Scores, baseline: Tensor, estimator: Estimator) -> Tensor:
    """p(v) A(v) of the tokens of S, [N, k], zero where a row has fewer.

    Args:
        student: log p on the support, [N, k].
        scores: of the same tokens.
        baseline: b, [N].
        estimator: gives the reward's floor.
    """
    absent = scores.support_ids < 0
    rewards = (scores.support_logprobs.to(student.dtype) - student).masked_fill(absent, 0)
    advantages = _clipped(rewards, estimator) - baseline[:, None]
    return (student.exp() * advantages).masked_fill(absent, 0)


def estimated_kl(reward: Tensor, student: Tensor, scores: Scores, outside: Tensor, estimator: Estimator) -> Tensor:
    """An unbiased estimate of KL(p‖q), [N].

    Args:
        reward: log q(y) - log p(y), [N].
        student: log p on the support, [N, k].
        scores: of the same tokens.
        outside: whether y is none of S, [N].
        estimator: says whether S is averaged exactly.
    """
    if estimator.divergence != "rao_blackwell":
        return -reward
    log_ratio = (student - scores.support_logprobs.to(student.dtype)).masked_fill(scores.support_ids < 0, 0)
    return (student.exp() * log_ratio).sum(-1) - outside * reward


def _clipped(rewards: Tensor, estimator: Estimator) -> Tensor:
    return rewards if estimator.reward_floor is None else rewards.clamp_min(estimator.reward_floor)


def reference_logprobs_loss(
    student_logits: Tensor,
    targets: Tensor,
    scores: Scores,
    estimator: Estimator,
    *,
    token_weights: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
) -> tuple[Tensor, TokenStats]:
    """`logprobs_loss` as its definition, from logits [N, V] and with autograd: the oracle of its tests."""
    _check_written(estimator, "reference_logprobs_loss")
    logp = student_logits.log_softmax(-1)
    target_logp = logp.gather(1, targets[:, None])[:, 0]
    if token_weights is None:
        token_weights = logp.new_full(targets.shape, 1 / max(len(targets), 1))
    support_logp = logp.gather(1, scores.support_ids.clamp_min(0))
    support = support_logp.detach()
    reward = scores.logprobs.to(logp.dtype) - target_logp.detach()
    clipped = _clipped(reward, estimator)
    baseline = baseline_from_support(support, scores, estimator).to(logp.dtype)
    weight = importance_weight(target_logp.detach(), rollout_logprobs, estimator.importance_sampling_cap)
    outside = (scores.support_ids != targets[:, None]).all(-1)
    per_token = -weight * (clipped - baseline) * target_logp
    if estimator.divergence == "rao_blackwell":
        exact = exact_part(support, scores, baseline, estimator) * support_logp
        per_token = outside * per_token - exact.masked_fill(scores.support_ids < 0, 0).sum(-1)
    loss = (token_weights * per_token).sum()
    p = logp.detach().exp()
    return loss, TokenStats(
        student_logprob=target_logp.detach().float(),
        teacher_logprob=scores.logprobs.float(),
        reward=clipped.float(),
        baseline=baseline.float(),
        advantage=(clipped - baseline).float(),
        reverse_kl=estimated_kl(reward, support, scores, outside, estimator).float(),
        entropy=-(p * logp.detach()).sum(-1).float(),
        **_masses(support, scores, estimator),  # type: ignore[arg-type]
    )


def _masses(student: Tensor, scores: Scores, estimator: Estimator) -> dict[str, Tensor]:
    """p's and q's mass on the support, [N] float32 each; nothing for a method without one."""
    of_each = (_mass(of, scores).float() for of in (student, scores.support_logprobs))
    return dict(zip(SUPPORT_MASSES, of_each)) if estimator.has_support else {}


def logprobs_loss(
    student_hidden: Tensor,
    student_head: Head,
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
        student_hidden: [N, H], with gradient.
        student_head: [V, H]; gradients of its weight and bias are formed only where they are required.
        targets: [N] int64 sampled tokens.
        scores: of the same tokens; their support is read where the method has one.
        estimator: `sampled` or `rao_blackwell` with one of the baselines above.
        vocabulary: tokens from this id on are never sampled; p is renormalised below it, and the head's rows beyond
            get no gradient. Default: all of the head's.
        token_weights: [N] weights w; default 1/N.
        rollout_logprobs: [N] log-probabilities under the sampler, for the importance weight.
        chunk_size: tokens per chunk; the default fills `sweep.BUFFER_BYTES`.

    Returns:
        The scalar loss, in float32 (float64 for float64 inputs), and the `TokenStats`, without gradient variances.

    Raises:
        NotImplementedError: an estimator that needs more of the teacher than a server's log-probabilities.
        RuntimeError: at a second backward through the same loss.
    """
    _check_written(estimator, "logprobs_loss")
    shared = student_head.shared(len(student_head.weight) if vocabulary is None else vocabulary)
    masses = SUPPORT_MASSES if estimator.has_support else ()
    sweep = Sweep.over(student_hidden, shared, targets, token_weights, rollout_logprobs, chunk_size, masses)
    loss = swept_loss(student_hidden, student_head, sweep, _Reader(sweep, scores, estimator))
    return loss, TokenStats(**{name: sweep.columns[name] for name in (*STATISTICS, *masses)})  # type: ignore[arg-type]


def _check_written(estimator: Estimator, where: str) -> None:
    if estimator.method.needs == "distribution" or estimator.divergence not in _DIVERGENCES:
        raise not_written(estimator.method, where)


def student_support(hidden: Tensor, head: Head, k: int, vocabulary: int, chunk_size: int = 256) -> Tensor:
    """The student's k most likely tokens below `vocabulary` at each position, [N, k] int64, a chunk at a time."""
    chosen = []
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        for rows in hidden.detach().split(chunk_size):
            dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
            chosen.append(likeliest(_logits(head.shared(vocabulary), rows, dtype), k))
    return torch.cat(chosen) if chosen else torch.empty(0, k, dtype=torch.long, device=hidden.device)


def _logits(head: Head, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    out = hidden.new_empty((len(hidden), len(head.weight)), dtype=dtype)
    head = head.detached()
    project(replace(head, weight=product_operand(head.weight)), product_operand(hidden), out)
    return out


class _Reader:
    """Reads a chunk against the server's scores of the same tokens."""

    def __init__(self, sweep: Sweep, scores: Scores, estimator: Estimator) -> None:
        self._sweep, self._scores, self._estimator = sweep, scores, estimator

    def __call__(self, rows: slice, logits: Tensor, wants_gradient: bool) -> Tensor:
        """See `sweep.Reader`."""
        slope, logp, targets = softcap_slope(self._sweep.head, logits), logits.log_softmax(-1), self._targets(rows)
        scores = self._scores.of(rows, logp.dtype)
        support = logp.gather(1, scores.support_ids.clamp_min(0))
        stats, sampled, exact = self._read(logp, support, scores, rows)
        for name, values in stats.items():
            self._sweep.columns[name][rows] = values
        if wants_gradient:
            torch.exp(logp, out=logits).mul_((sampled + exact.sum(-1))[:, None])
            logits.scatter_add_(1, targets, -sampled[:, None])
            logits.scatter_add_(1, scores.support_ids.clamp_min(0), -exact)
            scale_back(self._sweep.head, logits, slope)
        return -torch.dot(sampled, stats["student_logprob"]) - (exact * support).sum()

    def _targets(self, rows: slice) -> Tensor:
        return self._sweep.targets[rows, None]

    def _read(
        self, logp: Tensor, support: Tensor, scores: Scores, rows: slice
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The statistics of a chunk from log p [c, V], and what multiplies ∇log p of y, [c], and of S, [c, k]."""
        sweep, estimator, targets = self._sweep, self._estimator, self._targets(rows)
        student_logprob = logp.gather(1, targets)[:, 0]
        baseline = baseline_from_support(support, scores, estimator)
        reward = scores.logprobs - student_logprob
        clipped = _clipped(reward, estimator)
        rollout = None if sweep.rollout_logprobs is None else sweep.rollout_logprobs[rows]
        importance = importance_weight(student_logprob, rollout, estimator.importance_sampling_cap)
        advantage, weights = clipped - baseline, sweep.token_weights[rows]
        outside = (scores.support_ids != targets).all(-1)
        sampled, exact = weights * importance * advantage, torch.zeros_like(support)
        if estimator.divergence == "rao_blackwell":
            sampled, exact = outside * sampled, weights[:, None] * exact_part(support, scores, baseline, estimator)
        statistics = {
            "student_logprob": student_logprob,
            "teacher_logprob": scores.logprobs,
            "reward": clipped,
            "baseline": baseline,
            "advantage": advantage,
            "reverse_kl": estimated_kl(reward, support, scores, outside, estimator),
            "entropy": -row_dot(logp.exp(), logp),
            **_masses(support, scores, estimator),
        }
        return statistics, sampled, exact
