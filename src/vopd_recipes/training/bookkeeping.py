"""What transformers.Trainer would count or say wrongly of a run of packed rows.

Its counters look for `input_ids` in the batch; ours holds a packed row, whose tokens are counted here. A step is a
line of `console` and not a dictionary. The rest is about a resumed run: it was evaluated before its first step
already, and a name that is missing in the saved weights because its tensor stands there under another one is no alarm.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PrinterCallback, Trainer
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from vopd_recipes.console import Progress
from vopd_recipes.models import causal_lm_of


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

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Of tied weights a checkpoint holds one name."""
        parameters = dict(self.accelerator.unwrap_model(self.model).named_parameters(remove_duplicate=False))
        there = {id(tensor) for name, tensor in parameters.items() if name not in load_result.missing_keys}
        missing = [name for name in load_result.missing_keys if id(parameters.get(name)) not in there]
        super()._issue_warnings_after_load(
            SimpleNamespace(missing_keys=missing, unexpected_keys=load_result.unexpected_keys)
        )
