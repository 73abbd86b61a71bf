"""The benchmark runs end to end on sizes too small to time, lists every estimator and computes every ratio."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_loss.py"
TINY = ["--tokens=8", "--hidden=16", "--vocab=300", "--rounds=1", "--threads=1"]
ESTIMATORS = ["none", "constant", "value", "value_topk", "optimal", "full", "topk", "value, variances"]
ESTIMATORS += ["rao_blackwell_tail", "rao_blackwell_optimal", "forward", "jsd"]


def benchmark(*arguments):
    command = [sys.executable, SCRIPT, *TINY, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_every_contender_is_timed_and_every_ratio_is_a_number(tmp_path):
    report = tmp_path / "report.md"
    printed = benchmark("--tables", "time", f"--output={report}")
    rows = [line.split("|")[1:-1] for line in report.read_text().splitlines() if line.startswith("| ")]
    header, _rule, *body = [[cell.strip() for cell in row] for row in rows]
    assert set(ESTIMATORS) < {row[0] for row in body}
    assert "torch 2" in report.read_text() and body[0][0] in printed
    for row in body:
        for title, cell in zip(header[1:], row[1:]):
            assert ("TRL" in title and not cell) or math.isfinite(float(cell)), (row[0], title)


def test_what_the_variances_add_is_a_ratio_with_its_quartiles():
    rows = [
        line.split("|")[1:-1]
        for line in benchmark("--tables", "variances", "--rounds=3").splitlines()
        if "head" in line
    ]
    assert [row[0].strip() for row in rows] == ["frozen head", "trained head"]
    for *_, ratio, quartiles in rows:
        low, high = map(float, quartiles.split(" to "))
        assert 0 < low <= float(ratio) <= high < math.inf


def test_a_peak_is_measured_in_a_process_of_its_own():
    assert int(benchmark("--peak", "value", "trained")) >= 300 * 16 * 4  # at least the gradient of the head


@pytest.mark.slow  # a process that trains
def test_what_the_variances_add_to_a_step_is_a_ratio_with_its_quartiles(write_recipe):
    script = SCRIPT.with_name("benchmark_step.py")
    recipe = write_recipe(learning_rate=None, output_dir=None, max_steps=None, disable_tqdm=None)
    command = [sys.executable, script, recipe, "--rounds"]
    printed = subprocess.run([*command, "3"], check=True, capture_output=True, text=True).stdout
    for line, name in zip(printed.strip().splitlines()[-2:], ("clock", "CPU time")):
        clock, rounds, without, with_it, ratio, quartiles = (cell.strip() for cell in line.split("|")[1:-1])
        assert (clock, rounds) == (name, "3") and float(without) > 0 < float(with_it)
        low, high = map(float, quartiles.split(" to "))
        assert 0 < low <= float(ratio) <= high < math.inf
    refused = subprocess.run([*command, "1"], capture_output=True, text=True)
    assert refused.returncode == 2 and "error: --rounds must be at least 2" in refused.stderr
