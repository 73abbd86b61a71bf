"""The loop: rollout → teacher → loss, on top of transformers.Trainer.

`get_batch_samples` is called once per optimiser step with the whole accumulation window of prompts. That is where the
student samples, where the completions are packed into as many micro-batches as the window has, and where the tokens of
the window are counted over all processes: the loss is the mean over those tokens, whatever the split over devices and
micro-batches. No global random state is touched there, so that a resumed run repeats an undisturbed one.

The loss runs inside the wrapped model's forward and through the head's own module: the forward of both is redirected
for the length of a call. DDP, ZeRO and FSDP do their gathering and reducing in the hooks of exactly these two calls;
using the head's weight beside them, or the model inside its wrapper, trains something else without an error.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer

from vopd_recipes.attention import packed_arguments
from vopd_recipes.checkpoints import keep_newest, last_complete_checkpoint, mark_complete
from vopd_recipes.completions import RECORDED, write_completions
from vopd_recipes.config import VOPDConfig
from vopd_recipes.estimators import TokenStats
from vopd_recipes.fused import fused_loss
from vopd_recipes.grading import MathGrader, grade_choice
from vopd_recipes.metrics import StepMetrics
from vopd_recipes.models import causal_lm_of, end_of_sequence_ids, head_of, hidden_states, shared_vocabulary
from vopd_recipes.packing import MicroBatch, Sample, pack
from vopd_recipes.report import plot_training
from vopd_recipes.rollout import RolloutEngine, Sampling, TransformersRollout


class TrainingStopped(RuntimeError):
    """The run cannot go on; one line says at which step, why, and what is left."""


class VOPDTrainer(Trainer):
    """On-policy distillation of `model` from `teacher`.

    Args:
        model: the student.
        teacher: frozen, in evaluation mode.
        args: estimator, sampling and everything that `transformers.TrainingArguments` has.
        processing_class: the student's tokenizer.
        answer_format: how held-out answers are graded, `math` or `choice`.
        kwargs: `train_dataset` and `eval_dataset` with the columns of `prompts.build_prompts`, callbacks.
    """

    args: VOPDConfig
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        args: VOPDConfig,
        processing_class: PreTrainedTokenizerBase,
        answer_format: str = "math",
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:  # several GPUs and one process: DataParallel would copy the model past the redirected loss
            args._n_gpu = 1
        super().__init__(
            model=model, args=args, processing_class=processing_class, data_collator=_as_they_are, **kwargs
        )
        self.teacher = teacher.to(self.accelerator.device)
        self.tokenizer = processing_class
        self.estimator = args.estimator
        self.answer_format = answer_format
        self.vocabulary = shared_vocabulary(model, teacher)
        self.output_dir = Path(str(args.output_dir))
        self.metrics = StepMetrics(self.accelerator, args.importance_sampling_cap)
        self.rollout: RolloutEngine = self._build_rollout()
        self._window: list[Sample] = []  # completions of the current step, until they are written
        self._window_start = 0.0

    @property
    def student(self) -> nn.Module:
        """The student, outside any distributed wrapper."""
        return self.accelerator.unwrap_model(self.model)

    # Rollouts -------------------------------------------------------------------------------------------------------

    def _build_rollout(self) -> RolloutEngine:
        return TransformersRollout(
            model=lambda: self.student,
            eos_token_ids=end_of_sequence_ids(self.student, self.tokenizer),
            vocabulary=self.vocabulary,
            sampling=Sampling(self.args.temperature, self.args.top_p, self.args.top_k),
            batch_size=self.args.rollout_batch_size,
            progress=self.is_local_process_zero() and not self.args.disable_tqdm,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[dict[str, Any]]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, MicroBatch]], Tensor]:
        """Sample and pack one accumulation window: its micro-batches, and its tokens over all processes."""
        if self.state.global_step >= self.state.max_steps:  # a finished run, resumed: the Trainer would step once more
            return [], torch.zeros((), device=device)
        prompts = [row for _, batch in zip(range(num_batches), epoch_iterator) for row in batch]
        with self.metrics.timed("rollout"):
            samples = self._sample(prompts, self.state.global_step, self.args.num_generations)
        self.metrics.add_completions(samples)
        self._window = samples
        micro_batches = pack([sample for sample in samples if self._is_trained_on(sample)], num_batches)
        tokens = torch.tensor(sum(len(batch.targets) for batch in micro_batches), device=device)
        self._window_start = time.perf_counter()
        return [{"micro_batch": batch} for batch in micro_batches], self.accelerator.reduce(tokens, "sum")

    def _sample(self, prompts: list[dict[str, Any]], step: int, generations: int) -> list[Sample]:
        rows = [(row, generation) for row in prompts for generation in range(generations)]
        seeds = [rollout_seed(self.args.seed, step, row["prompt_id"], generation) for row, generation in rows]
        with _evaluating(self.student), self.accelerator.autocast():
            completions = self.rollout.generate(
                [row["input_ids"] for row, _ in rows], seeds, self.args.max_completion_length
            )
        return [
            Sample(row["prompt_id"], row["input_ids"], completion.token_ids, completion.logprobs, completion.finished)
            for (row, _), completion in zip(rows, completions)
        ]

    def _is_trained_on(self, sample: Sample) -> bool:
        return sample.finished or not self.args.mask_truncated_completions

    # Loss -----------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The micro-batch's share of the mean over the window's tokens, scaled for averaging over processes."""
        batch = inputs["micro_batch"].to(self.accelerator.device)
        tokens = torch.as_tensor(num_items_in_batch, device=self.accelerator.device).clamp_min(1)
        weights = torch.ones_like(batch.rollout_logprobs) * (self.accelerator.num_processes / tokens)
        with self.metrics.timed("teacher"):
            teacher_hidden = self._teacher_states(batch)
        loss, stats = self._student_loss(model, batch, teacher_hidden, weights, self.args.log_gradient_variance)
        self.metrics.add_tokens(stats, batch.rollout_logprobs)
        batch.record({name: getattr(stats, name) for name in RECORDED})
        return loss

    @torch.no_grad()
    def _teacher_states(self, batch: MicroBatch) -> Tensor:
        return self._completion_states(self.teacher, batch).to(head_of(self.teacher).weight.dtype)

    def _student_loss(
        self, model: nn.Module, batch: MicroBatch, teacher_hidden: Tensor, weights: Tensor, gradient_variance: bool
    ) -> tuple[Tensor, TokenStats]:
        """One forward of the wrapped student, with the loss in place of its head."""
        unwrapped = self.accelerator.unwrap_model(model)
        teacher, student = head_of(self.teacher), head_of(unwrapped)
        head = causal_lm_of(unwrapped).get_output_embeddings()
        collected: list[TokenStats] = []

        def loss_at_head(hidden: Tensor) -> Tensor:
            dtype = _product_dtype(hidden, head.weight)
            loss, stats = fused_loss(
                hidden.to(dtype),
                head.weight.to(dtype),
                teacher_hidden,
                teacher.weight,
                batch.targets,
                self.estimator,
                student_bias=head.bias,
                teacher_bias=teacher.bias,
                token_weights=weights,
                rollout_logprobs=batch.rollout_logprobs,
                student_logit_scale=student.logit_scale,
                teacher_logit_scale=teacher.logit_scale,
                student_softcap=student.softcap,
                teacher_softcap=teacher.softcap,
                gradient_variance=gradient_variance,
            )
            collected.append(stats)
            return loss

        def student_forward() -> Tensor:
            hidden = self._completion_states(unwrapped, batch)
            with _redirected(head, loss_at_head):
                return head(hidden)

        with self.accelerator.autocast(), _redirected(unwrapped, student_forward):
            loss = model()
        return loss, collected[0]

    def _completion_states(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """Hidden states [N, H] that predict the completion tokens."""
        implementation = causal_lm_of(model).config._attn_implementation
        packed = packed_arguments(implementation, batch.sequence_lengths, batch.input_ids.device)
        hidden = hidden_states(model, batch.input_ids, batch.position_ids, **packed)
        return hidden[batch.completion_positions]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch, timed."""
        with self.metrics.timed("update"):
            return super().training_step(model, inputs, num_items_in_batch)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Refuse to step on a loss or gradient that is not finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        finite = torch.isfinite(self._tr_loss).all() and (norm is None or torch.isfinite(torch.as_tensor(norm)).all())
        if not finite:
            raise TrainingStopped(
                f"step {self.state.global_step + 1}: the loss or its gradient is not finite; likely a learning rate "
                f"of {self._get_learning_rate():g} that is too high, or {causal_lm_of(self.student).dtype} that "
                f"overflow; last good checkpoint: {last_complete_checkpoint(self.output_dir) or 'none'}"
            )
        return norm

    # After a step ---------------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self._window_start:
            self.metrics.add_seconds("train", since=self._window_start)
            self._window_start = 0.0
            self._write_window()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _write_window(self) -> None:
        samples = gather_object(self._window)
        self._window = []
        if self.is_world_process_zero():
            write_completions(self.output_dir, self.state.global_step, samples, self.tokenizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics to a training line; evaluation and the final summary pass through."""
        if "loss" in logs:
            logs |= self.metrics.reduce()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 · tokens · parameters outside the embeddings, of the packed row."""
        parameters = causal_lm_of(self.student).num_parameters(exclude_embeddings=True)
        return 6 * inputs["micro_batch"].input_ids.numel() * parameters

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint counts only once every process has written its part; older ones go after that."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            mark_complete(self.output_dir / f"checkpoint-{self.state.global_step}")
            keep_newest(self.output_dir, limit)
            plot_training(self.state.log_history, self.output_dir)

    # Evaluation -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample the held-out prompts once, with the same seeds at every call: accuracy and reverse KL."""
        rows: list[dict[str, Any]] = list(eval_dataset or self.eval_dataset)  # type: ignore[arg-type]
        start = time.perf_counter()
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        samples = self._sample(mine, step=-1, generations=1)
        correct = self._grade(samples, [row["answer"] for row in mine])
        kl, tokens = self._held_out_kl(samples, largest_share=-(-len(rows) // self.accelerator.num_processes))
        truncated = sum(not sample.finished for sample in samples)
        local = torch.tensor([kl, tokens, sum(correct), len(correct), len(samples), truncated], dtype=torch.float64)
        totals = self.accelerator.reduce(local.to(self.accelerator.device), "sum").tolist()
        kl, tokens, right, graded, completions, truncated = totals
        values = {
            "reverse_kl": kl / max(tokens, 1),
            "completion_length": tokens / completions,
            "truncated": truncated / completions,
            "runtime": time.perf_counter() - start,
        }
        if graded:
            values["accuracy"] = right / graded
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_kl(self, samples: list[Sample], largest_share: int) -> tuple[float, int]:
        """Summed reverse KL and tokens of this process's samples, in as many micro-batches as on every other."""
        kl, tokens = 0.0, 0
        with _evaluating(self.model_wrapped):
            for batch in pack(samples, -(-largest_share // self.args.per_device_eval_batch_size)):
                batch = batch.to(self.accelerator.device)
                weights = torch.zeros_like(batch.rollout_logprobs)
                _, stats = self._student_loss(self.model_wrapped, batch, self._teacher_states(batch), weights, False)
                kl += stats.reverse_kl.double().sum().item()
                tokens += len(batch.targets)
        return kl, tokens

    def _grade(self, samples: list[Sample], answers: list[str | None]) -> list[bool]:
        """Whether each completion with a gold answer is right."""
        with_answer = [(sample, answer) for sample, answer in zip(samples, answers) if answer is not None]
        texts = [
            str(self.tokenizer.decode(sample.completion_ids, skip_special_tokens=True)) for sample, _ in with_answer
        ]
        golds = [answer for _, answer in with_answer]
        if self.answer_format == "choice":
            return [grade_choice(text, gold).correct for text, gold in zip(texts, golds)]
        with MathGrader() as grader:
            return [grade.correct for grade in grader.grade(texts, golds)]


def _as_they_are(rows: list[Any]) -> Any:
    """Prompts are packed with their completions, not collated."""
    return rows


def rollout_seed(seed: int, step: int, prompt_id: int, generation: int) -> int:
    """A completion's seed: a 63-bit number that depends on nothing but these four."""
    digest = hashlib.blake2b(f"{seed}/{step}/{prompt_id}/{generation}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the head would multiply in: autocast's type where it is on, else the weight's."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _redirected(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Call `forward` in place of the module's own, hooks and wrappers around it as they are."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
