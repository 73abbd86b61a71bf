"""Runs of several methods and seeds, what is made of them, and the error of top-k baselines."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from scipy import stats
from transformers import AutoModelForCausalLM, TrainerState

from vopd_recipes.evidence import baselines
from vopd_recipes.evidence.baselines import MASSES, measure_baselines
from vopd_recipes.evidence.baselines_report import baselines_table, write_baselines
from vopd_recipes.evidence.execution import execute, locked
from vopd_recipes.evidence.gradients import SAMPLED
from vopd_recipes.evidence.intervals import interval, paired, ratio_of_means, seeds_needed, with_interval
from vopd_recipes.evidence.kept import Log, add_logs, read_logs, write_logs
from vopd_recipes.evidence.measurement import freeze
from vopd_recipes.evidence.outcome import Run, check_runs, compared, plan
from vopd_recipes.evidence.outcome_plots import plot_curves, shared_curves, training_curves
from vopd_recipes.evidence.outcome_report import write_comparison
from vopd_recipes.files import history_of, mark_complete, series
from vopd_recipes.loss import Estimator, TokenStats, reference_loss
from vopd_recipes.models import load_student, load_teacher, load_tokenizer
from vopd_recipes.prompts import build_prompts, read_rows
from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.training import VOPDTrainer, finish_run

ROOT = Path(__file__).parents[1]


def test_intervals_are_students() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(2.7764451 * math.sqrt(2.5 / 5), rel=1e-6)  # t of 4 degrees of freedom
    assert math.isnan(interval([1.0]).half)
    assert interval([0.25]).text("{:.1f}", 100) == "25.0"  # a single seed has no interval
    assert interval([1.0, 1.0]).text("{:.0f}") == "1 ± 0"


def test_pairs_cancel_what_seeds_share() -> None:
    hard, noise = [0.1, 0.5, 0.9], [0.01, -0.01, 0.0]  # what a seed adds to both
    found = paired([0.2 + x + e for x, e in zip(hard, noise)], [0.1 + x for x in hard])
    assert found.mean == pytest.approx(0.1) and found.half == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-6)
    assert found.p == pytest.approx(0.0033, abs=1e-4)
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired([1.0, -1.0, 1.0, -1.0], [0.0] * 4).p == 1.0
    assert paired([2.0, 3.0], [1.0, 2.0]).p == 0.0


@pytest.mark.parametrize(("size", "pairs"), [(1.0, 10), (0.5, 34), (0.2, 199), (0.1, 787), (-1.0, 10), (30.0, 3)])
def test_seeds_needed_are_the_textbooks(size: float, pairs: int) -> None:
    """Of a paired t-test, two-sided at 5 %, with a power of 80 %: as power tables have them."""
    assert seeds_needed(size * 0.7, 0.7) == pairs


def test_differences_that_no_number_of_seeds_would_find() -> None:
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(0.01, 1.0) is None
    scattered = paired([1.0, -1.0, 1.2, -1.1, 0.5], [0.0] * 5)
    assert scattered.p > 0.5 and scattered.needed is not None and scattered.needed > 50


def test_every_seed_of_all_methods_comes_before_the_next(tmp_path: Path) -> None:
    runs = plan(tmp_path, [compared()["opd"], compared()["vopd"]], range(2))
    assert [run.folder.name for run in runs] == ["opd-seed0", "vopd-seed0", "opd-seed1", "vopd-seed1"]


def test_a_methods_title_tells_its_k(write_recipe) -> None:
    """Whatever the recipe's own support_top_k is."""
    recipe = write_recipe(support_top_k=7)
    titles = {name: re.search(r"top-k \((\d+)\)", method.title) for name, method in compared().items()}
    ks = {name: int(match[1]) for name, match in titles.items() if match}
    assert ks == {"opd_topk": 20, "vopd_topk_5": 5, "vopd_topk_20": 20, "vopd_topk_100": 100}
    for name, k in ks.items():
        assert load_recipe(recipe, list(compared()[name].flags)).training.support_top_k == k


