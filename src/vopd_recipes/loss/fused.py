r"""The estimators from hidden states, a chunk of tokens at a time: `reference_loss` without its [N, V] tensors.

With respect to the student's logits every estimator's gradient is a dense [V] row in closed form,

    sampled   ∇_z ℓ = A (p - 1[y])  · ρ,     A = r(y) - b detached, ρ the importance weight
    full      ∇_z ℓ = p ∘ (log p - log q - KL)
    topk      the same on the support, renormalised, zero elsewhere,

so one sweep does it all: project a chunk through both heads; then, an eighth of the chunk at a time, turn logits into
log-probabilities, read off the statistics and overwrite the student's logits with the gradient; multiply that back
through the student's head at once. Nothing is recomputed in the backward pass, it only scales what is there: 3 matrix
products of N·H·V with a frozen head, 4 with a trained one, for every method alike, in two buffers of [chunk, V] and
two of an eighth of that. Storing logits for autograd costs 5 buffers of [N, V], recomputing them 5 and 6 products.

A gradient formed in the forward pass exists only once, so a second backward through the same loss is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vopd_recipes.loss.definition import (
    NEGLIGIBLE_GRADIENT_NORM,
    Baseline,
    Estimator,
    TokenStats,
    importance_weight,
    value_on_support,
    variance_name,
)

# Bytes of one [chunk, V] buffer: on a CPU 276 tokens of a 151,936-word vocabulary. Larger chunks make better matrix
# products until the cores saturate (`python scripts/benchmark_loss.py --tables chunks`).
BUFFER_BYTES = {"cpu": 160 * 2**20, "cuda": 640 * 2**20}
BLOCKS_PER_CHUNK = 8
# Words per product where a CPU projects a chunk: 15 to 25 % faster than the whole vocabulary at once.
CPU_TILE = 1024

_STATISTICS = ("student_logprob", "teacher_logprob", "reward", "baseline", "advantage", "reverse_kl", "entropy")


@dataclass(frozen=True)
class Head:
    """A language-model head: logits = softcap·tanh(scale·(hidden·weightᵀ + bias)/softcap), or without the tanh."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    logit_scale: float = 1.0
    softcap: float | None = None

    def shared(self, vocabulary: int) -> Head:
        """The head of the first `vocabulary` tokens."""
        bias = None if self.bias is None else self.bias[:vocabulary]
        return Head(self.weight[:vocabulary], bias, self.logit_scale, self.softcap)


