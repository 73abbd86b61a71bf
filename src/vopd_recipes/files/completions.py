"""What the student wrote at each step, kept as one parquet file per step.

A row is a completion: its text and tokens, and for every token the sampler's log-probability and what the update made
of it (reward, advantage, reverse KL). Reports colour text with it, and nothing else records what was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from vopd_recipes.files.atomic import written_whole
from vopd_recipes.packing import Sample

# Statistics of the update that are kept with every completion token.
RECORDED = ("reward", "advantage", "reverse_kl")

_TOKENS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "prompt_id": pa.int64(),
        "prompt": pa.string(),
        "completion": pa.string(),
        "finished": pa.bool_(),
        "token_ids": pa.list_(pa.int32()),
        "rollout_logprobs": _TOKENS,
        **dict.fromkeys(RECORDED, _TOKENS),
    }
)


def write_completions(
    output_dir: Path, step: int, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Write `completions/step-XXXXXXXX.parquet`, whole or not at all."""
    rows = [
        {
            "step": step,
            "prompt_id": sample.prompt_id,
            "prompt": tokenizer.decode(sample.prompt_ids),
            "completion": tokenizer.decode(sample.completion_ids),
            "finished": sample.finished,
            "token_ids": sample.completion_ids,
            "rollout_logprobs": sample.rollout_logprobs,
            **sample.statistics,
        }
        for sample in samples
    ]
    path = _path(output_dir, step)
    with written_whole(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")
    return path


def read_completions(output_dir: Path, step: int, most: int) -> list[dict[str, Any]]:
    """The first rows of a step's file, none where a step has none."""
    path = _path(output_dir, step)
    return pq.read_table(path).slice(0, most).to_pylist() if path.is_file() else []


def _path(output_dir: Path, step: int) -> Path:
    return output_dir / "completions" / f"step-{step:08d}.parquet"
