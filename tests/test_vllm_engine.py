"""What a CPU's engine cannot show: the order of calls to one that sleeps on a GPU, and who shares an engine.

The engine here records what it is asked; the process groups are real.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import REPOSITORY, execute

from vopd_recipes.recipe import RecipeError
from vopd_recipes.rollout import RolloutFailed, Sampling, VLLMRollout
from vopd_recipes.rollout import vllm_engine as vllm_rollout
from vopd_recipes.rollout.shared_process import EngineSettings, apply_settings, settings_now, variables_restored
from vopd_recipes.rollout.vllm_start import _matmul_precision

WORKER = REPOSITORY / "tests" / "vllm_groups_worker.py"


class Recorded:
    """vLLM's `LLM`, as far as a rollout calls it."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.broken = False

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake_up", *tags))

    def collective_rpc(self, name: str, kwargs: dict) -> None:
        self.calls.append((name, [name for name, _ in kwargs["weights_iterator"]]))

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def generate(self, prompts: list[dict], parameters: list, use_tqdm: object) -> list:
        self.calls.append(("generate", [prompt["prompt_token_ids"] for prompt in prompts]))
        if self.broken:
            raise RuntimeError("CUDA error")
        one = SimpleNamespace(token_ids=[7], logprobs=[{7: SimpleNamespace(logprob=-0.5)}], finish_reason="stop")
        return [SimpleNamespace(outputs=[one]) for _ in prompts]


@pytest.fixture
def engine() -> VLLMRollout:
    """As it is on a GPU after its start: asleep."""
    rollout = object.__new__(VLLMRollout)
    rollout._on_gpu, rollout._llm, rollout._asleep, rollout.stale = True, Recorded(), set(), False
    rollout._members, rollout._position, rollout._max_model_len = [0], 0, 64
    rollout._bias, rollout._eos_token_ids, rollout._progress = None, [7], False
    rollout._as_saved, rollout._has_head = iter, True
    rollout._vllm = SimpleNamespace(SamplingParams=lambda **fields: fields)
    rollout.sampling, rollout._settings = Sampling(), EngineSettings(torch.device("cpu"))
    rollout._sleep()
    rollout._llm.calls.clear()
    return rollout


def test_an_engine_sleeps_while_the_student_trains(engine: VLLMRollout) -> None:
    """Weights wake for the weights, the cache for the sampling, and nothing stays after it."""
    for _ in range(2):
        assert engine.stale
        engine.sync([("a", torch.ones(1)), ("b", torch.ones(1))])
        assert not engine.stale
        (completion,) = engine.generate([[1, 2]], [0], 4)
        assert (completion.token_ids, completion.logprobs, completion.finished) == ([7], [-0.5], True)
        assert engine._llm.calls == [
            ("wake_up", "weights"),
            ("reload_weights", ["a", "b"]),
            "reset_prefix_cache",
            ("wake_up", "kv_cache"),
            ("generate", [[1, 2]]),
            ("sleep", 2),
        ]
        engine._llm.calls.clear()


def test_a_window_goes_in_at_once_longest_prompts_first(engine: VLLMRollout) -> None:
    engine.sync([])
    engine.generate([[1], [1, 2, 3], [1, 2]], [0, 1, 2], 4)
    assert ("generate", [[1, 2, 3], [1, 2], [1]]) in engine._llm.calls


def test_an_engine_without_weights_does_not_sample(engine: VLLMRollout) -> None:
    with pytest.raises(RolloutFailed, match="it sleeps and has no weights"):
        engine.generate([[1]], [0], 4)


def test_an_engine_that_fails_is_one_line(engine: VLLMRollout) -> None:
    engine.sync([])
    engine._llm.broken = True
    with pytest.raises(RolloutFailed, match="^vLLM could not sample: RuntimeError: CUDA error$"):
        engine.generate([[1]], [0], 4)


def test_a_gpus_engine_may_set_what_it_likes() -> None:
    """What vLLM 0.32 sets where there is a GPU; it finds that again, and training its own, whatever fails inside."""
    trainings, switch = settings_now(), EngineSettings(torch.device("cpu"))
    with pytest.raises(RuntimeError, match="out of memory"), switch():
        torch.set_num_threads(trainings["threads"] + 1)
        torch.set_float32_matmul_precision("medium")
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch._C._accelerator_setAllocatorSettings("max_split_size_mb:20")
        engines = settings_now()
        raise RuntimeError("out of memory")
    assert settings_now() == trainings
    assert sum(engines[name] != trainings[name] for name in trainings) >= 5  # of the precision there are several
    try:
        torch.set_num_threads(trainings["threads"] + 2)  # training changes its mind: that holds, too
        with switch():
            assert settings_now() == engines
        assert torch.get_num_threads() == trainings["threads"] + 2
    finally:
        apply_settings(trainings)


def test_trainings_autocast_is_not_the_engines() -> None:
    """It would round logits that the engine is asked for in float32."""
    switch, rows = EngineSettings(torch.device("cpu")), torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with switch():
            assert (rows @ rows).dtype == torch.float32
        assert (rows @ rows).dtype == torch.bfloat16


def test_precision_by_the_newer_interface_comes_back() -> None:
    """`tf32: true` sets it by that; the older one then refuses to say what it is, and vLLM sets it by the older."""
    before, switch = settings_now(), EngineSettings(torch.device("cpu"))
    try:
        torch.backends.fp32_precision = "tf32"
        assert _matmul_precision() == "high"
        trainings = settings_now()
        with switch():
            torch.set_float32_matmul_precision("highest")
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert {**settings_now(), "float32_matmul_precision": None} == trainings
    finally:
        torch.backends.fp32_precision = "none"
        apply_settings(before)


def test_variables_are_for_the_engines_start_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    with variables_restored():
        os.environ |= {"LOCAL_WORLD_SIZE": "1", "LD_PRELOAD": "libtcmalloc.so", "VLLM_LOGGING_LEVEL": "ERROR"}
    assert os.environ["LOCAL_WORLD_SIZE"] == "8" and "LD_PRELOAD" not in os.environ
    assert os.environ.pop("VLLM_LOGGING_LEVEL") == "ERROR"  # read while it samples


def test_tokens_that_the_teacher_does_not_score_are_biased_away() -> None:
    assert vllm_rollout._never(range(250, 253)) == {250: -torch.inf, 251: -torch.inf, 252: -torch.inf}
    assert vllm_rollout._never(range(250, 250)) is None
    with pytest.raises(RecipeError, match="cannot keep 1025 tokens"):
        vllm_rollout._never(range(1025))


@pytest.mark.slow
def test_two_engines_of_two_processes(tmp_path: Path) -> None:
    """Slow: four processes. Each sees its engine's requests in the same order and takes its own back."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]
    done = execute([*torchrun, str(WORKER), str(tmp_path)])
    assert done.returncode == 0, done.stderr[-4000:]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    # rank r asks for r prompts [r, i]; the engine's fake answers with each prompt's own numbers
    assert [rank["asked"] for rank in seen] == [[[1, 0]], [[1, 0]], *[[[2, 0], [2, 1], [3, 0], [3, 1], [3, 2]]] * 2]
    assert [rank["got"] for rank in seen] == [[[rank, i] for i in range(rank)] for rank in range(4)]
    assert [rank["refused"] for rank in seen] == ["vllm_tensor_parallel_size: 3 does not divide the 4 processes"] * 4
