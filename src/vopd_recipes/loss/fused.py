r"""The estimators from hidden states, a chunk of tokens at a time: `reference_loss` without its [N, V] tensors.

With respect to the student's logits every estimator's gradient is a dense [V] row in closed form,

    sampled        ∇_z ℓ = A(y) (p - e_y) · ρ,     A = r - b detached, ρ the importance weight
    rao_blackwell  ∇_z ℓ = Σ_{v∈S} p(v) A(v) (p - e_v) + 1[y∉S] ρ A(y) (p - e_y) = (Σ c) p - c, c of k + 1 tokens
    full           ∇_z ℓ = p ∘ (log p - log q - KL)
    topk           the same on the support, renormalised, zero elsewhere
    forward        ∇_z ℓ = p - q
    jsd            ∇_z ℓ = (1-β) p ∘ (h - Σ p h),  h = log p - log m,

so one sweep does it all: project a chunk through both heads; then, an eighth of the chunk at a time, turn logits into
log-probabilities, read off the statistics and overwrite the student's logits with the gradient; multiply that back
through the student's head at once: 3 matrix products of N·H·V with a frozen head, 4 with a trained one, for every
method alike, in two buffers of [chunk, V] and two of an eighth of that. Storing logits for autograd costs 5 buffers of
[N, V], recomputing them 5 and 6 products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vopd_recipes.loss.definition import (
    NEGLIGIBLE_GRADIENT_NORM,
    STATISTICS,
    SUPPORT_MASSES,
    TokenStats,
    importance_weight,
    not_written,
    value_on_support,
)
from vopd_recipes.loss.estimator import Estimator
from vopd_recipes.loss.head import Head
from vopd_recipes.loss.methods import METHODS, Method
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
    masses = SUPPORT_MASSES if estimator.has_support else ()
    sweep = Sweep.over(
        student_hidden,
        student_head.shared(shared),
        targets,
        token_weights,
        rollout_logprobs,
        chunk_size,
        (*masses, *variances),
    )
    teacher = teacher_head.shared(shared).detached()
    reader = _Reader(sweep, estimator, teacher_hidden.detach(), teacher, gradient_variance)
    loss = swept_loss(student_hidden, student_head, sweep, reader)
    stats = TokenStats(**{name: sweep.columns[name] for name in (*STATISTICS, *masses)})  # type: ignore[arg-type]
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
    logp      log p of the student, until the moments need its room
    rewards   log q - log p (clipped where asked), then the same less its mean under p
    """

    def __init__(self, rows: slice, reader: _Reader, student_logits: Tensor, scratch: list[Tensor]) -> None:
        self.rows, self.reader, self.sweep, self.estimator = rows, reader, reader.sweep, reader.estimator
        self.p = student_logits
        self.logp, self.rewards = (buffer[: len(student_logits)] for buffer in scratch)
        self.targets = self.sweep.targets[rows, None]
        self.weights = self.sweep.token_weights[rows]
        self.rollout_logprobs = None if self.sweep.rollout_logprobs is None else self.sweep.rollout_logprobs[rows]
        # At its ends the Jensen-Shannon divergence is taken for its limits.
        self.divergence = self.estimator.divergence
        if self.divergence == "jsd" and self.estimator.jsd_beta in (0, 1):
            self.divergence = "full" if self.estimator.jsd_beta else "forward"

    def read(self, teacher_logits: Tensor) -> None:
        """Reduce both models' logits: after this, every statistic of the block is known."""
        torch.log_softmax(self.p, -1, out=self.logp)
        self.cap_slope = softcap_slope(self.sweep.head, self.p)  # one more [b, V], for softcapped heads only
        teacher_logp = torch.log_softmax(teacher_logits, -1, out=self.rewards)
        self.student_logprob = self._at_target(self.logp)
        self.teacher_logprob = self._at_target(teacher_logp)
        if self._reads_support:
            self._read_support(teacher_logp)
        if self.divergence in ("forward", "jsd"):
            self.q = torch.exp(teacher_logp, out=teacher_logits)

        torch.exp(self.logp, out=self.p)
        self.entropy = -row_dot(self.p, self.logp)
        self.rewards.sub_(self.logp)
        self.value = row_dot(self.p, self.rewards)
        self.reverse_kl = -self.value
        if self.divergence in ("forward", "jsd"):
            self._read_other_divergence()
        if (floor := self.estimator.reward_floor) is not None:
            self.value = row_dot(self.p, self.rewards.clamp_min_(floor))
        self.reward = self._at_target(self.rewards)
        self.rewards.sub_(self.value[:, None])
        self._read_moments()
        self.baseline = self._baseline(self.estimator.method)
        self.advantage = self.reward - self.baseline
        cap = self.estimator.importance_sampling_cap
        self.importance = importance_weight(self.student_logprob, self.rollout_logprobs, cap)

    def _at_target(self, values: Tensor) -> Tensor:
        return values.gather(1, self.targets)[:, 0]

    # The support and its tail ---------------------------------------------------------------------------------------

    @property
    def _reads_support(self) -> bool:
        return self.estimator.has_support or self.reader.gradient_variance

    def _read_support(self, teacher_logp: Tensor) -> None:
        """What k tokens carry, before `rewards` overwrites `teacher_logp`."""
        estimator = self.estimator
        ranked = teacher_logp if estimator.support == "teacher" else self.logp
        self.support = ranked.topk(min(estimator.support_top_k, ranked.shape[1]), dim=-1).indices  # [b, k]
        self.support_logp, self.support_teacher_logp = (x.gather(1, self.support) for x in (self.logp, teacher_logp))
        self.support_p = self.support_logp.exp()
        self.support_mass_student = self.support_p.sum(-1)
        self.support_mass_teacher = self.support_teacher_logp.exp().sum(-1)
        self.value_topk = value_on_support(self.support_logp, self.support_teacher_logp, estimator)
        if estimator.baseline == "tail" or self.reader.gradient_variance:
            self.tail_ratio = self._outside_support(teacher_logp, -torch.inf, _logsumexp)
            self.tail_ratio -= self._outside_support(self.logp, -torch.inf, _logsumexp)  # -∞ - -∞ is refused below

    def _outside_support(self, values: Tensor, nothing: float, read: Callable[[Tensor], Any]) -> Any:
        """Read [b, V] values with those of S replaced for as long as that takes."""
        own = values.gather(1, self.support)
        found = read(values.scatter_(1, self.support, nothing))
        values.scatter_(1, self.support, own)
        return found

    def _read_moments(self) -> None:
        """m₀, m₁ and m₂ of `definition.tail_moments` with R = r - E_p[r], over all tokens and over the tail."""
        every = self.reader.gradient_variance
        optimal, divergence = self.estimator.baseline == "optimal", self.estimator.divergence
        self.moments: dict[str, _Moments] = {}
        if every or (optimal and divergence == "sampled"):
            self.moments["sampled"] = _whole_moments(self.p, self.rewards, self.logp, every)
        if every or (optimal and divergence == "rao_blackwell"):
            squares = self.support_p.square().sum(-1)
            self.moments["rao_blackwell"] = self._outside_support(
                self.p, 0.0, lambda tail: _tail_moments(tail, self.rewards, squares, self.logp, every)
            )

    def _baseline(self, method: Method) -> Tensor:
        match method.baseline:
            case "none":
                return torch.zeros_like(self.value)
            case "constant":
                return torch.full_like(self.value, self.estimator.baseline_constant)
            case "value":
                return self.value
            case "value_topk":
                return self.value_topk
            case "tail":
                ratio = torch.where(self.tail_ratio.isfinite(), self.tail_ratio, self.value)
                floor = self.estimator.reward_floor
                return ratio if floor is None else ratio.clamp_min(floor)
            case "optimal":
                m = self.moments[method.divergence]
                negligible = m.norm <= NEGLIGIBLE_GRADIENT_NORM * m.mass
                return self.value + (m.first / m.norm).masked_fill(negligible, 0)
        raise not_written(method, "fused_loss")

    def _variance(self, method: Method) -> Tensor:
        """Of A = R - (b - E_p[r]) on the tokens that are sampled: [b]."""
        m, shift = self.moments[method.divergence], self._baseline(method) - self.value
        return (m.second - 2 * shift * m.first + shift.square() * m.norm - m.squared_mean).clamp_min(0)

    def write_columns(self) -> None:
        for name in (*STATISTICS, *(SUPPORT_MASSES if self.estimator.has_support else ())):
            self.sweep.columns[name][self.rows] = getattr(self, name)
        for row in METHODS.values() if self.reader.gradient_variance else ():
            self.sweep.columns[row.key][self.rows] = self._variance(row) if row.samples else 0

    # Loss and gradient ----------------------------------------------------------------------------------------------

    def _read_other_divergence(self) -> None:
        """KL(q‖p), or β KL(q‖m) + (1-β) KL(p‖m) from h = log p - log m, one more [b, V]; `rewards` is log q/p."""
        if self.divergence == "forward":
            self.other = row_dot(self.q, self.rewards)
            return
        beta = self.estimator.jsd_beta
        one = self.rewards.new_tensor(math.log1p(-beta))
        self.h = torch.logaddexp(self.rewards + math.log(beta), one).neg_()
        self.mean_h = row_dot(self.p, self.h)
        of_teacher = row_dot(self.q, self.rewards) + row_dot(self.q, self.h)
        self.other = beta * of_teacher + (1 - beta) * self.mean_h

    def _coefficients(self) -> tuple[Tensor, Tensor]:
        """p(v) A(v) on S, [b, k], and 1[y∉S] ρ A(y), [b]: what multiplies ∇log p there."""
        on_support = self.rewards.gather(1, self.support) + (self.value - self.baseline)[:, None]
        outside = (self.support != self.targets).all(-1)
        return self.support_p * on_support, outside * self.importance * self.advantage

    def loss(self) -> Tensor:
        """Σ_t w_t ℓ_t of the block."""
        match self.divergence:
            case "sampled":
                per_token = -self.importance * self.advantage * self.student_logprob
            case "rao_blackwell":
                exact, sampled = self._coefficients()
                per_token = -(exact * self.support_logp).sum(-1) - sampled * self.student_logprob
            case "full":
                per_token = self.reverse_kl
            case "topk":
                per_token = -self.value_topk
            case "forward" | "jsd":
                per_token = self.other
            case _:
                raise not_written(self.estimator.method, "fused_loss")
        return torch.dot(self.weights, per_token)

    def write_logit_gradient(self) -> None:
        """Σ_t w_t ∇ℓ_t with respect to hidden·weightᵀ + bias, over the student's logits."""
        weights = self.weights[:, None]
        match self.divergence:
            case "sampled":
                coefficient = (self.weights * self.importance * self.advantage)[:, None]
                self.p.mul_(coefficient).scatter_add_(1, self.targets, -coefficient)
            case "rao_blackwell":
                exact, sampled = self._coefficients()
                self.p.mul_(weights * (exact.sum(-1) + sampled)[:, None])
                self.p.scatter_add_(1, self.support, -weights * exact)
                self.p.scatter_add_(1, self.targets, -weights * sampled[:, None])
            case "full":
                self.p.mul_(self.rewards).mul_(-weights)
            case "topk":
                logp = self.support_logp.log_softmax(-1)
                log_ratio = logp - self.support_teacher_logp.log_softmax(-1)
                kl = (logp.exp() * log_ratio).sum(-1, keepdim=True)
                self.p.zero_().scatter_(1, self.support, weights * logp.exp() * (log_ratio - kl))
            case "forward":
                self.p.sub_(self.q).mul_(weights)
            case "jsd":
                self.p.mul_(self.h.sub_(self.mean_h[:, None])).mul_((1 - self.estimator.jsd_beta) * weights)
        scale_back(self.sweep.head, self.p, self.cap_slope)


