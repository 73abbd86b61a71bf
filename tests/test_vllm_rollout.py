"""A real vLLM engine against transformers: the same tokens, the same log-probabilities, the student's current weights.

Slow, because importing and starting an engine takes ten seconds; three are started, each in a process of its own, and
every test asserts on what one of them saw.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from conftest import TinyPair
from launching import execute, needs_vllm

from vopd_recipes.recipe import RecipeError
from vopd_recipes.rollout import vllm_engine as vllm_rollout

WORKER = Path(__file__).parent / "vllm_worker.py"
KINDS = ["tied", "untied", "lora"]

pytestmark = [pytest.mark.slow, needs_vllm]


@pytest.fixture(scope="module")
def saw(tiny_pair: TinyPair, tmp_path_factory: pytest.TempPathFactory):
    """What the engine of a kind saw; each is started once."""
    folder, cache = tmp_path_factory.mktemp("vllm"), {}

    def of(kind: str) -> dict:
        if kind not in cache:
            model = tiny_pair.teacher if kind == "untied" else tiny_pair.student
            output = folder / f"{kind}.json"
            done = execute(
                [sys.executable, str(WORKER), str(model), "lora" if kind == "lora" else "full", str(output)]
            )
            assert done.returncode == 0, done.stderr[-4000:]
            cache[kind] = json.loads(output.read_text())
        return cache[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_and_greedy_tokens_are_the_trainers(saw, kind) -> None:
    assert saw(kind)["greedy"]
    assert saw(kind)["first"]["gap"] < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_sync_brings_the_new_weights_and_forgetting_it_shows(saw, kind) -> None:
    assert saw(kind)["synced"]["gap"] < 1e-4
    assert saw(kind)["forgotten"]["gap"] > 1e-2
    assert saw(kind)["forgotten"]["importance"] > 1e-2  # the ratio that the loss weights with


def test_merging_adapters_leaves_the_base_as_it_is(saw) -> None:
    assert saw("lora")["base_unchanged"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_depends_on_its_own_seed_alone(saw, kind) -> None:
    assert saw(kind)["alone"] and saw(kind)["reverse"]
    assert saw(kind)["crowd"]
    assert saw(kind)["none"] == []


def test_completions_end_at_an_end_token_or_at_the_limit(saw) -> None:
    assert saw("tied")["lengths"] == [12] * 7
    assert not any(finished for finished, _ in saw("tied")["finished"])
    ended = saw("tied")["ended"]
    assert any(finished for finished, _, _ in ended) and not all(finished for finished, _, _ in ended)
    for finished, ends_with_it, has_it_before in ended:
        assert finished == ends_with_it and not has_it_before


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_beyond_the_vocabulary_are_never_drawn(saw, kind) -> None:
    """And the others' log-probabilities are renormalised: the trainer's, in the test above, are over 250 tokens."""
    assert saw(kind)["largest_token"] < 250


def test_training_finds_its_settings_as_it_left_them(tiny_pair: TinyPair, tmp_path: Path) -> None:
    """Another engine, for the settings are unusual from before its start."""
    output = tmp_path / "seen.json"
    done = execute(
        [sys.executable, str(WORKER.with_name("vllm_settings_worker.py")), str(tiny_pair.student), str(output)]
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(output.read_text())
    for moment in ("started", "sampled", "again"):
        assert seen[moment] == seen["before"], moment
    assert seen["before"]["threads"] == 3 and seen["settable"] == 2
    changed = [
        name for name, value in seen["engine's"]["settings"].items() if value != seen["before"]["settings"][name]
    ]
    assert {"set_num_threads", "threads"} & set(changed)  # so there was something to restore


def test_what_goes_wrong_is_one_line(saw) -> None:
    seen = saw("tied")
    assert seen["too_long"].endswith("a prompt of 60 tokens and 12 new ones exceed vllm_max_model_len: 64")
    assert seen["wrong_shape"].startswith("vLLM could not take the weights over: ")
    assert seen["broken_stream"] == "vLLM could not take the weights over: OSError: the other node is gone"


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_rollout.importlib.util, "find_spec", lambda name: None)
    before = dict(os.environ)
    with pytest.raises(RecipeError, match="rollout_backend: vllm is not installed here"):
        vllm_rollout._check_installed()
    assert dict(os.environ) == before
