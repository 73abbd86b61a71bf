r"""The estimators from hidden states, a chunk of tokens at a time: `reference_loss` without its [N, V] tensors.

With respect to the student's logits every estimator's gradient is a dense [V] row in closed form,

    sampled   ∇_z ℓ = A (p - 1[y])  · ρ,     A = r(y) - b detached, ρ the importance weight
    full      ∇_z ℓ = p ∘ (log p - log q - KL)
    topk      the same on the support, renormalised, zero elsewhere,

so one sweep does it all: project a chunk through both heads, turn the logits into log-probabilities, read off the
statistics, overwrite a buffer with the gradient row and multiply it back through the student's head at once.
Nothing is recomputed in the backward pass (it only scales what is there) and three buffers of [chunk, V] are all
that is ever held: 3 matrix products of N·H·V with a frozen head, 4 with a trained one, for every method alike.
Storing logits for autograd instead costs 5 or more buffers of [N, V]; recomputing them costs 5 and 6 products.

A gradient formed in the forward pass exists only once, so a second backward through the same loss is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vopd_recipes.estimators import (
    NEGLIGIBLE_GRADIENT_NORM,
    Baseline,
    Estimator,
    TokenStats,
    importance_weight,
    value_on_support,
    variance_name,
)

# Bytes of one [chunk, V] buffer. Larger chunks make better matrix products until the cores saturate: on 2 CPU
# cores 256 tokens of a 151,936-word vocabulary are within 5 % of the best, 64 tokens cost a third more.
BUFFER_BYTES = {"cpu": 160 * 2**20, "cuda": 640 * 2**20}


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
        student_bias: [V], with gradient where required.
        teacher_bias: [V'].
        token_weights: [N] weights w of loss = Σ_t w_t ℓ_t; default 1/N.
        rollout_logprobs: [N] log-probabilities under the sampler, for the importance weight.
        student_logit_scale: logits are multiplied by it, likewise the teacher's.
        teacher_logit_scale: see `student_logit_scale`.
        student_softcap: logits are c·tanh(logits / c), likewise the teacher's.
        teacher_softcap: see `student_softcap`.
        chunk_size: tokens per chunk; default by device memory and vocabulary.
        gradient_variance: also compute the exact gradient variances (about eight more passes over a chunk).

    Returns:
        The scalar loss, in float32 (float64 for float64 inputs), and the `TokenStats`.

    Raises:
        RuntimeError: at a second backward through the same loss.
    """
    shared = min(len(student_weight), len(teacher_weight))
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
    sweep = _Sweep(
        teacher_hidden.detach(), teacher, targets, estimator, token_weights.detach().to(dtype),
        rollout_logprobs, student_logit_scale, student_softcap, min(chunk_size, max(count, 1)),
        gradient_variance, dtype,
    )  # fmt: skip
    with torch.autocast(device.type, enabled=False):
        loss, *columns = _FusedLoss.apply(student_hidden, student_weight, student_bias, sweep)
    return loss, _token_stats(dict(zip(_columns(gradient_variance), columns)), estimator)


_STATISTICS = (
    "student_logprob", "teacher_logprob", "reward", "baseline", "advantage", "reverse_kl", "entropy"
)  # fmt: skip


def _columns(gradient_variance: bool) -> tuple[str, ...]:
    return _STATISTICS + (get_args(Baseline) if gradient_variance else ())


def _token_stats(columns: dict[str, Tensor], estimator: Estimator) -> TokenStats:
    statistics = {name: columns[name] for name in _STATISTICS}
    if len(columns) == len(_STATISTICS):
        return TokenStats(**statistics)
    variances = {name: columns[name] for name in get_args(Baseline)}
    variances["full"] = variances["topk"] = torch.zeros_like(statistics["reward"])
    return TokenStats(
        **statistics,
        gradient_variance=variances[variance_name(estimator)],
        gradient_variances=variances,
    )


