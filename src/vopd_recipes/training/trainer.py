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

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vopd_recipes.files import (
    RECORDED,
    keep_newest,
    last_complete_checkpoint,
    mark_complete,
    plot_training,
    write_completions,
)
from vopd_recipes.hub import OwnPublishing, Publisher
from vopd_recipes.loss import TokenStats
from vopd_recipes.models import (
    causal_lm_of,
    check_models,
    completion_states,
    evaluating,
    full_weights,
    head_module,
    head_of,
    layout,
    redirected,
    shards_weights,
    vocabulary_of,
)
from vopd_recipes.packing import MicroBatch, Sample, pack
from vopd_recipes.recipe import ModelConfig, VOPDConfig, check_launch
from vopd_recipes.rollout import RolloutEngine, RolloutFailed, build_rollout, rollout_seed
from vopd_recipes.teacher import (
    LocalTeacher,
    OwnBase,
    SeveralTeachers,
    Teacher,
    TeacherUnavailable,
    TeacherView,
    as_teachers,
)
from vopd_recipes.training.agreement import first_gap, largest_gap
from vopd_recipes.training.bookkeeping import Bookkeeping
from vopd_recipes.training.held_out import held_out_values
from vopd_recipes.training.metrics import StepMetrics
from vopd_recipes.training.window import own_prompts


class TrainingStopped(RuntimeError):
    """The run cannot continue; one line says at which step, why, and what is left."""


