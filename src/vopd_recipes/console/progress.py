"""A line a step on the screen, and every number of it in `metrics.jsonl`.

The Trainer's log history, which every checkpoint holds, is what counts: a resumed run writes the file anew from it, so
that steps which were lost with a killed process do not stand there twice. From then on each line is added as it comes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vopd_recipes.console.lines import MEASURED, heading, held_out_line, step_line
from vopd_recipes.console.screen import screen
from vopd_recipes.files import METRICS, write_text

_TABLE = 25  # lines, until the heading comes again


class Progress(TrainerCallback):
    """Of one run, on the process that is the first of all.

    Args:
        output_dir: the run's folder.
    """

    def __init__(self, output_dir: Path) -> None:
        self._path = output_dir / METRICS
        self._bar: Any = None
        self._lines = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The file as far as the run has come."""
        self._begun, self._first_step = time.perf_counter(), state.global_step
        if state.is_world_process_zero:
            write_text(self._path, "".join(map(_json, state.log_history)))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """All of it into the file, the part that is looked at on the screen."""
        if not state.is_world_process_zero:
            return
        logs = state.log_history[-1]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_json(logs))
        if "loss" in logs:
            self._say_step(state, logs)
        elif set(MEASURED) & logs.keys():
            first = next(line for line in state.log_history if set(MEASURED) & line.keys())
            screen.line(held_out_line(state.global_step, logs, first if first is not logs else None), "bold cyan")

    def _say_step(self, state: TrainerState, logs: Mapping[str, float]) -> None:
        if self._lines % _TABLE == 0:
            screen.line(heading(state.max_steps), "bold")
        self._lines += 1
        a_step = (time.perf_counter() - self._begun) / max(state.global_step - self._first_step, 1)
        left = (state.max_steps - state.global_step) * a_step
        screen.line(step_line(state.global_step, state.max_steps, logs, left))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A bar of micro-batches, where there are several."""
        total = int(args.gradient_accumulation_steps)
        quiet = not state.is_world_process_zero or args.disable_tqdm or total == 1 or not screen.is_terminal
        self._bar = None if quiet else screen.bar(total=total, desc="Training", leave=False)

    def on_substep_end(self, *arguments: Any, **kwargs: Any) -> None:
        """One of them is done."""
        if self._bar is not None:
            self._bar.update()

    def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
        """All of them are."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"
