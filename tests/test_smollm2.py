"""A real pre-trained pair through the real command: SmolLM2-135M and the same without three layers, two short steps.

Slow: 135 million parameters on a CPU. It is worth it because a real tokenizer, chat template, tied head and peaked
distributions break things that tiny random models do not.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from smollm2 import write_smollm2

ROOT = Path(__file__).parents[1]


def run(*words: object) -> None:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_smollm2_recipe_trains(tmp_path):
    teacher = write_smollm2(tmp_path / "teacher")
    run("scripts/prune_layers.py", teacher, tmp_path / "student", "--drop", "10,15,20")
    run("scripts/make_problems.py", "word", tmp_path / "problems", "--train", 64, "--test", 4)
    run(
        "scripts/run_vopd.py", "recipes/smollm2-135m/vopd.yaml", "--teacher_model_name_or_path", teacher,
        "--model_name_or_path", tmp_path / "student", "--dataset_name", tmp_path / "problems",
        "--output_dir", tmp_path / "run", "--max_steps", 2, "--max_completion_length", 16, "--max_test_prompts", 4,
        "--gradient_accumulation_steps", 2, "--log_gradient_variance", "--save_strategy", "no",
    )  # fmt: skip
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    lines = [line for line in history if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert 0.2 < line["reverse_kl"] < 2.5  # three of thirty layers removed
        assert line["rollout/logprob_gap"] < 1e-4
        variances = [line[f"gradient_variance/{name}"] for name in ("optimal", "value", "none", "constant")]
        assert variances == sorted(variances)