def test_a_method_named_twice_runs_once(tmp_path: Path) -> None:
    runs = plan(tmp_path, [compared()["opd"], compared()["vopd"], compared()["opd"]], range(1))
    assert [run.folder.name for run in runs] == ["opd-seed0", "vopd-seed0"]


def finished(folder: Path, name: str, seed: int, values: list[float], logging_steps: int = 5) -> Run:
    """A run as it lies on disk: an evaluation every five steps from the fifth, 1.1 seconds a step."""
    run = Run(compared()[name], seed, folder / f"{name}-seed{seed}")
    history: list[dict] = []
    for index, value in enumerate(values):
        step = 5 * (index + 1)
        seconds = {"time/rollout": 0.4, "time/sync": 0.1, "time/train": 0.6}  # the mean over the line's steps
        for logged in range(step - 5 + logging_steps, step + 1, logging_steps):
            history += [{"step": logged, "grad_norm": 1.0 + seed, **seconds}]
        history += [{"step": step, "eval_reverse_kl": value, "eval_accuracy": 1 - value}]
    run.folder.mkdir(parents=True)
    (run.folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return run


def test_the_table_says_what_the_runs_did(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "opd", seed, [0.5, 0.4, 0.3 + 0.02 * seed]) for seed in (0, 1)]
    runs += [finished(tmp_path, "vopd", seed, [0.5, 0.3, 0.1 + 0.02 * seed]) for seed in (0, 1)]
    text = write_comparison(runs, tmp_path)
    assert "steps to reverse KL ≤ 0.310" in text  # the mean of OPD's ends
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    half = 12.7062047 * math.sqrt(0.0002) / math.sqrt(2)
    assert (
        "| vOPD | 2 | " + f"89.0 ± {100 * half:.1f} | 0.1100 ± {half:.4f} | 1.500 ± 6.353 | 10 ± 0 | 1.10 ± 0.00 |"
        in text
    )
    assert "| OPD | 2 |" in text and "≥ 15 (1 of 2 runs)" in text  # seed 0 comes to it in 15 steps, seed 1 not in 15
    content = json.loads((tmp_path / "estimators.json").read_text())
    assert content["differences"]["opd"]["vopd"]["reverse_kl"]["mean"] == pytest.approx(-0.2)
    assert content["differences"]["opd"]["vopd"]["accuracy"]["mean"] == pytest.approx(0.2)
    assert "steps_to_target" not in content["differences"]["opd"]["vopd"]  # one of OPD's never came to it
    assert content["methods"]["opd"]["0"]["hours"] == pytest.approx(15 * 1.1 / 3600)
    assert rows["vOPD"][0].startswith("+20.0")  # the last table of that name: minus OPD
    for picture in ("reverse-kl.png", "accuracy.png"):
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"


def test_steps_and_seconds_are_paired_where_every_run_has_them(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "opd", seed, [0.5, 0.4, 0.3], logging_steps=1) for seed in (0, 1)]
    runs += [finished(tmp_path, "vopd", seed, [0.5, 0.3 - 0.2 * seed, 0.1]) for seed in (0, 1)]
    text = write_comparison(runs, tmp_path, target=0.3)
    content = json.loads((tmp_path / "estimators.json").read_text())
    assert content["differences"]["opd"]["vopd"]["steps_to_target"]["mean"] == pytest.approx(-5)
    assert content["differences"]["opd"]["vopd"]["seconds_per_step"]["mean"] == pytest.approx(0)
    assert content["differences"]["vopd"]["opd"]["steps_to_target"]["mean"] == pytest.approx(5)
    assert "| vOPD | " in text and "| -5 | 2 seeds | +0.00 | 2 seeds |" in text  # not ± 0 and p < 0.001
    assert text.count("2 seeds: too few for a difference's interval and p-value") == 2  # under each table
    hours = {seed: found["hours"] for name in ("opd", "vopd") for seed, found in content["methods"][name].items()}
    assert list(hours.values()) == pytest.approx([15 * 1.1 / 3600] * 2)  # whatever the steps of a log line