@dataclass(frozen=True)
class _Moments:
    """The variance of a baseline shifted by b is second - 2 b first + b² norm - squared_mean; all are [b]."""

    mass: Tensor  # of the tokens that are sampled
    norm: Tensor
    first: Tensor
    second: Tensor | float = 0.0  # these two only where a variance is asked for
    squared_mean: Tensor | float = 0.0


def _whole_moments(p: Tensor, rewards: Tensor, room: Tensor, second: bool) -> _Moments:
    """Over every token, from ω = p s with s = ‖∇_z log p‖²; ‖E g‖² is what no baseline changes."""
    purity = row_dot(p, p)[:, None]
    omega = torch.mul(p, 1 + purity, out=room).addcmul_(p, p, value=-2)
    norm, mass = omega.sum(-1), torch.ones_like(purity[:, 0])
    if not second:
        return _Moments(mass, norm, row_dot(omega, rewards))
    omega.mul_(rewards)
    first, square = omega.sum(-1), row_dot(omega, rewards)
    mean = torch.mul(p, rewards, out=room)
    return _Moments(mass, norm, first, square, row_dot(mean, mean))


def _tail_moments(tail: Tensor, rewards: Tensor, support_squares: Tensor, room: Tensor, second: bool) -> _Moments:
    """Over the tail, `definition.tail_moments` multiplied out: sums over T of p, p², p r and p² r are enough.

    Args:
        tail: p on T and zero on S, [b, V].
        rewards: R, [b, V].
        support_squares: Σ_S p², [b].
        room: a buffer [b, V].
        second: whether m₂ is wanted.
    """
    mass, squares = tail.sum(-1), row_dot(tail, tail)
    purity = squares + support_squares
    weighted = torch.mul(tail, rewards, out=room)
    first, cross = weighted.sum(-1), row_dot(tail, weighted)
    norm = mass * (1 + purity) - 2 * squares - (squares - 2 * mass * squares + mass.square() * purity)
    mean = cross - mass * cross - first * squares + first * mass * purity
    of_first = first * (1 + purity) - 2 * cross - mean
    if not second:
        return _Moments(mass, norm, of_first)
    linear, quadratic = row_dot(weighted, rewards), row_dot(weighted, weighted)
    of_second = linear * (1 + purity) - 2 * quadratic
    return _Moments(mass, norm, of_first, of_second, quadratic - 2 * first * cross + first.square() * purity)


def _logsumexp(values: Tensor) -> Tensor:
    return values.logsumexp(-1)
