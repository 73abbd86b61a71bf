"""docs/models.md says of each family what is seen of it.

Slow: six optimiser steps of each of 36 models, a minute and a half, and of some with vLLM, whose engines take seconds
each. Nothing smaller shows that a family trains; all engines would take ten minutes (`tests/families_table.py`).
"""

import re
import sys
from pathlib import Path

import pytest
from families_seen import save_random
from families_table import PAGE, look, parse, row, written
from family_configs import FAMILIES
from launching import SCRIPT, execute, needs_vllm

pytestmark = pytest.mark.slow
WITH_VLLM = ["Qwen3", "GPT-2", "Falcon-H1", "gpt-oss"]  # beside those of tests/test_families.py


@pytest.fixture(scope="module")
def page() -> tuple[dict[str, list[str]], list[str]]:
    return parse(PAGE.read_text(encoding="utf-8"))


def compare(page: tuple[dict[str, list[str]], list[str]], family: str, seen: dict[str, object], vllm: bool) -> None:
    """All cells of a row but the other backend's; gaps are not compared, they are right or have a note."""
    rows, notes = page
    other = {**seen, "full": 0.0, "lora": 0.0}
    cells = row(family, other if vllm else seen, seen if vllm else None, list(notes))
    others = (5, 7) if vllm else (6, 8)
    for number, (now, then) in enumerate(zip(cells, rows[family], strict=True)):
        if number not in others:
            assert re.sub(r"\de-\d\d", "right", now) == re.sub(r"\de-\d\d", "right", then), (family, seen)


def test_every_family_with_transformers(page, tmp_path: Path) -> None:
    seen = look("transformers", tmp_path, FAMILIES, number=len(FAMILIES))
    assert list(page[0]) == list(seen) == list(FAMILIES)
    for family, what in seen.items():
        compare(page, family, what, vllm=False)


@needs_vllm
def test_some_families_with_vllm(page, tmp_path: Path) -> None:
    for family, what in look("vllm", tmp_path, WITH_VLLM).items():
        compare(page, family, what, vllm=True)


def test_the_page_is_as_it_is_written(page) -> None:
    assert written(list(page[0].values()), page[1]) in PAGE.read_text(encoding="utf-8")


@needs_vllm
def test_a_sampler_with_other_experts_ends_the_run_before_its_first_step(write_recipe, tmp_path: Path) -> None:
    """As a user sees it: one line, exit status 1, nothing trained."""
    save_random("Qwen3-MoE", tmp_path / "moe")
    recipe = write_recipe(
        model_name_or_path=str(tmp_path / "moe"), rollout_backend="vllm", vllm_gpu_memory_utilization=0.1
    )
    done = execute([sys.executable, str(SCRIPT), str(recipe)])
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: step 1: rollout/logprob_gap is 0\.\d+ nats per token: what samples the completions", line)
    assert "is not the student; compare rollout_backend: transformers" in line
    assert not list((tmp_path / "run").glob("checkpoint-*"))
