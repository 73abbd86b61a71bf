"""A few of a step's completions, token by token, for the trackers that a recipe reports to (`report_to`).

Whoever watches a run there sees what the student writes and which tokens the update pushes, as the report shows it in
colours. It goes as a table with a row for each token: wandb, trackio and TensorBoard have that in common, and none of
them shows a page's own colours. Sent at every save and evaluation, and read back from the file that the trainer
has written of the step, so what is shown is what was trained on.
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from vopd_recipes.files import RECORDED, markdown_table, read_completions

NAME = "completions"
COMPLETIONS, TOKENS = 4, 256  # of a step, and of each


class TokenTables(TrainerCallback):
    """Of one run, sent by the process that is the first of all.

    Args:
        output_dir: the run's folder.
        tokenizer: the student's.
        callbacks: the Trainer's, among which is TensorBoard's with its writer.
    """

    def __init__(
        self, output_dir: Path, tokenizer: PreTrainedTokenizerBase, callbacks: Sequence[TrainerCallback]
    ) -> None:
        self._output_dir, self._tokenizer, self._callbacks = output_dir, tokenizer, callbacks
        self._sent = 0  # the step of the last one; none was trained on before the first

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Send the step's."""
        self._send(args, state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send the step's."""
        self._send(args, state)

    def _send(self, args: TrainingArguments, state: TrainerState) -> None:
        names = [name for name in ("tensorboard", "trackio", "wandb") if name in (args.report_to or [])]
        step = state.global_step
        if not names or not state.is_world_process_zero or step == self._sent:
            return
        self._sent = step
        rows = token_rows(read_completions(self._output_dir, step, COMPLETIONS), self._tokenizer)
        for name in names:
            if name == "tensorboard":
                self._writer().add_text(NAME, token_markdown(rows), step)
            else:  # the two have the same interface
                tracker: Any = importlib.import_module(name)
                table = tracker.Table(dataframe=pa.Table.from_pylist(rows).to_pandas())
                tracker.log({NAME: table, "train/global_step": step})

    def _writer(self) -> Any:
        return next(each for each in self._callbacks if isinstance(each, TensorBoardCallback)).tb_writer


def token_rows(completions: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """A row for each token: which completion's, its place and text, and what the update made of it, in nats.

    Args:
        completions: rows of `files.SCHEMA`.
        tokenizer: the student's.
    """
    return [
        {
            "completion": number,
            "prompt": "" if place else completion["prompt"],  # once is enough
            "position": place,
            "token": str(tokenizer.decode([token])).replace("\n", "\\n"),
            **{name: (completion[name] or [None] * (place + 1))[place] for name in RECORDED},
        }
        for number, completion in enumerate(completions)
        for place, token in enumerate(completion["token_ids"][:TOKENS])
    ]


def token_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table under each prompt, for TensorBoard, which shows Markdown and no HTML that could be one."""
    parts = []
    for first in (row for row in rows if not row["position"]):
        of_one = [row for row in rows if row["completion"] == first["completion"]]
        cells = [[_code(row["token"]), *(_number(row[name]) for name in RECORDED)] for row in of_one]
        parts += [f"{_code(first['prompt'])}", markdown_table(["token", *RECORDED], cells)]
    return "\n\n".join(parts)


def _code(text: str) -> str:
    shown = html.escape(text).replace("|", "&#124;").replace("\n", "<br>")
    return f"<code>{shown}</code>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