def test_three_seeds_have_an_interval(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "opd", seed, [0.5, 0.4, 0.3], logging_steps=1) for seed in (0, 1, 2)]
    runs += [finished(tmp_path, "vopd", seed, [0.5, 0.3 - 0.2 * seed / 2, 0.1]) for seed in (0, 1, 2)]
    text = write_comparison(runs, tmp_path, target=0.3)
    assert "| -5 ± 0 | < 0.001 | +0.00 ± 0.00 | 1.000 |" in text and "too few" not in text


def test_runs_that_logged_no_step_are_compared_by_their_evaluations(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "opd", seed, [0.5 + 0.1 * seed]) for seed in (0, 1)]
    for run in runs:
        lines = [line for line in run.history if "eval_reverse_kl" in line]
        (run.folder / "trainer_state.json").write_text(json.dumps({"log_history": lines}))
    text = write_comparison(runs, tmp_path)
    assert "| OPD | 2 |" in text and "gradient norm" not in text and "seconds a step" not in text
    assert json.loads((tmp_path / "estimators.json").read_text())["methods"]["opd"]["0"]["hours"] is None


def test_columns_that_nothing_fills_are_left_out(tmp_path: Path) -> None:
    """Prompts without answers have no accuracy; a target that not every run comes to has no difference in steps."""
    runs = [finished(tmp_path, "opd", seed, [0.5 + 0.1 * seed]) for seed in (0, 1)]
    runs += [finished(tmp_path, "vopd", seed, [0.4]) for seed in (0, 1)]
    for run in runs:
        lines = [{k: v for k, v in line.items() if k != "eval_accuracy"} for line in run.history]
        (run.folder / "trainer_state.json").write_text(json.dumps({"log_history": lines}))
    headings = [line for line in write_comparison(runs, tmp_path).splitlines() if "reverse KL" in line and "|" in line]
    assert "accuracy" not in "".join(headings) and "steps to target" not in "".join(headings)
    assert headings[1] == "| minus OPD, seed by seed | reverse KL | p | seconds a step | p |"


def test_curves_are_means_over_the_steps_that_runs_share(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "vopd", 0, [0.5, 0.3, 0.1]), finished(tmp_path, "vopd", 1, [0.7, 0.5])]
    assert shared_curves(runs) == {5: [0.5, 0.7], 10: [0.3, 0.5]}
    pictures = []
    for names in (("opd", "vopd", "vopd_topk_5"), ("opd", "vopd", "vopd_topk_5", "vopd_topk_20")):
        path = tmp_path / f"{len(names)}.png"
        plot_curves({name: [finished(tmp_path / path.stem, name, 0, [0.5, 0.4])] for name in names}, path)
        with Image.open(path) as image:
            pictures.append(image.width)
    assert pictures[1] > 1.4 * pictures[0]  # several top-k baselines have a panel of their own


def test_runs_that_were_evaluated_once_are_drawn_by_their_own_completions(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "opd", seed, [0.5]) for seed in (0, 1)]
    for run in runs:
        lines = [{"step": step, "reverse_kl": float(step + run.seed)} for step in range(1, 41)]
        state = {"log_history": [*run.history, *lines]}
        (run.folder / "trainer_state.json").write_text(json.dumps(state))
    curves = training_curves(runs)
    assert list(curves) == list(range(4, 41, 4)) and curves[4] == [2.5, 3.5] and curves[40] == [38.5, 39.5]
    write_comparison(runs, tmp_path)
    assert (tmp_path / "reverse-kl.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_that_was_not_evaluated_costs_no_other(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "opd", seed, [0.5, 0.4]) for seed in (0, 1, 2)]
    (runs[1].folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 1.0}]}))
    text = write_comparison(runs, tmp_path)
    assert "| OPD | 2 |" in text and "Left out, never evaluated: opd-seed1." in text
    assert json.loads((tmp_path / "estimators.json").read_text())["left_out"] == ["opd-seed1"]


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    one = finished(tmp_path, "opd", 0, [0.5])
    with pytest.raises(RecipeError, match="no method has two finished seeds"):
        write_comparison([one], tmp_path)
    (one.folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 1.0}]}))
    with pytest.raises(RecipeError, match="no run was ever evaluated"):
        write_comparison([one], tmp_path)


