"""One pass over completion tokens, a chunk at a time, that leaves a loss and its gradients: what both paths share.

A chunk of hidden states is projected through the student's head; a *reader* turns the logits into the chunk's loss and
statistics and overwrites them with their gradient; that is multiplied back through the head at once. Nothing is
recomputed in the backward pass, it only scales what is there. `fused.py` and `from_logprobs.py` are the two readers.

A gradient formed in the forward pass exists only once, so a second backward through the same loss is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vopd_recipes.loss.definition import STATISTICS
from vopd_recipes.loss.head import Head

# Bytes of one [chunk, V] buffer: on a CPU 276 tokens of 151,936 vocabulary entries. Larger chunks make better matrix
# products until the cores saturate (`python scripts/benchmark_loss.py --tables chunks`).
BUFFER_BYTES = {"cpu": 160 * 2**20, "cuda": 640 * 2**20}
# Vocabulary entries per product where a CPU projects a chunk: 15 to 25 % faster than the whole vocabulary at once.
CPU_TILE = 1024


@dataclass(frozen=True)
class Sweep:
    """What is known of N tokens before the sweep, and the columns that it fills.

    `targets` and `token_weights` are [N], `rollout_logprobs` [N] or `None`, in the type that is accumulated in;
    `columns` are the statistics by name, [N] float32 each.
    """

    head: Head  # the student's, detached, of the shared vocabulary
    targets: Tensor
    token_weights: Tensor
    rollout_logprobs: Tensor | None
    chunk_size: int
    dtype: torch.dtype
    columns: dict[str, Tensor]

    @staticmethod
    def over(
        hidden: Tensor,
        head: Head,
        targets: Tensor,
        token_weights: Tensor | None,
        rollout_logprobs: Tensor | None,
        chunk_size: int | None,
        columns: tuple[str, ...] = (),
    ) -> Sweep:
        """Defaults filled in: weights of 1/N, and chunks of one size that fill `BUFFER_BYTES` at most.

        Args:
            hidden: the student's, [N, H].
            head: of the shared vocabulary.
            targets: [N].
            token_weights: [N] or `None`.
            rollout_logprobs: [N] or `None`.
            chunk_size: tokens per chunk at most, or `None`.
            columns: statistics besides `STATISTICS`.
        """
        count, device = len(targets), hidden.device
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        if token_weights is None:
            token_weights = torch.full((count,), 1 / max(count, 1), dtype=dtype, device=device)
        if chunk_size is None:
            budget = BUFFER_BYTES[device_kind(hidden)]
            chunk_size = max(1, budget // (len(head.weight) * dtype.itemsize))
        return Sweep(
            head.detached(),
            targets,
            token_weights.detach().to(dtype),
            None if rollout_logprobs is None else rollout_logprobs.detach().to(dtype),
            math.ceil(count / max(1, math.ceil(count / chunk_size))),
            dtype,
            {name: torch.empty(count, dtype=torch.float32, device=device) for name in (*STATISTICS, *columns)},
        )


# Overwrites the student's logits [c, V] of some rows with the gradient of its loss, which it returns.
Reader = Callable[[slice, Tensor, bool], Tensor]


def swept_loss(hidden: Tensor, head: Head, sweep: Sweep, read: Reader) -> Tensor:
    """The scalar loss of all chunks, with the gradients of `hidden` and of the head's weight and bias formed.

    Without gradients enabled none is formed, whatever the tensors require.

    Args:
        hidden: the student's, [N, H], with gradient.
        head: the student's, whole; gradients of weight and bias are formed only where they are required.
        sweep: of the same tokens.
        read: called once for each chunk with its rows, its logits and whether a gradient is wanted.

    Raises:
        RuntimeError: at a second backward through the same loss.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        if not torch.is_grad_enabled():  # a Function would be told only what its inputs require
            return _run(hidden, sweep, read, _Gradients(None, None, None))
        return _SweptLoss.apply(hidden, head.weight, head.bias, sweep, read)


class _SweptLoss(torch.autograd.Function):
    """The loss, with its gradients already formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, sweep: Sweep, read: Reader) -> Tensor:
        gradients = _Gradients.allocate(ctx.needs_input_grad, hidden, weight, bias, sweep.dtype)
        loss = _run(hidden, sweep, read, gradients)
        ctx.gradients = gradients.cast(hidden, weight, bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("loss: gradients already used; compute the loss again instead of retain_graph")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if gradient is None else gradient.mul_(grad_loss) for gradient in gradients]
        return *scaled, None, None


@torch.no_grad()
def _run(hidden: Tensor, sweep: Sweep, read: Reader, gradients: _Gradients) -> Tensor:
    count = len(sweep.targets)
    head = replace(sweep.head, weight=product_operand(sweep.head.weight))
    logits = hidden.new_empty((sweep.chunk_size, len(head.weight)), dtype=sweep.dtype)
    loss = hidden.new_zeros((), dtype=sweep.dtype)
    for start in range(0, count, max(1, sweep.chunk_size)):
        rows = slice(start, min(start + sweep.chunk_size, count))
        chunk, hidden_rows = logits[: rows.stop - start], product_operand(hidden[rows])
        project(head, hidden_rows, chunk)
        loss += read(rows, chunk, gradients.any)
        if gradients.any:
            gradients.add(rows, chunk, hidden_rows, head.weight)
    return loss


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


def device_kind(tensor: Tensor) -> str:
    """`cpu` or `cuda`, as the sizes of chunks and blocks know devices."""
    return "cpu" if tensor.device.type == "cpu" else "cuda"


def product_operand(tensor: Tensor) -> Tensor:
    """What the matrix products read: CUDA multiplies half precision into float32, the CPU would round to half."""
    halved = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if halved and tensor.device.type == "cpu" else tensor


def project(head: Head, hidden: Tensor, out: Tensor) -> None:
    """Logits [c, V] of hidden states [c, H] into `out`; both operands as `product_operand` has them."""
    if hidden.dtype != out.dtype:
        torch.mm(hidden, head.weight.t(), out_dtype=out.dtype, out=out)
    else:
        tile = CPU_TILE if out.device.type == "cpu" else out.shape[1]
        for start in range(0, out.shape[1], tile):
            entries = slice(start, start + tile)
            torch.mm(hidden, head.weight[entries].t(), out=out[:, entries])
    if head.bias is not None:
        out.add_(head.bias)
    if head.logit_scale != 1:
        out.mul_(head.logit_scale)
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)


def scale_back(head: Head, gradient: Tensor, cap_slope: Tensor | None) -> None:
    """The gradient with respect to logits becomes that with respect to hidden·weightᵀ + bias, in place.

    Args:
        head: whose scale and soft cap are undone.
        gradient: [c, V].
        cap_slope: `softcap_slope` of the same logits.
    """
    if cap_slope is not None:
        gradient.mul_(cap_slope)
    if head.logit_scale != 1:
        gradient.mul_(head.logit_scale)


def softcap_slope(head: Head, logits: Tensor) -> Tensor | None:
    """1 - (logits/c)², the derivative of c·tanh(·/c), [c, V]; `None` without a soft cap."""
    return None if head.softcap is None else logits.div(head.softcap).square_().neg_().add_(1)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left·right, accumulated in total's type."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Σ_v left(v) right(v) of each row without a temporary: [b]."""
    if torch.compiler.is_compiling():  # into one reduction with what makes left and right
        return (left * right).sum(-1)
    return torch.bmm(left[:, None, :], right[:, :, None])[:, 0, 0]