def fused_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    targets: Tensor,
    estimator: Estimator,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    token_weights: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    chunk_size: int | None = None,
    gradient_variance: bool = False,
) -> tuple[Tensor, TokenStats]:
    """`reference_loss` from hidden states: same loss, same `TokenStats`, same gradients.

    Args:
        student_hidden: [N, H], with gradient.
        student_weight: [V, H]; its gradient is formed only where it is required.
        teacher_hidden: [N, H'], never differentiated, nor are the teacher's weight and bias.
        teacher_weight: [V', H']; where V' ≠ V both are compared over the shared prefix and renormalised there.
        targets: [N] int64 sampled tokens, each inside the shared prefix.
        estimator: which gradient.
        student_bias, teacher_bias: [V], with gradient where required, and [V'].
        token_weights: [N] weights w of loss = Σ_t w_t ℓ_t; default 1/N.
        rollout_logprobs: [N] log-probabilities under the sampler, for the importance weight.
        student_logit_scale, teacher_logit_scale: what the logits are multiplied by.
        student_softcap, teacher_softcap: c of c·tanh(logits / c).
        chunk_size: tokens per chunk at most, which are of one size; the default fills `BUFFER_BYTES`.
        gradient_variance: also compute the exact gradient variances (about eight more passes over a chunk).

    Returns:
        The scalar loss, in float32 (float64 for float64 inputs), and the `TokenStats`.

    Raises:
        RuntimeError: at a second backward through the same loss.
    """
    shared = min(len(student_weight), len(teacher_weight))
    student = Head(student_weight.detach(), student_bias, student_logit_scale, student_softcap).shared(shared)
    teacher = Head(teacher_weight.detach(), teacher_bias, teacher_logit_scale, teacher_softcap).shared(shared)
    device, count = student_hidden.device, len(targets)
    dtype = torch.float64 if student_hidden.dtype == torch.float64 else torch.float32
    if token_weights is None:
        token_weights = torch.full((count,), 1 / max(count, 1), dtype=dtype, device=device)
    if rollout_logprobs is not None:
        rollout_logprobs = rollout_logprobs.detach().to(dtype)
    if chunk_size is None:
        budget = BUFFER_BYTES["cpu" if device.type == "cpu" else "cuda"]
        chunk_size = max(1, budget // (shared * dtype.itemsize))
    chunks = max(1, math.ceil(count / chunk_size))
    names = _STATISTICS + (get_args(Baseline) if gradient_variance else ())
    sweep = _Sweep(
        student, teacher, teacher_hidden.detach(), targets, estimator, token_weights.detach().to(dtype),
        rollout_logprobs, math.ceil(count / chunks), gradient_variance, dtype,
        {name: torch.empty(count, dtype=torch.float32, device=device) for name in names},
    )  # fmt: skip
    with torch.autocast(device.type, enabled=False):
        loss = _FusedLoss.apply(student_hidden, student_weight, student_bias, sweep)
    return loss, _token_stats(sweep.columns, estimator)


def _token_stats(columns: dict[str, Tensor], estimator: Estimator) -> TokenStats:
    stats = TokenStats(**{name: columns[name] for name in _STATISTICS})  # type: ignore[arg-type]
    variances = {name: column for name, column in columns.items() if name not in _STATISTICS}
    if not variances:
        return stats
    variances["full"] = variances["topk"] = torch.zeros_like(stats.reward)
    return replace(stats, gradient_variance=variances[variance_name(estimator)], gradient_variances=variances)


@dataclass(frozen=True)
class _Sweep:
    """What a sweep reads besides the student's hidden states, and the columns it fills."""

    student: Head
    teacher: Head
    teacher_hidden: Tensor  # [N, H']
    targets: Tensor  # [N]
    estimator: Estimator
    token_weights: Tensor  # [N]
    rollout_logprobs: Tensor | None  # [N]
    chunk_size: int
    gradient_variance: bool
    dtype: torch.dtype
    columns: dict[str, Tensor]  # the statistics, [N] float32 each


class _FusedLoss(torch.autograd.Function):
    """The loss, with its gradients already formed in the forward pass."""

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
            raise RuntimeError("fused_loss: gradients already used; compute the loss again instead of retain_graph")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients]
        return *scaled, None