# Runs that are there already -----------------------------------------------------------------------------------------


def began(recipe: Path, run: Run, *flags: str, checkpoint: bool = False, done: bool = True) -> Run:
    """A run as `scripts/run_vopd.py` leaves it: its resolved recipe, and how far it came."""
    run.folder.mkdir(parents=True, exist_ok=True)
    resolved = load_recipe(recipe, [*flags, *run.flags]).resolved()
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(resolved))
    if checkpoint:
        mark_complete(run.folder / "checkpoint-1")
    if done:
        (run.folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 1.0}]}))
    return run


@pytest.mark.parametrize(
    ("trained_with", "compared_with", "message"),
    [
        (["--learning_rate", "0.1"], [], r"opd-seed0: holds a run with learning_rate: 0.1, not 0.001; name another"),
        ([], ["--weight_decay", "0.5"], "holds a run with weight_decay: 0.0, not 0.5"),  # not in the recipe that was
        (["--max_test_prompts", "3"], [], "holds a run with max_test_prompts: 3, not None"),  # another yardstick
        ([], ["--report_to", "none", "--save_steps", "7", "--save_total_limit", "1"], None),
    ],
)
def test_runs_of_another_recipe_are_not_taken_over(write_recipe, tmp_path, trained_with, compared_with, message):
    recipe = write_recipe()
    runs = plan(tmp_path / "runs", [compared()["opd"]], range(2))
    check_runs(runs, recipe, [])  # nothing is there yet
    began(recipe, runs[0], *trained_with)
    if message is None:
        check_runs(runs, recipe, compared_with)
        return
    with pytest.raises(RecipeError, match=message):
        check_runs(runs, recipe, compared_with)


