"""The prompts of one optimiser step and process: those that are there, once each."""

from __future__ import annotations

import math
from typing import Any


def own_prompts(run: Any, batches: list[list[dict[str, Any]]], total: int) -> list[dict[str, Any]]:
    """Without the prompts that fill the last batches of an epoch up, so that every process has as many.

    Batch i of an epoch goes to process i mod W, and the fillers come after the last prompt.

    Args:
        run: the trainer.
        batches: of this process, an accumulation window.
        total: prompts of an epoch.
    """
    processes, size = run.accelerator.num_processes, run._train_batch_size
    per_process = math.ceil(math.ceil(total / size) / processes)
    windows = math.ceil(per_process / run.args.gradient_accumulation_steps)
    first = run.state.global_step % windows * run.args.gradient_accumulation_steps
    return [
        row
        for i, batch in enumerate(batches, first)
        for j, row in enumerate(batch, (i * processes + run.accelerator.process_index) * size)
        if j < total or run.args.dataloader_drop_last
    ]
