"""What a tracker is sent: a few completions, token by token, with what the update made of each."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from vopd_recipes.recipe import load_recipe
from vopd_recipes.training import train
from vopd_recipes.training.trackers import COMPLETIONS, TOKENS, token_markdown, token_rows


def completion(tokenizer: PreTrainedTokenizerFast, prompt: str, text: str) -> dict[str, object]:
    ids = tokenizer(text)["input_ids"]
    values = [float(place) for place in range(len(ids))]
    return {"prompt": prompt, "token_ids": ids, "reward": values, "advantage": values, "reverse_kl": None}


def test_a_row_for_each_token(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = token_rows([completion(tokenizer, "1+1=", "a\nb"), completion(tokenizer, "2", "c" * 1000)], tokenizer)
    assert [row["token"] for row in rows[:3]] == ["a", "\\n", "b"]
    assert [(row["completion"], row["position"], row["prompt"]) for row in rows[:4]] == [
        (0, 0, "1+1="), (0, 1, ""), (0, 2, ""), (1, 0, "2"),
    ]  # fmt: skip
    assert rows[2]["advantage"] == rows[2]["reward"] == 2.0 and rows[2]["reverse_kl"] is None
    assert len(rows) == 3 + TOKENS


def test_a_token_breaks_no_table(tokenizer: PreTrainedTokenizerFast) -> None:
    text = token_markdown(token_rows([completion(tokenizer, "<b>\n", "|<`")], tokenizer))
    assert text.splitlines() == [
        "<code>&lt;b&gt;<br></code>",
        "",
        "| token | reward | advantage | reverse_kl |",
        "|---|--:|--:|--:|",
        "| <code>&#124;</code> | 0.000 | 0.000 |  |",
        "| <code>&lt;</code> | 1.000 | 1.000 |  |",
        "| <code>`</code> | 2.000 | 2.000 |  |",
    ]
    assert token_markdown([]) == ""


FOLLOWED = {"dataset_test_split": "test", "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}


def test_tensorboard_gets_what_was_trained_on(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train(load_recipe(write_recipe(report_to="tensorboard", save_steps=1, **FOLLOWED), []))
    (folder,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    texts = events.Tensors("completions/text_summary")
    assert [event.step for event in texts] == [1, 2]  # evaluated and saved, and sent once
    for event in texts:
        shown = event.tensor_proto.string_val[0].decode()
        rows = pq.read_table(run / "completions" / f"step-{event.step:08d}.parquet").to_pylist()[:COMPLETIONS]
        numbers = [[row[name] for name in ("reward", "advantage", "reverse_kl")] for row in rows]
        lines = [" | ".join(f"{value:.3f}" for value in values) for each in numbers for values in zip(*each)]
        assert len(lines) > 4 and all(line in shown for line in lines)


def test_wandb_gets_a_table(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(load_recipe(write_recipe(report_to="wandb", save_steps=2, **FOLLOWED), []))
    tables = sorted(tmp_path.rglob("completions_*.table.json"))
    assert len(tables) == 2
    content = json.loads(tables[0].read_text())
    assert content["columns"] == ["completion", "prompt", "position", "token", "reward", "advantage", "reverse_kl"]
    assert len(content["data"]) > 4