def test_a_run_of_another_method_or_seed_is_not_taken_over(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe()
    opd, vopd, second = (
        Run(compared()[name], seed, tmp_path / "x") for name, seed in (("opd", 0), ("vopd", 0), ("opd", 1))
    )
    began(recipe, opd)
    check_runs([opd], recipe, [])
    for other, field in ((vopd, "baseline: none, not value"), (second, "seed: 0, not 1")):
        with pytest.raises(RecipeError, match=f"holds a run with {field}"):
            check_runs([other], recipe, [])
    (opd.folder / "recipe.yaml").unlink()
    with pytest.raises(RecipeError, match="nobody knows what was trained there"):
        check_runs([opd], recipe, [])


def test_a_run_that_was_cut_off_is_held_to_its_recipe_where_it_goes_on(write_recipe, tmp_path: Path) -> None:
    """Without a whole checkpoint it begins anew, whatever it was."""
    recipe = write_recipe()
    (run,) = plan(tmp_path, [compared()["opd"]], range(1))
    began(recipe, run, "--eval_steps", "5", done=False)
    check_runs([run], recipe, [])
    began(recipe, run, "--eval_steps", "5", checkpoint=True, done=False)
    with pytest.raises(RecipeError, match="holds a run with eval_steps: 5.0, not None"):
        check_runs([run], recipe, [])
    check_runs([run], recipe, ["--eval_steps", "5"])


def test_a_recipe_of_an_earlier_version_lacks_a_field(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe()
    (run,) = plan(tmp_path, [compared()["opd"]], range(1))
    path = began(recipe, run).folder / "recipe.yaml"
    fields = yaml.safe_load(path.read_text())
    del fields["importance_sampling_cap"], fields["chat_template_kwargs"]  # as if they had come later
    path.write_text(yaml.safe_dump(fields))
    check_runs([run], recipe, [])
    with pytest.raises(RecipeError, match="importance_sampling_cap: 2.0, not 3.0"):
        check_runs([run], recipe, ["--importance_sampling_cap", "3"])


def test_kept_logs_stand_for_the_runs(write_recipe, tmp_path: Path) -> None:
    """The same table without a folder, and the same refusal of another recipe."""
    recipe, file = write_recipe(), tmp_path / "kept" / "pair.json"
    methods = [compared()["opd"], compared()["vopd"]]
    runs = [finished(tmp_path / "runs", m.name, seed, [0.5, 0.3 - 0.01 * seed]) for m in methods for seed in (0, 1, 2)]
    for run in runs:
        began(recipe, run, done=False)
    table = write_comparison(runs, tmp_path)
    write_logs(file, {(run.method.name, run.seed): run.to_keep() for run in runs[:3]})
    write_logs(file, read_logs(file) | {(run.method.name, run.seed): run.to_keep() for run in runs[3:]})
    kept = plan(tmp_path / "elsewhere", methods, range(3), read_logs(file))
    assert all(run.done and not run.folder.exists() for run in kept)
    check_runs(kept, recipe, [])
    assert write_comparison(kept, tmp_path) == table
    (fourth,) = plan(tmp_path / "elsewhere", methods[:1], [3], read_logs(file))
    assert not fourth.done
    with pytest.raises(RecipeError, match=r"--kept: holds opd-seed0 with learning_rate: 0.001, not 0.1; name another"):
        check_runs(kept, recipe, ["--learning_rate", "0.1"])


def test_kept_logs_are_small_and_have_five_digits(write_recipe, tmp_path: Path) -> None:
    run = began(write_recipe(), finished(tmp_path, "opd", 0, [1.23456789]), done=False)
    history = [{**line, "reward/mean": 1.0, "loss": 2.0} for line in run.history]
    history += [{"step": 5, "eval_reverse_kl": 0.1, "eval_reverse_kl_stderr": 0.01}, {"step": 5, "train_runtime": 9.0}]
    (run.folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    write_logs(tmp_path / "kept.json", {("opd", 0): run.to_keep()})
    (log,) = read_logs(tmp_path / "kept.json").values()
    assert {name for line in log.history for name in line} == {
        "step", "grad_norm", "time/rollout", "time/sync", "time/train", "eval_reverse_kl", "eval_reverse_kl_stderr",
        "eval_accuracy",
    }  # fmt: skip
    assert [line["eval_reverse_kl"] for line in log.history if "eval_accuracy" in line] == [1.2346]
    assert "output_dir" not in log.recipe and log.recipe["baseline"] == "none"


def test_comparisons_that_end_together_keep_the_runs_of_each_other(tmp_path: Path) -> None:
    file, log = tmp_path / "kept.json", Log({"seed": 0}, [{"step": 1, "reverse_kl": 0.5}])
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda seed: add_logs(file, {("opd", seed): log}), range(64)))
    assert {seed for _, seed in read_logs(file)} == set(range(64))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"recipe": {}}', '{"recipe": {}, "runs": [{"method": "opd"}]}', '{"a": 1}']
)
def test_what_is_no_file_of_kept_runs(tmp_path: Path, text: str) -> None:
    (tmp_path / "kept.json").write_text(text)
    with pytest.raises(RecipeError, match="not a file of kept runs"):
        read_logs(tmp_path / "kept.json")


def test_a_run_is_done_when_its_state_is_whole(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, [compared()["opd"]], range(1))
    assert not run.done
    run.folder.mkdir()
    for text, done in (("", False), ('{"log_history": [{"st', False), ("[]", False), ('{"log_history": [{}]}', True)):
        (run.folder / "trainer_state.json").write_text(text)
        assert run.done == done


