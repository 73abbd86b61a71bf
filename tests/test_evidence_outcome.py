"""Runs of several methods and seeds, what is made of them, and the error of top-k baselines."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from vopd_recipes.config import load_recipe
from vopd_recipes.estimators import Estimator, reference_loss
from vopd_recipes.evidence.baselines import measure_baselines, write_baselines
from vopd_recipes.evidence.measurement import freeze
from vopd_recipes.evidence.outcome import METHODS, Run, plan
from vopd_recipes.evidence.outcome_report import interval, paired, write_report
from vopd_recipes.recipe_text import RecipeError
from vopd_recipes.report import history_of, series

ROOT = Path(__file__).parents[1]


def test_intervals_are_students() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(2.7764451 * math.sqrt(2.5 / 5), rel=1e-6)  # t of 4 degrees of freedom
    assert math.isnan(interval([1.0]).half)


def test_pairs_cancel_what_seeds_share() -> None:
    hard, noise = [0.1, 0.5, 0.9], [0.01, -0.01, 0.0]  # what a seed adds to both
    found = paired([0.2 + x + e for x, e in zip(hard, noise)], [0.1 + x for x in hard])
    assert found.mean == pytest.approx(0.1) and found.half == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-6)
    assert found.p == pytest.approx(0.0033, abs=1e-4)
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired([1.0, -1.0, 1.0, -1.0], [0.0] * 4).p == 1.0


def test_every_seed_of_all_methods_comes_before_the_next(tmp_path: Path) -> None:
    runs = plan(tmp_path, [METHODS["opd"], METHODS["vopd"]], range(2))
    assert [run.folder.name for run in runs] == ["opd-seed0", "vopd-seed0", "opd-seed1", "vopd-seed1"]


def finished(folder: Path, name: str, seed: int, values: list[float]) -> Run:
    """A run as it lies on disk: an evaluation every five steps, one second a step."""
    run = Run(METHODS[name], seed, folder / f"{name}-seed{seed}")
    history: list[dict] = []
    for index, value in enumerate(values):
        step = 5 * index
        history += [{"step": step, "eval_reverse_kl": value, "eval_accuracy": 1 - value}]
        history += [{"step": step, "grad_norm": 1.0 + seed, "time/rollout": 0.4, "time/train": 0.6}]
    run.folder.mkdir(parents=True)
    (run.folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return run


def test_the_table_says_what_the_runs_did(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "opd", seed, [0.5, 0.4, 0.3 + 0.02 * seed]) for seed in (0, 1)]
    runs += [finished(tmp_path, "vopd", seed, [0.5, 0.3, 0.1 + 0.02 * seed]) for seed in (0, 1)]
    text = write_report(runs, tmp_path)
    assert "steps to reverse KL ≤ 0.310" in text  # the mean of OPD's ends
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    half = 12.7062047 * math.sqrt(0.0002) / math.sqrt(2)
    assert "| vOPD | 2 | " + f"89.0 ± {100 * half:.1f} | 0.1100 ± {half:.4f} | 1.500 ± 6.353 | 5 | 1.00 |" in text
    assert "| OPD | 2 |" in text and "10 (1 of 2 runs)" in text  # seed 1 ends at 0.32
    content = json.loads((tmp_path / "estimators.json").read_text())
    assert content["differences"]["opd"]["vopd"]["reverse_kl"]["mean"] == pytest.approx(-0.2)
    assert content["differences"]["opd"]["vopd"]["accuracy"]["mean"] == pytest.approx(0.2)
    assert rows["vOPD"][0].startswith("+20.0")  # the last table of that name: minus OPD
    for picture in ("reverse-kl.png", "accuracy.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    one = finished(tmp_path, "opd", 0, [0.5])
    with pytest.raises(RecipeError, match="no method has two finished seeds"):
        write_report([one], tmp_path)
    (one.folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 1.0}]}))
    with pytest.raises(RecipeError, match="never evaluated"):
        write_report([one], tmp_path)


@pytest.mark.slow  # six real runs: the command's promise is about processes
def test_a_failed_run_costs_no_other_and_the_rest_goes_on(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe(dataset_test_split="test", eval_strategy="steps", eval_steps=1, eval_on_start=True)
    output = tmp_path / "runs"
    words = [sys.executable, "scripts/compare_estimators.py", str(recipe), "--output", str(output), "--seeds", "2"]
    words += ["--methods", "opd,vopd,opd_full", "--jobs", "2", "--max_steps", "1"]
    output.mkdir()
    (output / "vopd-seed0").write_text("in the way")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    failures = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(failures) == 1 and failures[0].startswith("error: vopd-seed0: ")
    assert "| OPD full | 2 |" in done.stdout and "| vOPD | 1 |" in done.stdout
    states = {path: path.stat().st_mtime_ns for path in output.glob("*/trainer_state.json")}
    assert len(states) == 5
    (output / "vopd-seed0").unlink()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| vOPD | 2 |" in done.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in states.items())  # nothing was done twice
    curves = [
        series(history_of(output / f"{name}-seed0"), "eval_reverse_kl")[1] for name in ("opd", "vopd", "opd_full")
    ]
    assert len({curve[-1] for curve in curves}) == 3  # three estimators
    assert len({curve[0] for curve in curves}) == 1  # of one student


def test_an_unknown_method_or_field_is_one_line(write_recipe) -> None:
    for flags, message in (
        (["--methods", "vopds"], "error: --methods: no method 'vopds'; did you mean 'vopd'?"),
        (
            ["--learning_rat", "1"],
            "error: --learning_rat: unknown field 'learning_rat'; did you mean 'learning_rate'?",
        ),
    ):
        words = [sys.executable, "scripts/compare_estimators.py", str(write_recipe()), *flags]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.strip().splitlines()[-1] == message


def test_baseline_errors_are_those_of_the_dense_definition(write_recipe, tiny_pair, tmp_path: Path) -> None:
    recipe = load_recipe(str(write_recipe()), [])
    found = measure_baselines(recipe, None, 8)
    models = [AutoModelForCausalLM.from_pretrained(path).double() for path in (tiny_pair.student, tiny_pair.teacher)]

    def oracle(estimator: Estimator) -> tuple[torch.Tensor, torch.Tensor]:
        """Baselines and rewards of every token."""
        parts = []
        for batch in freeze(recipe, None, 8).micro_batches(0):
            with torch.no_grad():
                asked = {"position_ids": batch.position_ids, "use_cache": False}  # packed: no cache
                logits = [model(batch.input_ids, **asked).logits[0] for model in models]
            parts.append(
                reference_loss(*(part[batch.completion_positions] for part in logits), batch.targets, estimator)[1]
            )
        return torch.cat([part.baseline for part in parts]), torch.cat([part.reward for part in parts])

    value, reward = oracle(Estimator())
    assert found["tokens"] == len(value)
    assert found["value"] == pytest.approx(value.abs().mean().item(), rel=1e-4)
    assert torch.tensor(found["rewards"]).sub(reward).abs().max() < 1e-4
    assert torch.tensor(found["advantages"]).sub(reward - value).abs().max() < 1e-4
    for support in ("student", "teacher"):
        errors = dict(map(tuple, found["errors"][support]))
        assert list(errors) == [1, 2, 3, 5, 10, 20, 50, 100, 200]
        for k in (5, 100):
            baseline, _ = oracle(Estimator(baseline="value_topk", baseline_support=support, support_top_k=k))
            assert errors[k] == pytest.approx((baseline - value).abs().mean().item(), rel=1e-3)
        assert errors[200] < 0.5 * errors[5]
    assert f"over {len(value)} tokens" in write_baselines(found, tmp_path)
    assert (tmp_path / "baselines.png").read_bytes()[:4] == b"\x89PNG"
    assert "rewards" not in json.loads((tmp_path / "baselines.json").read_text())
