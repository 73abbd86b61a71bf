"""Three steps of the trainer itself, looked at.

    step 1    rollout, the sampler's gap; the loss against its definition; a step that moves the student far
    step 2    hand-over, rollout, the gap again: a sampler that kept the old weights would be off by what step 1 moved
    step 3    a packed row as long as the recipe's may get, and the memory that it takes

Completions of the first two are short: what they cost grows with their length, and a minute has to do. The weights
that come of it are nobody's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vopd_recipes.loss import Estimator, Head, TokenStats, fused_loss, reference_loss
from vopd_recipes.models import causal_lm_of, evaluating, scale_logits
from vopd_recipes.packing import MicroBatch, Sample, pack
from vopd_recipes.planner import LiveBytes
from vopd_recipes.rollout import VLLMRollout
from vopd_recipes.training import VOPDTrainer, first_gap

STEPS = 3
_COMPARED = 64  # tokens of the first row: the definition holds [N, V]
_SECONDS = 40.0  # that the row of step 3 may take


@dataclass
class Seen:
    """What the steps showed."""

    gaps: list[float] = field(default_factory=list)  # of each rollout, in nats per token
    moved: float = 0.0  # what the gap of step 2 would be without a hand-over
    loss_errors: tuple[float, float] | None = None  # relative, of the value and of its gradient
    attention: set[str] = field(default_factory=set)  # operators of packed rows
    lines: list[dict[str, float]] = field(default_factory=list)  # a step's log each
    bytes: int = 0  # the most there were in step 3
    completion: int = 0  # tokens of each completion in its row
    sequences: int = 0
    short: int = 0  # tokens of each completion before


class Trial(VOPDTrainer):
    """A `VOPDTrainer` that looks at what it does. Its recipe has `max_steps: 3` and short completions.

    Args:
        args: as the trainer's.
        longest: (tokens of the longest prompt, tokens of the longest completion) there may be.
        teacher_prompt: tokens of the longest prompt of a privileged teacher's own, or `None`.
        kwargs: as the trainer's.
    """

    def __init__(self, *args: Any, longest: tuple[int, int], teacher_prompt: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen = Seen(short=self.args.max_completion_length)
        self.longest = longest
        self._teacher_prompt = teacher_prompt
        self._before: list[Sample] = []

    def sample(self, prompts: list[dict[str, Any]], step: int, generations: int) -> list[Sample]:
        """Look at the sampler after each rollout, and at what computes the loss after the first. Collective."""
        if self._before:
            self.seen.moved = first_gap(self, self._before)
        samples = super().sample(prompts, step, generations)
        with _AttentionOperators() as operators:
            self.seen.gaps.append(first_gap(self, samples))
        if not self._before:
            self.seen.attention = operators.names
            self.seen.loss_errors = self._loss_errors(samples)
        self._before = samples
        return samples

    def _check_sampler(self, gap: float, largest: float) -> None:
        """It is reported, and not the end."""

    def _loss_errors(self, samples: list[Sample]) -> tuple[float, float]:
        """On a row of real completions, the largest of all processes."""
        batch = pack(samples[:2], 1)[0].to(self.accelerator.device)
        oracle = _Oracle()
        with evaluating(self.model_wrapped), torch.no_grad():
            self.student_loss(self.model_wrapped, batch, oracle, torch.zeros_like(batch.rollout_logprobs), False)
        errors = torch.tensor(oracle.errors, dtype=torch.float32, device=self.accelerator.device)
        value, gradient = self.accelerator.gather(errors[None]).amax(0).tolist()
        return value, gradient

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[dict[str, Any]]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Real ones twice, then the longest row there may be, of all teachers; the window's other rows are short."""
        if self.state.global_step < STEPS - 1:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        prompts = self.longest[0]
        self.seen.sequences, self.seen.completion = self._affordable()
        generator = torch.Generator().manual_seed(0)
        teachers = cycle(self.teachers)
        lengths = prompts, self.seen.completion, self._teacher_prompt or 0
        rows = [self._row(*lengths, next(teachers), generator) for _ in range(self.seen.sequences)]
        self._window = [*rows, *(self._row(2, 1, 0, next(teachers), generator) for _ in range(num_batches - 1))]
        batches = [pack(rows, 1)[0], *(pack([row], 1)[0] for row in self._window[len(rows) :])]
        self.metrics.add_completions(self._window)
        self._window_start = time.perf_counter()
        with self.metrics.timed("teacher_window"):
            views = self.teacher_views(batches)
        tokens = torch.tensor(sum(len(batch.targets) for batch in batches), device=device)
        window = [{"micro_batch": batch, "teacher_view": view} for batch, view in zip(batches, views)]
        return window, self.accelerator.reduce(tokens, "sum")

    def _affordable(self) -> tuple[int, int]:
        """Sequences, and tokens of their completions, of a row that takes a minute at most: all of the recipe's
        where that can be, from what the short rows took.
        """
        (prompt, completion), line = self.longest, self.seen.lines[-1]
        prompt = max(prompt, self._teacher_prompt or 0)
        sequences = int(self.args.per_device_train_batch_size) * self.args.num_generations
        tokens = sum(sample.length for sample in self._before)
        affordable = int(_SECONDS * tokens / (line["time/teacher"] + line["time/student"]))
        sequences = max(1, min(sequences, affordable // (prompt + min(completion, self.seen.short))))
        return sequences, max(1, min(completion, affordable // sequences - prompt))

    def _row(self, prompt: int, completion: int, read: int, teacher: str | None, generator: torch.Generator) -> Sample:
        end = prompt + completion
        ids = torch.randint(self.vocabulary, (end + read,), generator=generator).tolist()
        return Sample(0, ids[:prompt], ids[prompt:end], [0.0] * completion, False, teacher, ids[end:] or None)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The long row's with its memory."""
        if self.state.global_step < STEPS - 1 or len(inputs["micro_batch"].targets) < self.seen.completion:
            return super().training_step(model, inputs, num_items_in_batch)
        with self._measured():
            return super().training_step(model, inputs, num_items_in_batch)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Bytes of tensors: on a GPU those of PyTorch's allocator, elsewhere counted one by one."""
        device = self.accelerator.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            yield
            asleep = self.rollout.counted_bytes if isinstance(self.rollout, VLLMRollout) else 0
            self.seen.bytes = max(self.seen.bytes, torch.cuda.max_memory_allocated(device) - asleep)
            return
        there = {tensor.untyped_storage()._cdata: tensor for tensor in self._tensors()}
        with LiveBytes(iter(there.values())) as live:
            yield
        always = sum(tensor.untyped_storage().nbytes() for tensor in there.values())
        self.seen.bytes = max(self.seen.bytes, always + live.peak)

    def _tensors(self) -> Iterator[Tensor]:
        """Weights, their gradients, the optimiser's moments, the teacher."""
        local = [getattr(teacher, "model", None) for teacher in self.teachers.values()]
        for model in (self.student, *(model for model in local if isinstance(model, nn.Module))):
            yield from model.parameters()
            yield from model.buffers()
        yield from (parameter.grad for parameter in self.student.parameters() if parameter.grad is not None)
        for state in self.optimizer.state.values() if self.optimizer else ():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep what a step says."""
        super().log(logs, start_time)
        if "loss" in logs:
            self.seen.lines.append(dict(logs))


class _Oracle:
    """A `TeacherView` that holds `fused_loss` against its definition, where the run computes it and in its type.

    The teacher is the student one token later: any two distributions will do, and these are at hand wherever the
    real teacher lives.
    """

    errors = (float("nan"), float("nan"))

    def student_loss(
        self, hidden: Tensor, head: Head, batch: MicroBatch, estimator: Estimator, weights: Tensor, variance: bool
    ) -> tuple[Tensor, TokenStats]:
        frozen = replace(head, weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
        states, targets = hidden.detach()[:_COMPARED], batch.targets[:_COMPARED]
        logprobs = batch.rollout_logprobs[:_COMPARED]
        self.errors = compare(states, frozen, states.roll(1, 0), frozen, targets, estimator, logprobs)
        return fused_loss(hidden, head, hidden.detach(), frozen, batch.targets, Estimator(), token_weights=weights)


@torch.enable_grad()
def compare(
    hidden: Tensor, head: Head, teacher_hidden: Tensor, teacher_head: Head, targets: Tensor, estimator: Estimator,
    rollout_logprobs: Tensor,
) -> tuple[float, float]:  # fmt: skip
    """Relative error of `fused_loss` against `reference_loss` in float32: of its value, and of its gradient [N, H].

    Args:
        hidden: [N, H] of the student, in the type of the run; `teacher_hidden` alike.
        head: the student's; `teacher_head` alike.
        teacher_hidden: see hidden.
        teacher_head: see head.
        targets: [N] sampled tokens.
        estimator: the recipe's.
        rollout_logprobs: [N] of them.
    """
    ours = hidden.detach().clone().requires_grad_()
    loss, _ = fused_loss(
        ours, head, teacher_hidden, teacher_head, targets, estimator, rollout_logprobs=rollout_logprobs
    )
    (gradient,) = torch.autograd.grad(loss, ours)
    exact = hidden.detach().float().requires_grad_()
    with torch.autocast(hidden.device.type, enabled=False):
        student, teacher = _logits(exact, head), _logits(teacher_hidden, teacher_head)
        expected, _ = reference_loss(student, teacher, targets, estimator, rollout_logprobs=rollout_logprobs)
        (wanted,) = torch.autograd.grad(expected, exact)
    size = wanted.norm().clamp_min(torch.finfo(torch.float32).tiny)
    value = (loss.float() - expected).abs() / expected.abs().clamp_min(1e-2)
    return value.item(), ((gradient.float() - wanted).norm() / size).item()


def _logits(hidden: Tensor, head: Head) -> Tensor:
    bias = None if head.bias is None else head.bias.float()
    return scale_logits(nn.functional.linear(hidden.float(), head.weight.float(), bias), head)


class _AttentionOperators(TorchDispatchMode):
    """Names of the fused attention that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it is called."""
        name = str(func)
        if "attention" in name or "attn" in name:
            self.names.add(name.removesuffix(".default").split(".")[-1].strip("_"))
        return func(*args, **(kwargs or {}))


def implementation_of(trainer: VOPDTrainer) -> str:
    """Of packed rows' attention, by the name that a recipe gives it."""
    return str(causal_lm_of(trainer.student).config._attn_implementation)