def test_a_state_that_was_cut_off_is_no_state(write_recipe, monkeypatch) -> None:
    """A process that is killed while it writes the last file has not finished its run."""
    recipe = load_recipe(write_recipe())
    tokenizer = load_tokenizer(recipe.model)
    prompts = build_prompts(read_rows(recipe.data, 0), recipe.data, tokenizer).train
    models = load_student(recipe.model), load_teacher(recipe.model)
    trainer = VOPDTrainer(*models, recipe.training, processing_class=tokenizer, train_dataset=prompts)

    def killed(state: TrainerState, json_path: str) -> None:
        Path(json_path).write_text('{"log_history": [{"st')
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainerState, "save_to_json", killed)
    with pytest.raises(KeyboardInterrupt):
        finish_run(trainer)
    run = Run(compared()["opd"], 0, trainer.output_dir)
    assert not run.done and not (run.folder / "trainer_state.json").exists()
    monkeypatch.undo()
    trainer.state.log_history.append({"step": 1, "loss": 1.0})
    finish_run(trainer)
    assert run.done


def test_what_hinders_a_run_is_its_failure_and_no_others(write_recipe, tmp_path: Path) -> None:
    runs = [began(write_recipe(), run) for run in plan(tmp_path / "runs", [compared()["opd"]], range(2))]
    (runs[0].folder / "trainer_state.json").unlink()
    runs[0].log.mkdir()
    with locked(tmp_path / "runs") as lock:
        failed = execute(runs, tmp_path / "recipe.yaml", [], 1, lock)
    assert list(failed) == [runs[0]] and "Is a directory" in failed[runs[0]]


def test_one_comparison_at_a_time_in_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(RecipeError, match="another comparison, or a run it left behind, is at work there")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


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


