"""Completions are written with everything that the update made of them, and read back the same."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from vopd_recipes.files import SCHEMA, write_completions
from vopd_recipes.packing import Sample, pack

STATISTICS = ("reward", "advantage", "reverse_kl")


def make_samples(tokenizer: PreTrainedTokenizerFast) -> list[Sample]:
    texts = [("1+1=?\n", "2"), ("für 🙂?", "\\boxed{3}\nja"), ("x", "y" * 30)]
    return [
        Sample(
            prompt_id=100 + number,
            prompt_ids=tokenizer(prompt)["input_ids"],
            completion_ids=[*tokenizer(completion)["input_ids"], 256],
            rollout_logprobs=[-0.5 * n for n in range(len(tokenizer(completion)["input_ids"]) + 1)],
            finished=number != 2,
        )
        for number, (prompt, completion) in enumerate(texts)
    ]


def test_round_trip(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    samples = make_samples(tokenizer)
    for batch in pack(samples, 2):
        batch.record({name: torch.randn(len(batch.targets)) for name in STATISTICS})
    path = write_completions(tmp_path, 7, samples, tokenizer)
    assert path == tmp_path / "completions" / "step-00000007.parquet"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    for row, sample in zip(table.to_pylist(), samples, strict=True):
        assert (row["step"], row["prompt_id"], row["finished"]) == (7, sample.prompt_id, sample.finished)
        assert row["prompt"] == tokenizer.decode(sample.prompt_ids)
        assert row["completion"] == tokenizer.decode(sample.completion_ids)
        assert row["completion"].endswith("<|endoftext|>")
        assert row["token_ids"] == sample.completion_ids
        assert row["rollout_logprobs"] == sample.rollout_logprobs
        for name in STATISTICS:
            assert row[name] == sample.statistics[name]
            assert len(row[name]) == len(row["token_ids"])


def test_completions_that_were_not_trained_on(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    samples = make_samples(tokenizer)
    samples[0].statistics = {"reward": [1.0, 2.0], "of another version": [0.0]}
    rows = pq.read_table(write_completions(tmp_path, 1, samples, tokenizer)).to_pylist()
    assert [row["reward"] for row in rows] == [[1.0, 2.0], None, None]


@pytest.mark.parametrize("tokens", [[], [200], [0, 128, 255]])
def test_any_bytes_are_text_and_a_step_is_overwritten_whole(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tokens: list[int]
) -> None:
    write_completions(tmp_path, 3, make_samples(tokenizer), tokenizer)
    again = [Sample(1, [65], tokens, [0.0] * len(tokens), False)]
    (row,) = pq.read_table(write_completions(tmp_path, 3, again, tokenizer)).to_pylist()
    assert row["token_ids"] == tokens
    assert pq.read_table(write_completions(tmp_path, 4, [], tokenizer)).num_rows == 0