@dataclass(frozen=True)
class _Sweep:
    """Everything a sweep reads besides the student's differentiable tensors."""

    teacher_hidden: Tensor  # [N, H']
    teacher: Head
    targets: Tensor  # [N]
    estimator: Estimator
    token_weights: Tensor  # [N]
    rollout_logprobs: Tensor | None  # [N]
    student_logit_scale: float
    student_softcap: float | None
    chunk_size: int
    gradient_variance: bool
    dtype: torch.dtype


class _FusedLoss(torch.autograd.Function):
    """(loss, statistics…) with the gradients already formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, sweep: _Sweep) -> tuple[Tensor, ...]:
        student = Head(weight, bias, sweep.student_logit_scale, sweep.student_softcap)
        gradients = _Gradients.allocate(ctx.needs_input_grad, hidden, weight, bias, sweep.dtype)
        loss, columns = _run(hidden, student.shared(len(sweep.teacher.weight)), sweep, gradients)
        ctx.gradients = gradients.cast(hidden, weight, bias)
        ctx.mark_non_differentiable(*columns)
        return loss, *columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "fused_loss: its gradients were already used; compute the loss again instead of retain_graph"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients]
        return *scaled, None


@dataclass
class _Gradients:
    """Accumulators for what is asked for; a frozen head has no weight and bias gradient."""

    hidden: Tensor | None  # [N, H]
    weight: Tensor | None  # [V, H], in the accumulation type
    bias: Tensor | None  # [V], in the accumulation type

    @staticmethod
    def allocate(
        needed: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> _Gradients:
        return _Gradients(
            torch.empty_like(hidden) if needed[0] else None,
            torch.zeros_like(weight, dtype=dtype) if needed[1] else None,
            torch.zeros_like(bias, dtype=dtype) if needed[2] and bias is not None else None,
        )

    @property
    def any(self) -> bool:
        return any(gradient is not None for gradient in (self.hidden, self.weight, self.bias))

    def cast(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
        return (
            self.hidden,
            None if self.weight is None else self.weight.to(weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )

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


def _product_operand(tensor: Tensor) -> Tensor:
    """What the matrix products read: CUDA multiplies half precision into float32, the CPU would round to half."""
    halved = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if halved and tensor.device.type == "cpu" else tensor


def _project(head: Head, hidden: Tensor, out: Tensor) -> Tensor:
    """Logits [c, V] of hidden states [c, H] into `out`."""
    if hidden.dtype == out.dtype:
        torch.mm(hidden, head.weight.t(), out=out)
    else:
        torch.mm(hidden, head.weight.t(), out_dtype=out.dtype, out=out)
    if head.bias is not None:
        out.add_(head.bias)
    if head.logit_scale != 1:
        out.mul_(head.logit_scale)
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)
    return out


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left·right, accumulated in total's type."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def _row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Σ_v left(v) right(v) of each row without a temporary: [c]."""
    return torch.bmm(left[:, None, :], right[:, :, None])[:, 0, 0]


@torch.no_grad()
def _run(hidden: Tensor, student: Head, sweep: _Sweep, gradients: _Gradients) -> tuple[Tensor, list[Tensor]]:
    """Sweep all chunks: the summed loss and the statistics' columns, each [N] float32."""
    vocabulary, count = len(student.weight), len(sweep.targets)
    student = Head(_product_operand(student.weight), student.bias, student.logit_scale, student.softcap)
    teacher = sweep.teacher
    teacher = Head(_product_operand(teacher.weight), teacher.bias, teacher.logit_scale, teacher.softcap)
    buffers = [torch.empty(sweep.chunk_size, vocabulary, dtype=sweep.dtype, device=hidden.device) for _ in range(3)]
    columns = [
        torch.empty(count, dtype=torch.float32, device=hidden.device) for _ in _columns(sweep.gradient_variance)
    ]
    loss = torch.zeros((), dtype=sweep.dtype, device=hidden.device)
    for start in range(0, count, sweep.chunk_size):
        rows = slice(start, min(start + sweep.chunk_size, count))
        hidden_rows = _product_operand(hidden[rows])
        chunk = _Chunk(rows, sweep, [buffer[: rows.stop - start] for buffer in buffers])
        chunk.read(student, hidden_rows, teacher, _product_operand(sweep.teacher_hidden[rows]))
        loss += chunk.loss()
        for column, values in zip(columns, chunk.columns()):
            column[rows] = values
        if gradients.any:
            gradients.add(rows, chunk.logit_gradient(), hidden_rows, student.weight)
    return loss, columns