@pytest.mark.slow  # two real runs that fail: what they said must not be lost with the table
def test_reasons_are_told_where_nothing_can_be_compared(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe(model_name_or_path=str(tmp_path / "no-such-student"))
    words = [sys.executable, "scripts/compare_estimators.py", str(recipe), "--output", str(tmp_path / "runs")]
    words += ["--methods", "opd", "--seeds", "2"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "opd-seed0.log").write_text("error: no-such-file, printed before it was cut off\n")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert {error.split(":")[1].strip() for error in errors[:2]} == {"opd-seed0", "opd-seed1"}
    assert sum("no-such-student" in error for error in errors) == 2
    assert "no method has two finished seeds" in errors[-1]
    before, command, *printed = (tmp_path / "runs" / "opd-seed0.log").read_text().splitlines()
    assert "printed before" in before and command.startswith("$ ") and "no-such-student" in printed[-1]


@pytest.mark.slow  # two real runs that would take minutes
@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_runs(write_recipe, tmp_path: Path, way: signal.Signals) -> None:
    output = tmp_path / "runs"
    words = [sys.executable, "scripts/compare_estimators.py", str(write_recipe(max_steps=100_000))]
    words += ["--output", str(output), "--methods", "opd", "--seeds", "2", "--jobs", "1"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(output.glob("opd-seed0/completions/*")):  # it trains
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(way)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: the same command resumes" in printed and "Traceback" not in printed
    with locked(output):  # which every run holds while it lives
        assert not (output / "opd-seed1.log").exists()


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


def test_a_ratio_of_means_lies_in_its_interval_nineteen_times_in_twenty() -> None:
    """Of six draws, numerator and denominator together, 2000 times over."""
    generator, held = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        below = 5 + torch.randn(6, generator=generator)
        above = 0.4 * below + 0.5 * torch.randn(6, generator=generator)
        found = ratio_of_means(above.tolist(), below.tolist())
        held.append(found["low"] <= 0.4 <= found["high"])
    assert 0.935 < sum(held) / len(held) < 0.965
    assert ratio_of_means([1.0, 2.0], [2.0, 4.0]) == {"value": 0.5}  # two draws have no interval
    assert ratio_of_means([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == {"value": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.parametrize(("count", "rel"), [(20, 0.1), (80, 0.15)])
def test_intervals_of_baselines_are_over_prompts(count: int, rel: float) -> None:
    """Two kinds of prompts, alike inside: tokens, and completions, would claim to be independent."""
    prompts = [*range(count)] * 3  # three completions each, in an order of their own
    values = torch.cat([torch.full((50,), float(prompt % 2)) for prompt in prompts])
    found = baselines._mean(values, torch.ones_like(values), [50] * 3 * count, prompts)
    assert found.value == 0.5
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, count - 1) * 0.5 / count**0.5, rel=rel)
    assert baselines._largest_share(torch.tensor([-3.0, -3.0, -1.0, -1.0]), [2, 1, 1]) == 0.75


def test_baseline_errors_are_those_of_the_dense_definition(write_recipe, tiny_pair, tmp_path: Path) -> None:
    recipe = load_recipe(str(write_recipe(baseline_constant=0.5)), [])
    found = measure_baselines(recipe, None, 8, draws=2)
    models = [AutoModelForCausalLM.from_pretrained(path).double() for path in (tiny_pair.student, tiny_pair.teacher)]

    def oracle(estimator: Estimator) -> tuple[torch.Tensor, torch.Tensor]:
        """Baselines and rewards of every token."""
        parts = dense(estimator)
        return torch.cat([part.baseline for part in parts]), torch.cat([part.reward for part in parts])

    def dense(estimator: Estimator) -> list[TokenStats]:
        """Of every micro-batch."""
        parts = []
        frozen = freeze(recipe, None, 8)
        for batch in frozen.micro_batches(0) + frozen.micro_batches(1):
            with torch.no_grad():
                asked = {"position_ids": batch.position_ids, "use_cache": False}  # packed: no cache
                logits = [model(batch.input_ids, **asked).logits[0] for model in models]
            parts.append(
                reference_loss(*(part[batch.completion_positions] for part in logits), batch.targets, estimator)[1]
            )
        return parts

    value, reward = oracle(Estimator())
    assert (found["tokens"], found["completions"]) == (len(value), 16)
    assert found["value"]["value"] == pytest.approx(value.abs().mean().item(), rel=1e-4)
    assert torch.tensor(found["rewards"]).sub(reward).abs().max() < 1e-4
    assert torch.tensor(found["advantages"]).sub(reward - value).abs().max() < 1e-4
    for support in ("student", "teacher"):
        errors = {k: measured["value"] for k, measured in found["errors"][support]}
        assert list(errors) == [1, 2, 3, 5, 10, 20, 50, 100, 200]
        for k in (5, 100):
            baseline, _ = oracle(Estimator(baseline="value_topk", support=support, support_top_k=k))
            assert errors[k] == pytest.approx((baseline - value).abs().mean().item(), rel=1e-3)
        assert errors[200] < 0.5 * errors[5]
    ratio = ((reward - value).square().sum() / reward.square().sum()).item()
    assert found["squared_ratio"]["value"] == pytest.approx(ratio, rel=1e-3)
    assert found["squared_ratio"]["low"] < ratio < found["squared_ratio"]["high"]
    for support, k in (("student", 5), ("teacher", 20)):
        parts = dense(Estimator("rao_blackwell", support=support, support_top_k=k, baseline_constant=0.5))
        measured = {name: ratio["value"] for name, ratio in found["variances"][support][k].items()}
        masses = {name: torch.cat([getattr(part, f"support_{name}") for part in parts]).mean() for name in MASSES}
        sums = {name: sum(part.gradient_variances[name].sum() for part in parts) for name in SAMPLED}
        expected = masses | {name: total / sums["none"] for name, total in sums.items()}
        assert measured == pytest.approx({name: float(ratio) for name, ratio in expected.items()}, rel=1e-3)
    text = write_baselines(found, tmp_path)
    assert text.startswith(f"{len(value):,} tokens of 16 completions")
    assert all(text.count(f"| `{name}` |") == 1 for name in SAMPLED + MASSES)
    kept = json.loads((tmp_path / "baselines.json").read_text())
    assert "rewards" not in kept and sum(kept["counts"]["reward"]) == len(value)
    assert baselines_table(kept) == text  # the file holds all that the tables do
    assert f"| none | {with_interval(kept['value'], '.3f')} |" in text
    assert (tmp_path / "baselines.png").read_bytes()[:4] == b"\x89PNG"