class VOPDTrainer(OwnPublishing, Bookkeeping):
    """On-policy distillation of `model` from `teacher`.

    Args:
        model: the student.
        teacher: a frozen model in evaluation mode, or what stands for one elsewhere; the student itself, where that
            has adapters, is its own base; several by name, the only one by `None`.
        args: estimator, sampling and everything that `transformers.TrainingArguments` has.
        processing_class: the student's tokenizer.
        answer_format: how held-out answers are graded, `math` or `choice`.
        model_config: where vLLM loads the student from; default: its own `name_or_path`.
        kwargs: `train_dataset` and `eval_dataset` with the columns of `prompts.build_prompts`, callbacks.
    """

    args: VOPDConfig
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | Teacher | Mapping[str | None, nn.Module | Teacher],
        args: VOPDConfig,
        processing_class: PreTrainedTokenizerBase,
        answer_format: str = "math",
        model_config: ModelConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:  # several GPUs and one process: DataParallel would copy the model past the redirected loss
            args._n_gpu = 1
        super().__init__(
            model=model, args=args, processing_class=processing_class, data_collator=_as_they_are, **kwargs
        )
        check_launch(self.accelerator)
        self.tokenizer = processing_class
        self.estimator = args.estimator
        self.answer_format = answer_format
        offload = {name for name, one in args.by_teacher().items() if one.teacher_offload}
        self.teachers = as_teachers(
            teacher, model, self.accelerator, lambda: self.model_wrapped, offload, args.loss_compile
        )
        alone = None in self.teachers and not self._has_column("teacher_input_ids")
        self.teacher: Teacher = self.teachers[None] if alone else SeveralTeachers(self.teachers)
        self.vocabulary = min(vocabulary_of(model), self.teacher.vocabulary)
        self.output_dir = Path(str(args.output_dir))
        self.teacher_names = [name for name in self.teachers if name is not None]
        self.metrics = StepMetrics(self.accelerator, args.importance_sampling_cap, self.teacher_names)
        self.rollout: RolloutEngine = build_rollout(
            args, self.student, self.accelerator, processing_class, self.vocabulary, self._longest_prompt, model_config
        )
        self._unchecked = shards_weights(self.accelerator)  # so nobody could check them before
        self._sampler_checked = False
        self._evaluating = False
        self._weights_sampled_with = -1  # the step whose weights the rollout engine has
        self._window: list[Sample] = []  # completions of the current step, until they are written
        self._window_start = 0.0
        self.publisher: Publisher | None = None  # on one process, while the run is published

    @property
    def student(self) -> nn.Module:
        """The student, outside any distributed wrapper."""
        return self.accelerator.unwrap_model(self.model)

    # Rollouts -------------------------------------------------------------------------------------------------------

    def _has_column(self, name: str) -> bool:
        datasets: list[Any] = [self.train_dataset, self.eval_dataset]
        return any(data is not None and name in data.column_names for data in datasets)

    def _longest_prompt(self, whose: str = "input_ids") -> int:
        """Of the training and held-out prompts, in tokens; the student's where teachers read no others."""
        datasets: list[Any] = [data for data in (self.train_dataset, self.eval_dataset) if data is not None]
        column = whose if self._has_column(whose) else "input_ids"
        return max(len(row[column]) for data in datasets for row in data)

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[dict[str, Any]]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Sample and pack one accumulation window: its micro-batches, and its tokens over all processes."""
        if self.state.global_step >= self.state.max_steps:  # a finished run, resumed: the Trainer would step once more
            return [], torch.zeros((), device=device)
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        prompts = own_prompts(self, batches, len(self.train_dataset))  # type: ignore[arg-type]
        samples = self.sample(prompts, self.state.global_step, self.args.num_generations)
        self.metrics.add_completions(samples)
        self._window = samples
        micro_batches = pack([sample for sample in samples if self._is_trained_on(sample)], num_batches)
        tokens = torch.tensor(sum(len(batch.targets) for batch in micro_batches), device=device)
        self._window_start = time.perf_counter()
        with self.metrics.timed("teacher_window"):
            views = self.teacher_views(micro_batches)
        window = [{"micro_batch": batch, "teacher_view": view} for batch, view in zip(micro_batches, views)]
        return window, self.accelerator.reduce(tokens, "sum")

    def sample(self, prompts: list[dict[str, Any]], step: int, generations: int) -> list[Sample]:
        """The student's completions of this process's prompts, `generations` each. Collective.

        Raises:
            TrainingStopped: on every process, where sampling fails on any.
        """
        if self._unchecked:
            first, room = self.train_dataset[0]["input_ids"], self.args.max_completion_length  # type: ignore[index]
            longest, theirs = self._longest_prompt() + room, self._longest_prompt("teacher_input_ids") + room
            as_base = any(isinstance(teacher, OwnBase) for teacher in self.teachers.values())
            check_models(self.student, None, first, max(longest, theirs) if as_base else longest)
            for teacher in self.teachers.values():
                if isinstance(teacher, LocalTeacher):
                    check_models(None, teacher.model, first, theirs)
            self._unchecked = False
        rows = [(row, generation) for row in prompts for generation in range(generations)]
        seeds = [rollout_seed(self.args.seed, step, row["prompt_id"], generation) for row, generation in rows]
        inputs = [row["input_ids"] for row, _ in rows]
        failure = None
        self._sync_rollout()
        try:
            with self.metrics.timed("rollout"), evaluating(self.student), self.accelerator.autocast():
                completions = self.rollout.generate(inputs, seeds, self.args.max_completion_length)
        except RolloutFailed as error:
            failure = error
        self._stop_together("sampling failed", failure)
        samples = [
            Sample(
                row["prompt_id"],
                row["input_ids"],
                completion.token_ids,
                completion.logprobs,
                completion.finished,
                row.get("teacher"),
                row.get("teacher_input_ids"),
            )
            for (row, _), completion in zip(rows, completions)
        ]
        if not self._sampler_checked:
            self._check_sampler(first_gap(self, samples), largest_gap(self, first=True))
            self._sampler_checked = True
        return samples

    def teacher_views(self, batches: list[MicroBatch]) -> list[Callable[[], TeacherView]]:
        """What the teacher says about each micro-batch. Collective.

        Raises:
            TrainingStopped: on every process, where the teacher fails on any.
        """
        failure, views = None, []
        try:
            views = self.teacher.views(batches)
        except TeacherUnavailable as error:
            failure = error
        self._stop_together("the teacher failed", failure)
        return views

    def _sync_rollout(self) -> None:
        """Hand the student's weights over if they have changed since the engine got them, or it has lost them."""
        if not self.rollout.stale and self._weights_sampled_with == self.state.global_step:
            return
        failure, weights = None, full_weights(self.student)
        with self.metrics.timed("sync"):
            try:
                self.rollout.sync(pair for pair in weights)  # not `weights` itself: an engine may close what it gets
            except RolloutFailed as error:
                failure = error
                for _ in weights:  # the other processes still gather, and wait for this one
                    pass
        self._stop_together("sampling failed", failure)
        self._weights_sampled_with = self.state.global_step

    def _stop_together(self, what: str, failure: RuntimeError | None) -> None:
        """Where something failed on any process, save a checkpoint and stop on all of them."""
        failed = torch.tensor(float(failure is not None), device=self.accelerator.device)
        if not self.accelerator.reduce(failed, "sum"):
            return
        step, last = self.state.global_step, last_complete_checkpoint(self.output_dir)
        unsaved = last is None or last.name != f"checkpoint-{step}"
        # A checkpoint out of the middle of an evaluation would count as evaluated; that of before repeats its steps.
        if step > 0 and self.is_in_train and not self._evaluating and unsaved:
            self._save_checkpoint(self.model_wrapped, trial=None)
        reasons = gather_object([failure and str(failure)])  # the first process speaks for all
        told = failure or (self.is_world_process_zero() and next(filter(None, reasons)))
        reason = f"{what}: {told}" if told else f"{what} on another rank"
        raise TrainingStopped(self._stopping(reason)) from failure

    def check_ended(self) -> None:
        """A callback may have ended training early, as the Trainer's own at a SIGTERM: that is no finished run.

        Raises:
            TrainingStopped: there are steps left.
        """
        if self.state.global_step < self.state.max_steps:
            raise TrainingStopped(self._stopping(f"training was ended before step {self.state.max_steps}"))

    def _stopping(self, reason: str) -> str:
        last = last_complete_checkpoint(self.output_dir)
        return f"step {self.state.global_step + 1}: {reason}; the same command resumes from {last or 'the beginning'}"

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
            view = inputs["teacher_view"]()
        loss, stats = self.student_loss(model, batch, view, weights, self.args.log_gradient_variance)
        self.metrics.add_tokens(stats, batch)
        batch.record({name: getattr(stats, name) for name in RECORDED})
        return loss

    def student_loss(
        self, model: nn.Module, batch: MicroBatch, view: TeacherView, weights: Tensor, gradient_variance: bool
    ) -> tuple[Tensor, TokenStats]:
        """One forward of the wrapped student, with the loss in place of its head."""
        unwrapped = self.accelerator.unwrap_model(model)
        module, head = head_module(unwrapped), head_of(unwrapped)
        collected: list[tuple[Tensor, TokenStats]] = []

        def loss_at_head(hidden: Tensor) -> Tensor:
            dtype = _product_dtype(hidden, module.weight)
            ours = replace(head, weight=module.weight.to(dtype), bias=module.bias)  # whole only in here
            loss, stats = view.student_loss(hidden.to(dtype), ours, batch, self.estimator, weights, gradient_variance)
            collected.append((loss, stats))
            return loss

        def student_forward(_: Tensor) -> Tensor:
            hidden = completion_states(unwrapped, batch)
            with redirected(module, loss_at_head):
                return module(hidden)

        try:
            with self.accelerator.autocast(), redirected(unwrapped, student_forward):
                output = model(batch.input_ids)  # on GPUs DDP fails without an argument to move
        except TeacherUnavailable as error:  # asked in the middle of a forward: too late to save this step's state
            raise TrainingStopped(self._stopping(f"the teacher failed: {error}")) from error
        loss, stats = collected[0]
        # FSDP2 rounds what a forward returns to half precision; the gradient must enter by it, the value need not.
        return output.to(loss.dtype) + (loss - output).detach(), stats

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch, timed."""
        with self.metrics.timed("update"), self._engine_step_timed(model):
            return super().training_step(model, inputs, num_items_in_batch)

    @contextmanager
    def _engine_step_timed(self, model: nn.Module) -> Iterator[None]:
        """DeepSpeed's optimiser steps inside of the last backward; its seconds are the optimiser's."""
        if not layout(self.accelerator).startswith("zero"):
            yield
            return
        step: Callable[..., Any] = model.step  # type: ignore[assignment]

        def timed_step(*args: Any, **kwargs: Any) -> Any:
            with self.metrics.timed("engine_step"):
                return step(*args, **kwargs)

        with redirected(model, timed_step, "step"):
            yield

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
        samples, self._window = gather_object(self._window), []
        if self.is_world_process_zero():
            write_completions(self.output_dir, self.state.global_step, samples, self.tokenizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics to a training line; evaluation and the final summary pass through."""
        if "loss" in logs:
            logs |= self.metrics.reduce()
            self._check_sampler(logs["rollout/logprob_gap"], largest_gap(self, first=False))
        super().log(logs, start_time)

    def _check_sampler(self, gap: float, largest: float) -> None:
        """Stop where the sampler is evidently not the student."""
        if not gap <= largest and not self.args.allow_biased_sampling:
            what = "what samples the completions is not the student; compare rollout_backend: transformers"
            raise TrainingStopped(self._stopping(f"rollout/logprob_gap is {gap:#.3g} nats per token: {what}"))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Under ZeRO-1 and 2 the weights are whole, and DeepSpeed's copy of them has lost which are tied."""
        whole = layout(self.accelerator) in ("zero1", "zero2")
        super()._save(output_dir, None if whole else state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint counts only once every process has written its part; older ones go after that."""
        with self._without_rotation() as limit:
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            checkpoint = self.output_dir / f"checkpoint-{self.state.global_step}"
            mark_complete(checkpoint, layout(self.accelerator), self.accelerator.num_processes)
            plot_training(self.state.log_history, self.output_dir)
            if self.publisher is not None:  # before an older one goes that could not be queued so far
                self.publisher.save(checkpoint, self.state.global_step)
            best = self.state.best_model_checkpoint
            keep_newest(self.output_dir, limit, spared=Path(best) if best else None)
            if self.publisher is not None:
                self.publisher.retry()
        self.accelerator.wait_for_everyone()  # a process that stops now must find the marker

    # Evaluation -----------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample the held-out prompts once, with the same seeds at every call: accuracy and reverse KL."""
        self._evaluating = True
        try:
            values = held_out_values(self, list(eval_dataset or self.eval_dataset))  # type: ignore[arg-type]
        finally:
            self._evaluating = False
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _as_they_are(rows: list[Any]) -> Any:
    """Prompts are packed with their completions, not collated."""
    return rows


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the head would multiply in: autocast's type where it is on, else the weight's."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
