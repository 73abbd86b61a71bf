"""What transformers.Trainer would count or say wrongly of a run of packed rows.

Its counters look for `input_ids` in the batch; ours holds a packed row, whose tokens are counted here. A step is a
line of `console` and not a dictionary. The rest is about a resumed run: it was evaluated before its first step
already, its weights stand under the file's names, and it saves, logs and evaluates as often as the recipe says now.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from vopd_recipes.console import Progress
from vopd_recipes.models import causal_lm_of, load_weights


class Bookkeeping(Trainer):
    """In front of `transformers.Trainer`."""

    def add_callback(self, callback: Any) -> None:
        """In place of the one that prints a step's whole dictionary, or that has bars of its own, a line a step."""
        if callback in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            callback = Progress(Path(str(self.args.output_dir)))
        super().add_callback(callback)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 · tokens · parameters outside the embeddings, of the packed row."""
        parameters = causal_lm_of(self.accelerator.unwrap_model(self.model)).num_parameters(exclude_embeddings=True)
        return 6 * inputs["micro_batch"].input_ids.numel() * parameters

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """The tokens of every process's sequences; there is no padding to leave out."""
        if self.args.include_num_input_tokens_seen != "no":
            tokens = sum(sample.length for sample in inputs["micro_batch"].samples)
            everywhere = self.accelerator.reduce(torch.tensor(tokens, device=self.accelerator.device), "sum")
            self.state.num_input_tokens_seen += int(everywhere)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Only `eval_on_start` skips the scheduler: nothing to do where the run started long ago."""
        if skip_scheduler and self.state.global_step > 0:
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, *others: Any, **named: Any
    ) -> tuple[int, int]:
        """The checkpoint's state, with the intervals of the recipe: it would keep those that it was written with."""
        found: tuple[int, int] = super()._init_training_state(max_steps, num_update_steps_per_epoch, *others, **named)
        self.state.compute_steps(self.args, max_steps)
        step = self.state.global_step
        at_end = self.args.eval_strategy == "epoch" and step > 0 and step % num_update_steps_per_epoch == 0
        evaluated = any(line["step"] == step and "eval_reverse_kl" in line for line in self.state.log_history)
        self._owes_evaluation = at_end and not evaluated
        return found

    def _evaluate_what_is_owed(self) -> None:
        """An epoch's last checkpoint may be of before its evaluation, and a resumed run begins with the next epoch."""
        if self._owes_evaluation:
            self._owes_evaluation = False
            self._evaluate(None, None)

    def _run_epoch(self, *args: Any, **named: Any) -> None:
        self._evaluate_what_is_owed()
        super()._run_epoch(*args, **named)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Whole weights by the names of their file; adapters and shards, which keep the model's own, as ever."""
        if model is None and isinstance(self.model, PreTrainedModel) and not self.is_deepspeed_enabled:
            load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _finalize_training(self, *args: Any, **named: Any) -> Any:
        """Without a rotation of its own: it would remove the last checkpoint before the final model is written."""
        self._evaluate_what_is_owed()  # where no epoch is left
        with self._without_rotation():
            return super()._finalize_training(*args, **named)

    @contextmanager
    def _without_rotation(self) -> Iterator[int | None]:
        """The Trainer removes no checkpoint meanwhile; yields `save_total_limit`."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield limit
        finally:
            self.args.save_total_limit = limit