class _Chunk:
    """One chunk of c tokens in three [c, V] buffers that change meaning as the sweep goes on.

    logp      log p of the student, until `logit_gradient` needs its room
    rewards   log q - log p (clipped where asked), then the same less its mean under p
    p         the student's probabilities, until the gradient of `sampled` and `topk` overwrites them
    """

    def __init__(self, rows: slice, sweep: _Sweep, buffers: list[Tensor]) -> None:
        self.estimator, self.sweep = sweep.estimator, sweep
        self.logp, self.rewards, self.p = buffers
        self.targets = sweep.targets[rows, None]
        self.weights = sweep.token_weights[rows]
        self.rollout_logprobs = None if sweep.rollout_logprobs is None else sweep.rollout_logprobs[rows]

    def read(self, student: Head, hidden: Tensor, teacher: Head, teacher_hidden: Tensor) -> None:
        """Project through both heads and reduce: after this, every statistic of the chunk is known."""
        logits = _project(student, hidden, out=self.p)
        torch.log_softmax(logits, -1, out=self.logp)
        self.log_normaliser = (logits[:, :1] - self.logp[:, :1]) if student.softcap else None
        teacher_logp = torch.log_softmax(_project(teacher, teacher_hidden, out=self.p), -1, out=self.rewards)
        self.target_logp = self._at_target(self.logp)
        self.teacher_logprob = self._at_target(teacher_logp)
        self._read_support(teacher_logp)

        torch.exp(self.logp, out=self.p)
        self.entropy = -_row_dot(self.p, self.logp)
        self.rewards.sub_(self.logp)
        self.value = _row_dot(self.p, self.rewards)
        self.reverse_kl = -self.value
        if (floor := self.estimator.reward_floor) is not None:
            self.value = _row_dot(self.p, self.rewards.clamp_min_(floor))
        self.reward = self._at_target(self.rewards)
        self.rewards.sub_(self.value[:, None])
        self._read_variance()
        self.baseline = self._baselines(self.estimator.baseline or "none")
        self.advantage = self.reward - self.baseline
        self.importance = importance_weight(
            self.target_logp, self.rollout_logprobs, self.estimator.importance_sampling_cap
        )

    def _at_target(self, values: Tensor) -> Tensor:
        return values.gather(1, self.targets)[:, 0]

    def _read_support(self, teacher_logp: Tensor) -> None:
        """The k most likely tokens and both log-probabilities there, before `rewards` overwrites the teacher's."""
        estimator = self.estimator
        if not (estimator.divergence == "topk" or estimator.baseline == "value_topk" or self.sweep.gradient_variance):
            return
        by_teacher = estimator.baseline_support == "teacher" and estimator.divergence != "topk"
        k = min(estimator.support_top_k, self.logp.shape[1])
        self.support = (teacher_logp if by_teacher else self.logp).topk(k, dim=-1).indices  # [c, k]
        self.support_logp = self.logp.gather(1, self.support)
        self.support_teacher_logp = teacher_logp.gather(1, self.support)

    def _read_variance(self) -> None:
        """Moments of R = r - E_p[r] under the weights ω = p s, s = ‖∇_z log p‖²; `logp` lends its room."""
        if self.estimator.baseline != "optimal" and not self.sweep.gradient_variance:
            return
        kept = self.logp.clone() if self._needs_logits else None
        purity = _row_dot(self.p, self.p)[:, None]
        omega = torch.mul(self.p, 1 + purity, out=self.logp).addcmul_(self.p, self.p, value=-2)
        self.score_norm = omega.sum(-1)  # E[s]
        if self.sweep.gradient_variance:
            omega.mul_(self.rewards)
            self.first_moment = omega.sum(-1)  # E[s R]
            self.second_moment = _row_dot(omega, self.rewards)  # E[s R²]
            mean = torch.mul(self.p, self.rewards, out=self.logp)
            self.squared_mean = _row_dot(mean, mean)  # ‖E g‖², which no baseline changes
        else:
            self.first_moment = _row_dot(omega, self.rewards)
        if kept is not None:
            self.logp.copy_(kept)

    @property
    def _needs_logits(self) -> bool:
        return self.sweep.student_softcap is not None

    def _baselines(self, name: str) -> Tensor:
        if name == "none":
            return torch.zeros_like(self.value)
        if name == "constant":
            return torch.full_like(self.value, self.estimator.baseline_constant)
        if name == "value":
            return self.value
        if name == "value_topk":
            return value_on_support(self.support_logp, self.support_teacher_logp, self.estimator)
        negligible = self.score_norm < NEGLIGIBLE_GRADIENT_NORM
        return self.value + (self.first_moment / self.score_norm).masked_fill(negligible, 0)

    def _variance(self, name: str) -> Tensor:
        """E‖g‖² - ‖E g‖² with A = R - (b - E_p[r]): [c]."""
        shift = self._baselines(name) - self.value
        second = self.second_moment - 2 * shift * self.first_moment + shift.square() * self.score_norm
        return (second - self.squared_mean).clamp_min(0)

    def columns(self) -> list[Tensor]:
        """The statistics in the order of `_columns`."""
        columns = [
            self.target_logp, self.teacher_logprob, self.reward, self.baseline, self.advantage,
            self.reverse_kl, self.entropy,
        ]  # fmt: skip
        if self.sweep.gradient_variance:
            columns += [self._variance(name) for name in get_args(Baseline)]
        return columns

    def loss(self) -> Tensor:
        """Σ_t w_t ℓ_t of the chunk."""
        if self.estimator.divergence == "sampled":
            per_token = -self.importance * self.advantage * self.target_logp
        elif self.estimator.divergence == "full":
            per_token = self.reverse_kl
        else:
            per_token = -value_on_support(self.support_logp, self.support_teacher_logp, self.estimator)
        return torch.dot(self.weights, per_token)

    def logit_gradient(self) -> Tensor:
        """Σ_t w_t ∇ℓ_t with respect to hidden·weightᵀ + bias, [c, V], in one of the buffers."""
        if self.estimator.divergence == "sampled":
            gradient = self._sampled_gradient(self.weights * self.importance * self.advantage)
        elif self.estimator.divergence == "full":
            gradient = self.rewards.mul_(self.p).mul_(-self.weights[:, None])
        else:
            gradient = self._topk_gradient()
        if (cap := self.sweep.student_softcap) is not None:
            slope = self.logp.add_(self.log_normaliser).div_(cap).square_().neg_().add_(1)
            gradient.mul_(slope)
        if self.sweep.student_logit_scale != 1:
            gradient.mul_(self.sweep.student_logit_scale)
        return gradient

    def _sampled_gradient(self, coefficient: Tensor) -> Tensor:
        gradient = self.p.mul_(coefficient[:, None])
        return gradient.scatter_add_(1, self.targets, -coefficient[:, None])

    def _topk_gradient(self) -> Tensor:
        logp = self.support_logp.log_softmax(-1)
        log_ratio = logp - self.support_teacher_logp.log_softmax(-1)
        kl = (logp.exp() * log_ratio).sum(-1, keepdim=True)
        on_support = self.weights[:, None] * logp.exp() * (log_ratio - kl)
        return self.p.zero_().scatter_(1, self.support, on_support)
