"""kill -9 at any moment, the same command again: the same weights, bit for bit, as a run that was left alone.

Slow, because it starts the real command eight times; nothing smaller shows that a whole process can vanish.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_vopd.py"


def start(recipe: Path, output_dir: Path) -> subprocess.Popen:
    words = [sys.executable, str(SCRIPT), str(recipe), "--output_dir", str(output_dir)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_when(process: subprocess.Popen, path: Path) -> None:
    """SIGKILL as soon as a file is there."""
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def recipe(write_recipe) -> Path:
    """LoRA with dropout, so that global random state matters, over the end of an epoch (24 prompts, 4 a step)."""
    return write_recipe(
        use_peft=True,
        lora_r=4,
        lora_dropout=0.2,
        max_steps=9,
        save_steps=3,
        save_total_limit=2,
        max_completion_length=24,
    )


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(recipe, tmp_path):
    finish(start(recipe, tmp_path / "undisturbed"))

    folder = tmp_path / "disturbed"
    kill_when(start(recipe, folder), folder / "completions" / "step-00000002.parquet")  # before any checkpoint
    kill_when(start(recipe, folder), folder / "checkpoint-3" / "adapter_config.json")  # while the first is written
    kill_when(start(recipe, folder), folder / "checkpoint-6" / "complete")  # just after one, at the epoch's end
    half = folder / "checkpoint-99"
    half.mkdir()
    (half / "trainer_state.json").write_text("{}")  # a higher number that is not whole
    output = finish(start(recipe, folder))
    assert "checkpoint-99 was not written to its end: removed" in output and not half.exists()
    assert f"resuming from {folder / 'checkpoint-6'}, after step 6" in output

    expected = load_file(tmp_path / "undisturbed" / "adapter_model.safetensors")
    resumed = load_file(folder / "adapter_model.safetensors")
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    for run in ("undisturbed", "disturbed"):
        assert sorted(path.name for path in (tmp_path / run).glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-9"]


@pytest.mark.slow
def test_a_finished_run_stays_as_it_is(recipe, tmp_path):
    """The same command once more says so and trains nothing; another recipe is refused."""
    folder = tmp_path / "run"
    finish(start(recipe, folder))
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert f"{folder}: already finished, at step 9" in finish(start(recipe, folder))
    assert (folder / "adapter_model.safetensors").read_bytes() == weights
    assert len(list((folder / "completions").iterdir())) == 9
    words = [sys.executable, str(SCRIPT), str(recipe), "--learning_rate", "0.5"]
    again = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2
    assert (
        again.stderr.strip().splitlines()[-1].startswith(f"error: output_dir: {folder} holds a run with learning_rate")
    )
