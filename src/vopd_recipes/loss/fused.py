r"""The estimators from hidden states, a chunk of tokens at a time: `reference_loss` without its [N, V] tensors.

With respect to the student's logits every estimator's gradient is a dense [V] row in closed form,

    sampled        ∇_z ℓ = A(y) (p - e_y) · ρ,     A = r - b detached, ρ the importance weight
    rao_blackwell  ∇_z ℓ = Σ_{v∈S} p(v) A(v) (p - e_v) + 1[y∉S] ρ A(y) (p - e_y) = (Σ c) p - c, c of k + 1 tokens
    full           ∇_z ℓ = p ∘ (log p - log q - KL)
    topk           the same on the support, renormalised, zero elsewhere
    forward        ∇_z ℓ = p - q
    jsd            ∇_z ℓ = (1-β) p ∘ (h - Σ p h),  h = log p - log m,

so one sweep does it all: project a chunk through both heads; then, a block of the chunk at a time, turn logits into
log-probabilities, read off the statistics and overwrite the student's logits with the gradient; multiply that back
through the student's head at once: 3 matrix products of N·H·V with a frozen head, 4 with a trained one, for every
method alike, in two buffers of [chunk, V] and two of [block, V]. Storing logits for autograd costs 5 buffers of
[N, V], recomputing them 5 and 6 products.

What happens to a block can be compiled: one kernel per reduction instead of one per operation. It has then no buffers
of its own, and allocates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
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
from vopd_recipes.loss.likeliest import likeliest
from vopd_recipes.loss.methods import METHODS, Method
from vopd_recipes.loss.moments import Moments, tail_moments, whole_moments
from vopd_recipes.loss.sweep import (
    Sweep,
    device_kind,
    product_operand,
    project,
    row_dot,
    scale_back,
    softcap_slope,
    swept_loss,
)

# Blocks of a chunk: on a CPU small ones stay in its cache; on a GPU the kernels of a row-wise reduction want several
# rows to each of its some 130 multiprocessors (552 of 151,936 vocabulary entries).
BLOCKS_PER_CHUNK = {"cpu": 8, "cuda": 2}


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
    compiled: bool = False,
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
        compiled: read blocks with `torch.compile`, which takes a compiler and, the first times, half a minute.

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
    reader = _Reader(sweep, estimator, teacher_hidden.detach(), teacher, gradient_variance, compiled)
    loss = swept_loss(student_hidden, student_head, sweep, reader)
    stats = TokenStats(**{name: sweep.columns[name] for name in (*STATISTICS, *masses)})  # type: ignore[arg-type]
    if gradient_variance:
        of_each = {name: sweep.columns[name] for name in variances}
        stats = replace(stats, gradient_variance=of_each[estimator.method.key], gradient_variances=of_each)
    return loss, stats


class _Reader:
    """Reads a chunk against the teacher's logits of the same tokens, a block of rows at a time."""

    def __init__(
        self,
        sweep: Sweep,
        estimator: Estimator,
        teacher_hidden: Tensor,
        teacher: Head,
        gradient_variance: bool,
        compiled: bool,
    ) -> None:
        self._sweep, self._estimator, self._variances = sweep, estimator, gradient_variance
        self._hidden = teacher_hidden
        self._head = replace(teacher, weight=product_operand(teacher.weight))
        self._block_size = math.ceil(sweep.chunk_size / BLOCKS_PER_CHUNK[device_kind(teacher_hidden)])
        sizes = [sweep.chunk_size, *([] if compiled else [self._block_size] * 2)]
        self._logits, *self._scratch = (
            teacher_hidden.new_empty((size, len(teacher.weight)), dtype=sweep.dtype) for size in sizes
        )
        self._read_block = _compiled_reading() if compiled else _read_block

    def __call__(self, rows: slice, logits: Tensor, wants_gradient: bool) -> Tensor:
        """See `sweep.Reader`."""
        sweep, size = self._sweep, rows.stop - rows.start
        project(self._head, product_operand(self._hidden[rows]), self._logits[:size])
        loss = logits.new_zeros(())
        for first in range(0, size, self._block_size):
            local = slice(first, min(first + self._block_size, size))
            own = slice(rows.start + first, rows.start + local.stop)
            rollout = None if sweep.rollout_logprobs is None else sweep.rollout_logprobs[own]
            known = sweep.targets[own, None], sweep.token_weights[own], rollout
            block = _Block(*known, self._estimator, sweep.head, self._variances, self._scratch)
            block_loss, columns = self._read_block(block, logits[local], self._logits[local], wants_gradient)
            loss += block_loss
            for name, values in columns.items():
                sweep.columns[name][own] = values
        return loss


