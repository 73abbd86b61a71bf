r"""The estimators from hidden states, a chunk of tokens at a time: `reference_loss` without its [N, V] tensors.

With respect to the student's logits every estimator's gradient is a dense [V] row in closed form,

    sampled   ∇_z ℓ = A (p - 1[y])  · ρ,     A = r(y) - b detached, ρ the importance weight
    full      ∇_z ℓ = p ∘ (log p - log q - KL)
    topk      the same on the support, renormalised, zero elsewhere,

so one sweep does it all: project a chunk through both heads; then, an eighth of the chunk at a time, turn logits into
log-probabilities, read off the statistics and overwrite the student's logits with the gradient; multiply that back
through the student's head at once: 3 matrix products of N·H·V with a frozen head, 4 with a trained one, for every
method alike, in two buffers of [chunk, V] and two of an eighth of that. Storing logits for autograd costs 5 buffers of
[N, V], recomputing them 5 and 6 products.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from vopd_recipes.loss.definition import (
    NEGLIGIBLE_GRADIENT_NORM,
    STATISTICS,
    TokenStats,
    importance_weight,
    not_written,
    value_on_support,
)
from vopd_recipes.loss.estimator import Estimator
from vopd_recipes.loss.head import Head
from vopd_recipes.loss.methods import METHODS
from vopd_recipes.loss.sweep import Sweep, product_operand, project, row_dot, scale_back, softcap_slope, swept_loss

BLOCKS_PER_CHUNK = 8


def fused_loss(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    targets: Tensor,
    estimator: Estimator,
    *,
    token_weights: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    chunk_size: int | None = None,
    gradient_variance: bool = False,
) -> tuple[Tensor, TokenStats]:
    """`reference_loss` from hidden states: same loss, same `TokenStats`, same gradients.

    Args:
        student_hidden: [N, H], with gradient.
        student_head: [V, H]; gradients of its weight and bias are formed only where they are required.
        teacher_hidden: [N, H'], never differentiated, nor is the teacher's head.
        teacher_head: [V', H']; where V' ≠ V both are compared over the shared prefix and renormalised there.
        targets: [N] int64 sampled tokens, each inside the shared prefix.
        estimator: which gradient.
        token_weights: [N] weights w of loss = Σ_t w_t ℓ_t; default 1/N.
        rollout_logprobs: [N] log-probabilities under the sampler, for the importance weight.
        chunk_size: tokens per chunk at most, which are of one size; the default fills `sweep.BUFFER_BYTES`.
        gradient_variance: also compute the exact gradient variances (about eight more passes over a chunk).

    Returns:
        The scalar loss, in float32 (float64 for float64 inputs), and the `TokenStats`.

    Raises:
        NotImplementedError: a method of the table that has no lines here.
        RuntimeError: at a second backward through the same loss.
    """
    shared = min(len(student_head.weight), len(teacher_head.weight))
    variances = tuple(row.key for row in METHODS.values()) if gradient_variance else ()
    sweep = Sweep.over(
        student_hidden, student_head.shared(shared), targets, token_weights, rollout_logprobs, chunk_size, variances
    )
    teacher = teacher_head.shared(shared).detached()
    reader = _Reader(sweep, estimator, teacher_hidden.detach(), teacher, gradient_variance)
    loss = swept_loss(student_hidden, student_head, sweep, reader)
    stats = TokenStats(**{name: sweep.columns[name] for name in STATISTICS})  # type: ignore[arg-type]
    if gradient_variance:
        of_each = {name: sweep.columns[name] for name in variances}
        stats = replace(stats, gradient_variance=of_each[estimator.method.key], gradient_variances=of_each)
    return loss, stats


class _Reader:
    """Reads a chunk against the teacher's logits of the same tokens, a block of rows at a time."""

    def __init__(
        self, sweep: Sweep, estimator: Estimator, teacher_hidden: Tensor, teacher: Head, gradient_variance: bool
    ) -> None:
        self.sweep, self.estimator, self.gradient_variance = sweep, estimator, gradient_variance
        self._hidden = teacher_hidden
        self._head = replace(teacher, weight=product_operand(teacher.weight))
        self._block_size = math.ceil(sweep.chunk_size / BLOCKS_PER_CHUNK)
        self._logits, *self._scratch = (
            teacher_hidden.new_empty((size, len(teacher.weight)), dtype=sweep.dtype)
            for size in (sweep.chunk_size, self._block_size, self._block_size)
        )

    def __call__(self, rows: slice, logits: Tensor, wants_gradient: bool) -> Tensor:
        """See `sweep.Reader`."""
        size = rows.stop - rows.start
        project(self._head, product_operand(self._hidden[rows]), self._logits[:size])
        loss = logits.new_zeros(())
        for first in range(0, size, self._block_size):
            local = slice(first, min(first + self._block_size, size))
            block = _Block(slice(rows.start + first, rows.start + local.stop), self, logits[local], self._scratch)
            block.read(self._logits[local])
            loss += block.loss()
            block.write_columns()
            if wants_gradient:
                block.write_logit_gradient()
        return loss


class _Block:
    """Some rows b of a chunk in three [b, V] buffers that change meaning as the sweep goes on.

    p         the student's logits, then its probabilities, then the gradient with respect to its logits
    logp      log p of the student, until `_read_variance` needs its room
    rewards   log q - log p (clipped where asked), then the same less its mean under p
    """

    def __init__(self, rows: slice, reader: _Reader, student_logits: Tensor, scratch: list[Tensor]) -> None:
        self.rows, self.reader, self.sweep, self.estimator = rows, reader, reader.sweep, reader.estimator
        self.p = student_logits
        self.logp, self.rewards = (buffer[: len(student_logits)] for buffer in scratch)
        self.targets = self.sweep.targets[rows, None]
        self.weights = self.sweep.token_weights[rows]
        self.rollout_logprobs = None if self.sweep.rollout_logprobs is None else self.sweep.rollout_logprobs[rows]

    def read(self, teacher_logits: Tensor) -> None:
        """Reduce both models' logits: after this, every statistic of the block is known."""
        torch.log_softmax(self.p, -1, out=self.logp)
        self.cap_slope = softcap_slope(self.sweep.head, self.p)  # one more [b, V], for softcapped heads only
        teacher_logp = torch.log_softmax(teacher_logits, -1, out=self.rewards)
        self.student_logprob = self._at_target(self.logp)
        self.teacher_logprob = self._at_target(teacher_logp)
        self._read_support(teacher_logp)

        torch.exp(self.logp, out=self.p)
        self.entropy = -row_dot(self.p, self.logp)
        self.rewards.sub_(self.logp)
        self.value = row_dot(self.p, self.rewards)
        self.reverse_kl = -self.value
        if (floor := self.estimator.reward_floor) is not None:
            self.value = row_dot(self.p, self.rewards.clamp_min_(floor))
        self.reward = self._at_target(self.rewards)
        self.rewards.sub_(self.value[:, None])
        self._read_variance()
        self.baseline = self._baseline(self.estimator.baseline or "none")
        self.advantage = self.reward - self.baseline
        cap = self.estimator.importance_sampling_cap
        self.importance = importance_weight(self.student_logprob, self.rollout_logprobs, cap)

    def _at_target(self, values: Tensor) -> Tensor:
        return values.gather(1, self.targets)[:, 0]

    def _read_support(self, teacher_logp: Tensor) -> None:
        """What k tokens carry, before `rewards` overwrites `teacher_logp`: `topk`'s loss, `value_topk`'s baseline."""
        estimator = self.estimator
        if estimator.method.needs != "support" and estimator.divergence != "topk" and not self._all_variances:
            return
        ranked = teacher_logp if estimator.support == "teacher" else self.logp
        self.support = ranked.topk(min(estimator.support_top_k, ranked.shape[1]), dim=-1).indices  # [b, k]
        self.support_logp, self.support_teacher_logp = (x.gather(1, self.support) for x in (self.logp, teacher_logp))
        self.value_topk = value_on_support(self.support_logp, self.support_teacher_logp, estimator)

    @property
    def _all_variances(self) -> bool:
        return self.reader.gradient_variance

    def _read_variance(self) -> None:
        """Moments of R = r - E_p[r] under the weights ω = p s, s = ‖∇_z log p‖²; `logp` lends its room."""
        if self.estimator.baseline != "optimal" and not self._all_variances:
            return
        purity = row_dot(self.p, self.p)[:, None]
        omega = torch.mul(self.p, 1 + purity, out=self.logp).addcmul_(self.p, self.p, value=-2)
        self.score_norm = omega.sum(-1)  # E[s]
        if self._all_variances:
            omega.mul_(self.rewards)
            self.first_moment = omega.sum(-1)  # E[s R]
            self.second_moment = row_dot(omega, self.rewards)  # E[s R²]
            mean = torch.mul(self.p, self.rewards, out=self.logp)
            self.squared_mean = row_dot(mean, mean)  # ‖E g‖², which no baseline changes
        else:
            self.first_moment = row_dot(omega, self.rewards)

    def _baseline(self, name: str) -> Tensor:
        match name:
            case "none":
                return torch.zeros_like(self.value)
            case "constant":
                return torch.full_like(self.value, self.estimator.baseline_constant)
            case "value":
                return self.value
            case "value_topk":
                return self.value_topk
            case "optimal":
                negligible = self.score_norm < NEGLIGIBLE_GRADIENT_NORM
                return self.value + (self.first_moment / self.score_norm).masked_fill(negligible, 0)
        raise not_written(replace(self.estimator, divergence="sampled", baseline=name), "fused_loss")

    def _variance(self, baseline: str) -> Tensor:
        """E‖g‖² - ‖E g‖² with A = R - (b - E_p[r]): [b]."""
        shift = self._baseline(baseline) - self.value
        second = self.second_moment - 2 * shift * self.first_moment + shift.square() * self.score_norm
        return (second - self.squared_mean).clamp_min(0)

    def write_columns(self) -> None:
        for name in STATISTICS:
            self.sweep.columns[name][self.rows] = getattr(self, name)
        for row in METHODS.values() if self._all_variances else ():
            self.sweep.columns[row.key][self.rows] = self._variance(row.baseline) if row.samples else 0

    def loss(self) -> Tensor:
        """Σ_t w_t ℓ_t of the block."""
        match self.estimator.divergence:
            case "sampled":
                per_token = -self.importance * self.advantage * self.student_logprob
            case "full":
                per_token = self.reverse_kl
            case "topk":
                per_token = -self.value_topk
            case _:
                raise not_written(self.estimator, "fused_loss")
        return torch.dot(self.weights, per_token)

    def write_logit_gradient(self) -> None:
        """Σ_t w_t ∇ℓ_t with respect to hidden·weightᵀ + bias, over the student's logits."""
        match self.estimator.divergence:
            case "sampled":
                coefficient = (self.weights * self.importance * self.advantage)[:, None]
                self.p.mul_(coefficient).scatter_add_(1, self.targets, -coefficient)
            case "full":
                self.p.mul_(self.rewards).mul_(-self.weights[:, None])
            case "topk":
                logp = self.support_logp.log_softmax(-1)
                log_ratio = logp - self.support_teacher_logp.log_softmax(-1)
                kl = (logp.exp() * log_ratio).sum(-1, keepdim=True)
                self.p.zero_().scatter_(1, self.support, self.weights[:, None] * logp.exp() * (log_ratio - kl))
        scale_back(self.sweep.head, self.p, self.cap_slope)
