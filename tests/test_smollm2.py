"""A real pre-trained pair through the real commands: SmolLM2-135M, and the same without three layers.

Two short steps of training, and the teacher on fifty word problems.

Slow: 135 million parameters on a CPU. It is worth it because a real tokenizer, chat template, tied head and peaked
distributions break things that tiny random models do not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from launching import needs_vllm
from smollm2 import write_smollm2

ROOT = Path(__file__).parents[1]


def run(*words: object) -> None:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    teacher = write_smollm2(folder / "teacher")
    run("scripts/prune_layers.py", teacher, folder / "student", "--drop", "10,15,20")
    run("scripts/make_problems.py", "word", folder / "problems", "--train", 64, "--test", 4)
    return folder


@pytest.mark.slow  # a process that imports everything: what a person sees of a wrong name, or without a network
def test_a_teacher_that_cannot_be_loaded_is_one_line(tmp_path):
    words = [sys.executable, "scripts/prune_layers.py", "org/nowhere", tmp_path / "student", "--drop", "1"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=offline)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot load org/nowhere: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "student").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_smollm2_recipe_trains(smollm2, tmp_path, backend):
    run(
        "scripts/run_vopd.py", "recipes/smollm2-135m/vopd.yaml", "--teacher_model_name_or_path", smollm2 / "teacher",
        "--model_name_or_path", smollm2 / "student", "--dataset_name", smollm2 / "problems",
        "--output_dir", tmp_path / "run", "--max_steps", 2, "--max_completion_length", 16, "--max_test_prompts", 4,
        "--gradient_accumulation_steps", 2, "--log_gradient_variance", "--save_strategy", "no",
        "--rollout_backend", backend, "--vllm_gpu_memory_utilization", 0.1,
    )  # fmt: skip
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    lines = [line for line in history if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert 0.2 < line["reverse_kl"] < 2.5  # three of thirty layers removed
        assert line["rollout/logprob_gap"] < 1e-4
        variances = [line[f"gradient_variance/{name}"] for name in ("optimal", "value", "none", "constant")]
        assert variances == sorted(variances)


@pytest.mark.slow
@needs_vllm
def test_smollm2_is_evaluated(smollm2, tmp_path):
    words = ["scripts/evaluate.py", smollm2 / "teacher", "--tasks", "word_problems", "--limit", 50, "--samples", 1]
    words += ["--chat-template", 1, "--max-new-tokens", 128, "--output", tmp_path]
    run(*words)
    (path,) = tmp_path.glob("*/*/results.json")
    first = path.read_text()
    scores = json.loads(first)["tasks"]["word_problems"]
    assert (scores["problems"], scores["n"], scores["grading_errors"]) == (50, 1, 0)
    assert 50 * 60 < scores["tokens"] < 50 * 120  # 90 on average
    assert 0.1 < scores["truncation_rate"] < 0.6
    rows = pq.read_table(path.parent / "details" / "word_problems.parquet").to_pylist()
    assert len({row["completion"] for row in rows}) == 50
    assert sum(row["question"].split()[0] in row["completion"] for row in rows) > 25  # it speaks of whom it was asked
    run(*words)  # from the answers that are kept
    assert path.read_text() == first