@dataclass
class Gradients:
    """Accumulators for what is asked for; a frozen head has no weight and bias gradient."""

    hidden: Tensor | None  # [N, H]
    weight: Tensor | None  # [V, H], in the accumulation type
    bias: Tensor | None  # [V], in the accumulation type

    @staticmethod
    def allocate(
        needed: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Gradients:
        return Gradients(
            torch.empty_like(hidden) if needed[0] else None,
            torch.zeros_like(weight, dtype=dtype) if needed[1] else None,
            torch.zeros_like(bias, dtype=dtype) if needed[2] and bias is not None else None,
        )

    @property
    def any(self) -> bool:
        return any(gradient is not None for gradient in (self.hidden, self.weight, self.bias))

    def cast(self, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of hidden, weight and bias in the types of these parameters."""
        pairs = zip((self.hidden, self.weight, self.bias), parameters)
        return tuple(None if total is None or like is None else total.type_as(like) for total, like in pairs)

    def add(self, rows: slice, logit_gradient: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Multiply a chunk's logit gradient [c, V] back through the head."""
        shared = logit_gradient.shape[1]
        if self.bias is not None:
            self.bias[:shared] += logit_gradient.sum(0)
        logit_gradient = logit_gradient.to(weight.dtype)  # a no-op unless the products run in half precision
        if self.hidden is not None:
            self.hidden[rows] = torch.mm(logit_gradient, weight)
        if self.weight is not None:
            _add_product(self.weight[:shared], logit_gradient.t(), hidden)


def product_operand(tensor: Tensor) -> Tensor:
    """What the matrix products read: CUDA multiplies half precision into float32, the CPU would round to half."""
    halved = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if halved and tensor.device.type == "cpu" else tensor


def project(head: Head, hidden: Tensor, out: Tensor) -> None:
    """Logits [c, V] of hidden states [c, H] into `out`."""
    if hidden.dtype != out.dtype:
        torch.mm(hidden, head.weight.t(), out_dtype=out.dtype, out=out)
    else:
        tile = CPU_TILE if out.device.type == "cpu" else out.shape[1]
        for start in range(0, out.shape[1], tile):
            words = slice(start, start + tile)
            torch.mm(hidden, head.weight[words].t(), out=out[:, words])
    if head.bias is not None:
        out.add_(head.bias)
    if head.logit_scale != 1:
        out.mul_(head.logit_scale)
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left·right, accumulated in total's type."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Σ_v left(v) right(v) of each row without a temporary: [b]."""
    return torch.bmm(left[:, None, :], right[:, :, None])[:, 0, 0]


@torch.no_grad()
def _run(hidden: Tensor, sweep: _Sweep, gradients: Gradients) -> Tensor:
    """Sweep all chunks: the summed loss; `sweep.columns` and `gradients` are filled."""
    count, vocabulary = len(sweep.targets), len(sweep.student.weight)
    student, teacher = (replace(head, weight=product_operand(head.weight)) for head in (sweep.student, sweep.teacher))
    block_size = math.ceil(sweep.chunk_size / BLOCKS_PER_CHUNK)
    student_logits, teacher_logits, *scratch = (
        hidden.new_empty((size, vocabulary), dtype=sweep.dtype)
        for size in (sweep.chunk_size, sweep.chunk_size, block_size, block_size)
    )
    loss = hidden.new_zeros((), dtype=sweep.dtype)
    for start in range(0, count, max(1, sweep.chunk_size)):
        rows = slice(start, min(start + sweep.chunk_size, count))
        size = rows.stop - start
        hidden_rows = product_operand(hidden[rows])
        project(student, hidden_rows, student_logits[:size])
        project(teacher, product_operand(sweep.teacher_hidden[rows]), teacher_logits[:size])
        for first in range(0, size, block_size):
            local = slice(first, min(first + block_size, size))
            block = _Block(slice(start + first, start + local.stop), sweep, student_logits[local], scratch)
            block.read(teacher_logits[local])
            loss += block.loss()
            block.write_columns()
            if gradients.any:
                block.write_logit_gradient()
        if gradients.any:
            gradients.add(rows, student_logits[:size], hidden_rows, student.weight)
    return loss


class _Block:
    """Some rows b of a chunk in three [b, V] buffers that change meaning as the sweep goes on.

    p         the student's logits, then its probabilities, then the gradient with respect to its logits
    logp      log p of the student, until `_read_variance` needs its room
    rewards   log q - log p (clipped where asked), then the same less its mean under p
    """

    def __init__(self, rows: slice, sweep: _Sweep, student_logits: Tensor, scratch: list[Tensor]) -> None:
        self.rows, self.sweep, self.estimator = rows, sweep, sweep.estimator
        self.p = student_logits
        self.logp, self.rewards = (buffer[: len(student_logits)] for buffer in scratch)
        self.targets = sweep.targets[rows, None]
        self.weights = sweep.token_weights[rows]
        self.rollout_logprobs = None if sweep.rollout_logprobs is None else sweep.rollout_logprobs[rows]

    def read(self, teacher_logits: Tensor) -> None:
        """Reduce both models' logits: after this, every statistic of the block is known."""
        torch.log_softmax(self.p, -1, out=self.logp)
        if (softcap := self.sweep.student.softcap) is not None:
            self.cap_slope = self.p.div(softcap).square_().neg_().add_(1)  # one more [b, V], for softcapped heads only
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
        self.baseline = self._baselines(self.estimator.baseline or "none")
        self.advantage = self.reward - self.baseline
        cap = self.estimator.importance_sampling_cap
        self.importance = importance_weight(self.student_logprob, self.rollout_logprobs, cap)

    def _at_target(self, values: Tensor) -> Tensor:
        return values.gather(1, self.targets)[:, 0]

    def _read_support(self, teacher_logp: Tensor) -> None:
        """What k tokens carry, before `rewards` overwrites `teacher_logp`: `topk`'s loss, `value_topk`'s baseline."""
        estimator, k = self.estimator, min(self.estimator.support_top_k, self.logp.shape[1])
        if estimator.divergence == "topk":
            self.support = self.logp.topk(k, dim=-1).indices  # [b, k]
            both = (self.logp, teacher_logp)
            self.support_logp, self.support_teacher_logp = (logp.gather(1, self.support) for logp in both)
        if estimator.baseline == "value_topk" or self.sweep.gradient_variance:
            by_teacher = estimator.support == "teacher"
            likeliest = (teacher_logp if by_teacher else self.logp).topk(k, dim=-1).indices
            ours, theirs = self.logp.gather(1, likeliest), teacher_logp.gather(1, likeliest)
            self.value_topk = value_on_support(ours, theirs, estimator)

    def _read_variance(self) -> None:
        """Moments of R = r - E_p[r] under the weights ω = p s, s = ‖∇_z log p‖²; `logp` lends its room."""
        if self.estimator.baseline != "optimal" and not self.sweep.gradient_variance:
            return
        purity = row_dot(self.p, self.p)[:, None]
        omega = torch.mul(self.p, 1 + purity, out=self.logp).addcmul_(self.p, self.p, value=-2)
        self.score_norm = omega.sum(-1)  # E[s]
        if self.sweep.gradient_variance:
            omega.mul_(self.rewards)
            self.first_moment = omega.sum(-1)  # E[s R]
            self.second_moment = row_dot(omega, self.rewards)  # E[s R²]
            mean = torch.mul(self.p, self.rewards, out=self.logp)
            self.squared_mean = row_dot(mean, mean)  # ‖E g‖², which no baseline changes
        else:
            self.first_moment = row_dot(omega, self.rewards)

    def _baselines(self, name: str) -> Tensor:
        if name == "none":
            return torch.zeros_like(self.value)
        if name == "constant":
            return torch.full_like(self.value, self.estimator.baseline_constant)
        if name == "value":
            return self.value
        if name == "value_topk":
            return self.value_topk
        negligible = self.score_norm < NEGLIGIBLE_GRADIENT_NORM
        return self.value + (self.first_moment / self.score_norm).masked_fill(negligible, 0)

    def _variance(self, name: str) -> Tensor:
        """E‖g‖² - ‖E g‖² with A = R - (b - E_p[r]): [b]."""
        shift = self._baselines(name) - self.value
        second = self.second_moment - 2 * shift * self.first_moment + shift.square() * self.score_norm
        return (second - self.squared_mean).clamp_min(0)

    def write_columns(self) -> None:
        for name, column in self.sweep.columns.items():
            column[self.rows] = getattr(self, name) if name in _STATISTICS else self._variance(name)

    def loss(self) -> Tensor:
        """Σ_t w_t ℓ_t of the block."""
        if self.estimator.divergence == "sampled":
            per_token = -self.importance * self.advantage * self.student_logprob
        elif self.estimator.divergence == "full":
            per_token = self.reverse_kl
        else:
            per_token = -value_on_support(self.support_logp, self.support_teacher_logp, self.estimator)
        return torch.dot(self.weights, per_token)

    def write_logit_gradient(self) -> None:
        """Σ_t w_t ∇ℓ_t with respect to hidden·weightᵀ + bias, over the student's logits."""
        if self.estimator.divergence == "sampled":
            coefficient = (self.weights * self.importance * self.advantage)[:, None]
            self.p.mul_(coefficient).scatter_add_(1, self.targets, -coefficient)
        elif self.estimator.divergence == "full":
            self.p.mul_(self.rewards).mul_(-self.weights[:, None])
        else:
            logp = self.support_logp.log_softmax(-1)
            log_ratio = logp - self.support_teacher_logp.log_softmax(-1)
            kl = (logp.exp() * log_ratio).sum(-1, keepdim=True)
            self.p.zero_().scatter_(1, self.support, self.weights[:, None] * logp.exp() * (log_ratio - kl))
        if self.sweep.student.softcap is not None:
            self.p.mul_(self.cap_slope)
        if self.sweep.student.logit_scale != 1:
            self.p.mul_(self.sweep.student.logit_scale)
