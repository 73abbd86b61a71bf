"""Two processes = one: DDP, ZeRO-2 and ZeRO-3 give one process's losses, reverse KL and weights, and resume alike.

Slow, because each test starts the real command on two processes that talk over gloo; nothing smaller shows that a
launch becomes what was asked for. Every test asserts the distributed type and the number of processes as well: a
launch that quietly trains two models apart gives plausible numbers.
"""

import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from launching import (
    REPOSITORY,
    SCRIPT,
    Run,
    assert_same_run,
    assert_same_weights,
    execute,
    launch,
    on_two_processes,
)
from transformers import AutoModelForCausalLM

from vopd_recipes.tiny import problems as arithmetic

TOLERANCE = 1e-5
ZERO = {f"zero{stage}": str(REPOSITORY / "recipes" / "deepspeed" / f"zero{stage}.json") for stage in (2, 3)}
KINDS = {"ddp": "MULTI_CPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}

# 22 prompts, 8 per step: the third step of an epoch has 6, which two processes share as 4 + 2. Every fourth step
# evaluates 6 held-out prompts.
COMMON = {
    "dataset_test_split": "test",
    "max_steps": 5,
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "per_device_train_batch_size": 2,
}
CASES = {
    "full": {},
    # Of 16 tokens few completions are finished: ranks, and whole windows, have nothing to train on.
    "masked": {"mask_truncated_completions": True, "max_completion_length": 16, "seed": 1},
    "lora": {"use_peft": True, "lora_r": 4},
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven")
    arithmetic.write(folder, *arithmetic.split("chain", train=22, test=6))
    return folder


@pytest.fixture(scope="module")
def few_problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third step of an epoch has 2 prompts, and the second of two processes none."""
    folder = tmp_path_factory.mktemp("few")
    arithmetic.write(folder, *arithmetic.split("chain", train=18, test=6))
    return folder


@pytest.fixture
def recipe(write_recipe, problems: Path, few_problems: Path):
    def write(case: str) -> Path:
        folder = few_problems if case == "masked" else problems
        return write_recipe(case, dataset_name=str(folder), **COMMON, **CASES[case])

    return write


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {}


@pytest.fixture
def one_process(recipe, references: dict[str, Run], tmp_path_factory: pytest.TempPathFactory):
    """The same recipe on one process with the same global batch; run once per case."""

    def run(case: str) -> Run:
        if case not in references:
            folder = tmp_path_factory.mktemp("one") / case
            references[case] = launch(recipe(case), folder, gradient_accumulation_steps=4)
        return references[case]

    return run


def on_two(recipe: Path, folder: Path, layout: str, **fields: object) -> Run:
    deepspeed = {"deepspeed": ZERO[layout]} if layout in ZERO else {}
    run = launch(recipe, folder, processes=2, **deepspeed, **fields)
    assert run.environment["processes"] == 2
    assert run.environment["distributed_type"] == KINDS[layout]
    return run


@pytest.mark.slow
@pytest.mark.parametrize("layout", KINDS)
def test_two_processes_equal_one(recipe, one_process, tmp_path, layout) -> None:
    """Weights, losses, reverse KL, evaluation; a short last batch; and going on from a checkpoint."""
    reference = one_process("full")
    run = on_two(recipe("full"), tmp_path / "run", layout)
    assert_same_run(run, reference, TOLERANCE)

    checkpoint = AutoModelForCausalLM.from_pretrained(run.folder / "checkpoint-4")  # in one process
    expected = AutoModelForCausalLM.from_pretrained(reference.folder / "checkpoint-4")
    assert_same_weights(checkpoint.state_dict(), expected.state_dict(), TOLERANCE)

    for late in (run.folder / "checkpoint-4", run.folder / "checkpoint-5"):
        shutil.rmtree(late)
    (run.folder / "trainer_state.json").unlink()  # else the run counts as finished
    undisturbed = run.weights
    resumed = on_two(recipe("full"), run.folder, layout)
    assert [line["step"] for line in resumed.history] == [line["step"] for line in run.history]
    for name, tensor in resumed.weights.items():
        assert torch.equal(tensor, undisturbed[name]), name

    (run.folder / "trainer_state.json").unlink()  # a finished run would only be called one
    other = {"gradient_accumulation_steps": 2, "deepspeed": ZERO.get(layout)}  # the same recipe, on one process
    flags = [word for key, value in other.items() if value for word in (f"--{key}", str(value))]
    refused = execute([sys.executable, str(SCRIPT), str(recipe("full")), "--output_dir", str(run.folder), *flags])
    assert refused.returncode == 2
    assert f"written by 2 processes ({layout}), this launch has 1" in refused.stderr


@pytest.mark.slow
def test_ddp_with_devices_is_ddp_without(write_recipe, tmp_path) -> None:
    """On GPUs accelerate gives DDP a device, and it then moves the forward's arguments there: it must have one."""
    seen = on_two_processes("ddp_on_gpus", write_recipe(), tmp_path / "seen.json")
    assert seen == {"wrapper": "DistributedDataParallel", "loss": 0, "gradients": 0}


@pytest.mark.slow
def test_weights_that_do_not_arrive_stop_every_process(write_recipe, tmp_path) -> None:
    """Under ZeRO-3 the others gather on; all stop, with a checkpoint that each of them names."""
    recipe = write_recipe(deepspeed=ZERO["zero3"], max_steps=3, save_steps=100)
    messages = on_two_processes("failing_sync", recipe, tmp_path / "seen.json")["messages"]
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert messages == [
        f"step 2: sampling failed: no room; the same command resumes from {checkpoint}",
        f"step 2: sampling failed on another rank; the same command resumes from {checkpoint}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "zero3"])
def test_ranks_with_nothing_to_train_on(recipe, one_process, tmp_path, layout) -> None:
    """The loss stays the mean over the tokens that count, and nothing hangs."""
    run = on_two(recipe("masked"), tmp_path / "run", layout)
    finished = [
        pq.read_table(path, columns=["finished"]).column(0).to_pylist()
        for path in sorted((run.folder / "completions").iterdir())
    ]
    halves = [(any(rows[:4]), any(rows[4:])) for rows in finished]  # rank by rank
    assert {(False, False)} < set(halves) and any(first != second for first, second in halves)
    assert_same_run(run, one_process("masked"), TOLERANCE)


@pytest.mark.slow
def test_a_teacher_in_slices_that_wait_in_cpu_memory(recipe, one_process, tmp_path) -> None:
    """On CPUs the slices are where they would be anyway; this shows that DeepSpeed takes them as they were loaded."""
    run = on_two(recipe("full"), tmp_path / "run", "zero3", teacher_offload=True)
    assert_same_run(run, one_process("full"), TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["zero3"])
def test_adapters_alone_are_trained_in_slices(recipe, one_process, tmp_path, layout) -> None:
    """LoRA: the rollouts' copy gets the merged weights tensor by tensor; only adapters are saved."""
    run = on_two(recipe("lora"), tmp_path / "run", layout)
    assert_same_run(run, one_process("lora"), TOLERANCE)
    assert max(line["rollout/logprob_gap"] for line in run.history if "loss" in line) < 1e-5


@pytest.mark.slow
def test_plain_accelerate_launch_uses_the_recipes_deepspeed_configuration(recipe, one_process, tmp_path) -> None:
    flags = ["--output_dir", str(tmp_path / "run"), "--deepspeed", ZERO["zero2"], "--gradient_accumulation_steps", "4"]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    done = execute([*accelerate, str(SCRIPT), str(recipe("full")), *flags])
    assert done.returncode == 0, done.stderr[-3000:]
    run = Run(tmp_path / "run", done.stderr)
    assert run.environment["distributed_type"] == "DEEPSPEED" and run.environment["processes"] == 1
    assert_same_run(run, one_process("full"), TOLERANCE)
