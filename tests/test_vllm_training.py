"""Training on vLLM's rollouts: one process = two, resumed = undisturbed, and an engine that dies loses nothing.

Slow, because every run starts engines (ten seconds each), on one process or two.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TinyPair
from launching import REPOSITORY, Run, assert_same_run, execute, launch, needs_vllm
from test_distributed import COMMON, TOLERANCE, on_two, problems  # noqa: F401
from test_models import trained_adapter

pytestmark = [pytest.mark.slow, needs_vllm]


@pytest.fixture
def recipe(write_recipe, problems: Path) -> Path:  # noqa: F811
    return write_recipe(
        "vllm", dataset_name=str(problems), rollout_backend="vllm", vllm_gpu_memory_utilization=0.1, **COMMON
    )


@pytest.fixture(scope="module")
def cache() -> dict[str, Run]:
    return {}


@pytest.fixture
def reference(recipe: Path, cache: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process, run once."""
    if not cache:
        cache["run"] = launch(recipe, tmp_path_factory.mktemp("vllm") / "run", gradient_accumulation_steps=4)
    return cache["run"]


def training_lines(run: Run) -> list[dict[str, float]]:
    return [line for line in run.history if "loss" in line]


def test_the_sampler_follows_the_student(reference: Run) -> None:
    lines = training_lines(reference)
    assert len(lines) == 5
    for line in lines:
        assert line["rollout/logprob_gap"] < 1e-4
        assert line["importance/mean"] == pytest.approx(1, abs=1e-4)
        assert line["time/sync"] >= 0 and line["time/rollout"] > 0


def test_a_run_that_starts_from_an_adapter(recipe: Path, tiny_pair: TinyPair, tokenizer, tmp_path: Path) -> None:
    """The engine loads the base; the first completions are the adapted student's already."""
    trained_adapter(tiny_pair, tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    fields = {"model_name_or_path": tmp_path / "adapter", "use_peft": True, "lora_r": 4, "lora_alpha": 8}
    run = launch(recipe, tmp_path / "run", **fields, max_steps=2)
    assert len(training_lines(run)) == 2
    for line in training_lines(run):
        assert line["rollout/logprob_gap"] < 1e-4


@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_two_processes_equal_one(recipe, reference, tmp_path, layout) -> None:
    """Other prompts on each process, and other numbers of them."""
    run = on_two(recipe, tmp_path / "run", layout)
    assert_same_run(run, reference, TOLERANCE)


@pytest.fixture
def left_by_a_killed_run() -> Iterator[Path]:
    """Memory that its engine's processes shared, under the name that vLLM gives it in every run."""
    file = Path("/dev/shm/-tp:0-[0-1]-cpushm_0")
    is_ours = not file.exists()
    file.touch()
    yield file
    if is_ours:
        file.unlink()


def test_one_engine_over_two_processes(recipe, reference, left_by_a_killed_run, tmp_path) -> None:
    """It equals one process, starts whatever others have left, and leaves nothing itself."""
    before = {*left_by_a_killed_run.parent.glob("*cpushm*")}
    run = on_two(recipe, tmp_path / "run", "ddp", vllm_tensor_parallel_size=2)
    assert_same_run(run, reference, TOLERANCE)
    assert left_by_a_killed_run in before and {*left_by_a_killed_run.parent.glob("*cpushm*")} <= before


def test_resumed_equals_undisturbed(recipe, reference, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference.folder, folder)
    for later in ("checkpoint-4", "checkpoint-5"):
        shutil.rmtree(folder / later)
    (folder / "trainer_state.json").unlink()  # else the run counts as finished
    resumed = launch(recipe, folder, gradient_accumulation_steps=4)
    for name, tensor in resumed.weights.items():
        assert torch.equal(tensor, reference.weights[name]), name


def test_an_engine_that_dies_leaves_a_checkpoint_to_go_on_from(recipe, reference, tmp_path) -> None:
    flags = {"output_dir": str(tmp_path / "run"), "gradient_accumulation_steps": "4", "save_steps": "100"}
    broken = tmp_path / "broken.yaml"
    lines = [f"extends: {recipe}", *(f"{name}: {value}" for name, value in flags.items())]
    broken.write_text("\n".join(lines))
    done = execute([sys.executable, str(REPOSITORY / "tests" / "broken_engine.py"), str(broken)])
    assert done.returncode == 1, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: step 3: sampling failed: vLLM could not ")
    assert line.endswith(f"the same command resumes from {tmp_path / 'run' / 'checkpoint-2'}")
    resumed = launch(broken, tmp_path / "run")
    for name, tensor in resumed.weights.items():
        assert torch.equal(tensor, reference.weights[name]), name


def test_an_engine_in_half_precision(recipe, tmp_path) -> None:
    """`vllm_dtype`, `vllm_enforce_eager` and `vllm_max_model_len` reach the engine, and weights make up."""
    window = {"max_prompt_length": 100, "vllm_max_model_len": 110}
    run = launch(recipe, tmp_path / "run", vllm_dtype="bfloat16", vllm_enforce_eager=True, **window)
    gaps = [line["rollout/logprob_gap"] for line in training_lines(run)]
    assert all(1e-4 < gap < 0.1 for gap in gaps), gaps  # bfloat16, not float32, and the same model
    assert all(abs(line["importance/mean"] - 1) < 0.05 for line in training_lines(run))


def test_the_demo_recipe_runs_on_vllm(tiny_pair, problems, tmp_path) -> None:  # noqa: F811
    """Its own file, with another pair and two steps."""
    run = launch(
        REPOSITORY / "recipes" / "tiny-arithmetic" / "vopd.yaml",
        tmp_path / "run",
        rollout_backend="vllm",
        vllm_gpu_memory_utilization=0.1,
        model_name_or_path=tiny_pair.student,
        teacher_model_name_or_path=tiny_pair.teacher,
        dataset_name=problems,
        max_steps=2,
    )
    assert [line["rollout/logprob_gap"] < 1e-4 for line in training_lines(run)] == [True, True]


def test_settings_that_vllm_refuses(recipe, tmp_path) -> None:
    """A window beyond the model's: one line, exit status 2, no run begun."""
    script = str(REPOSITORY / "scripts" / "run_vopd.py")
    done = execute([sys.executable, script, str(recipe), "--vllm_max_model_len", "4096"])
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: rollout_backend: vllm does not start with these")
    assert not (tmp_path / "run" / "recipe.yaml").exists()