def _read_block(
    block: _Block, student_logits: Tensor, teacher_logits: Tensor, wants_gradient: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """A block's loss and statistics; the student's logits become their gradient."""
    block.read(student_logits, teacher_logits)
    loss, columns = block.loss(), block.columns()
    if wants_gradient:
        block.write_logit_gradient()
        if not block.scratch:
            student_logits.copy_(block.p)
    return loss, columns


@lru_cache(maxsize=1)
def _compiled_reading() -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    return torch.compile(_read_block)


class _Block:
    """Some rows b of a chunk, in [b, V] buffers that change meaning as the sweep goes on.

    p         the student's logits, then its probabilities, then the gradient with respect to its logits
    logp      log p of the student, until the moments need its room
    rewards   log q - log p (clipped where asked), then, where that is read, the same less its mean under p

    Without `scratch` for the last two each is a tensor of its own, and nothing that is given is overwritten: what a
    compiler wants, who makes one buffer of what he can.
    """

    def __init__(
        self,
        targets: Tensor,
        weights: Tensor,
        rollout_logprobs: Tensor | None,
        estimator: Estimator,
        head: Head,
        variances: bool,
        scratch: list[Tensor],
    ) -> None:
        self.targets, self.weights, self.rollout_logprobs = targets, weights, rollout_logprobs  # [b, 1], [b], [b]
        self.estimator, self.head, self.variances = estimator, head, variances
        self.scratch = [buffer[: len(targets)] for buffer in scratch]
        # At its ends the Jensen-Shannon divergence is taken for its limits.
        self.divergence = estimator.divergence
        if self.divergence == "jsd" and estimator.jsd_beta in (0, 1):
            self.divergence = "full" if estimator.jsd_beta else "forward"

    def read(self, student_logits: Tensor, teacher_logits: Tensor) -> None:
        """Reduce both models' logits: after this, every statistic of the block is known."""
        logp, rewards = self.scratch or (None, None)
        self.logp = torch.log_softmax(student_logits, -1, out=logp)
        self.cap_slope = softcap_slope(self.head, student_logits)  # one more [b, V], for softcapped heads only
        self.rewards = teacher_logp = torch.log_softmax(teacher_logits, -1, out=rewards)
        self.student_logprob = self._at_target(self.logp)
        self.teacher_logprob = self._at_target(teacher_logp)
        if self._reads_support:
            self._read_support(teacher_logp)
        if self.divergence in ("forward", "jsd"):
            self.q = torch.exp(teacher_logp, out=teacher_logits if self.scratch else None)

        self.p = torch.exp(self.logp, out=student_logits if self.scratch else None)
        self.entropy = -row_dot(self.p, self.logp)
        self.rewards.sub_(self.logp)
        self.value = row_dot(self.p, self.rewards)
        self.reverse_kl = -self.value
        if self.divergence in ("forward", "jsd"):
            self._read_other_divergence()
        if (floor := self.estimator.reward_floor) is not None:
            self.value = row_dot(self.p, self.rewards.clamp_min_(floor))
        self.reward = self._at_target(self.rewards)
        if self.divergence == "rao_blackwell":
            self.support_rewards = self.rewards.gather(1, self.support)
        if self.variances or self.estimator.baseline == "optimal" or self.divergence == "full":
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
        return self.estimator.has_support or self.variances

    def _read_support(self, teacher_logp: Tensor) -> None:
        """What k tokens carry, before `rewards` overwrites `teacher_logp`."""
        estimator = self.estimator
        ranked = teacher_logp if estimator.support == "teacher" else self.logp
        self.support = likeliest(ranked, estimator.support_top_k)  # [b, k]
        self.support_logp, self.support_teacher_logp = (x.gather(1, self.support) for x in (self.logp, teacher_logp))
        self.support_p = self.support_logp.exp()
        self.support_mass_student = self.support_p.sum(-1)
        self.support_mass_teacher = self.support_teacher_logp.exp().sum(-1)
        self.value_topk = value_on_support(self.support_logp, self.support_teacher_logp, estimator)
        if estimator.baseline == "tail" or self.variances:
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
        every = self.variances
        optimal, divergence = self.estimator.baseline == "optimal", self.estimator.divergence
        self.moments: dict[str, Moments] = {}
        if every or (optimal and divergence == "sampled"):
            self.moments["sampled"] = whole_moments(self.p, self.rewards, self.logp, every)
        if every or (optimal and divergence == "rao_blackwell"):
            squares = self.support_p.square().sum(-1)
            self.moments["rao_blackwell"] = self._outside_support(
                self.p, 0.0, lambda tail: tail_moments(tail, self.rewards, squares, self.logp, every)
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
                m = self._moments_of(method)
                negligible = m.norm <= NEGLIGIBLE_GRADIENT_NORM * m.mass
                return self.value + (m.first / m.norm).masked_fill(negligible, 0)
        raise not_written(method, "fused_loss")

    def _moments_of(self, method: Method) -> Moments:
        """Over the tokens that it samples."""
        if method.divergence not in self.moments:
            raise not_written(method, "fused_loss")
        return self.moments[method.divergence]

    def _variance(self, method: Method) -> Tensor:
        """Of A = R - (b - E_p[r]) on the tokens that are sampled: [b]."""
        m, shift = self._moments_of(method), self._baseline(method) - self.value
        return (m.second - 2 * shift * m.first + shift.square() * m.norm - m.squared_mean).clamp_min(0)

    def columns(self) -> dict[str, Tensor]:
        """The statistics by name, [b] each."""
        names = (*STATISTICS, *(SUPPORT_MASSES if self.estimator.has_support else ()))
        columns = {name: getattr(self, name) for name in names}
        for row in METHODS.values() if self.variances else ():
            columns[row.key] = self._variance(row) if row.samples else torch.zeros_like(self.value)
        return columns

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
        on_support = self.support_rewards - self.baseline[:, None]
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
            case _:
                raise not_written(self.estimator.method, "fused_loss")
        scale_back(self.head, self.p, self.cap_slope)


def _logsumexp(values: Tensor) -> Tensor:
    return values.logsumexp(-1)
