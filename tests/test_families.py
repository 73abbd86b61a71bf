"""Models of other families than Qwen3 on a real vLLM: the weights that it samples with are the student's.

Slow, because vLLM is imported twice and four engines are started, each in ten seconds.
"""

import json
import sys
from pathlib import Path

import pytest
from launching import execute, launch, needs_vllm
from test_vllm_training import training_lines
from test_weights import OLMO3, random_model

pytestmark = [pytest.mark.slow, needs_vllm]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The gap of each family's engine, as it loads the file and after three hand-overs."""
    folder = tmp_path_factory.mktemp("families")
    done = execute([sys.executable, str(Path(__file__).parent / "families_worker.py"), str(folder)])
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "seen.json").read_text())


@pytest.mark.parametrize(("family", "rounding"), [("gemma2", 3e-4), ("apertus", 3e-3)])
def test_what_is_handed_over_is_the_student(seen, family: str, rounding: float) -> None:
    """Gemma 2 is tied and has no head in vLLM; Apertus keeps a constant of its activation in a buffer, and vLLM its
    slopes in bfloat16, whatever the file is in.
    """
    assert len(seen[family]) == 4
    assert max(seen[family]) < rounding, seen[family]


def test_an_engine_takes_experts_one_by_one(seen) -> None:
    """By their names; what vLLM 0.32 makes of them on CPUs after any hand-over is another model, by its own fault."""
    assert len(seen["mixtral"]) == 4
    assert seen["mixtral"][0] < 1e-4


def test_a_class_that_vllm_borrows_goes_on_training(write_recipe, tokenizer, tmp_path: Path) -> None:
    """vLLM 0.32 has no Olmo 3: it runs transformers' class, and changes it in the process of the student."""
    random_model(OLMO3).save_pretrained(tmp_path / "olmo3")
    tokenizer.save_pretrained(tmp_path / "olmo3")
    models = dict.fromkeys(("model_name_or_path", "teacher_model_name_or_path"), str(tmp_path / "olmo3"))
    recipe = write_recipe(**models, rollout_backend="vllm", vllm_gpu_memory_utilization=0.1)
    run = launch(recipe, tmp_path / "run")
    assert [line["rollout/logprob_gap"] < 1e-4 for line in training_lines(run)] == [True, True]
