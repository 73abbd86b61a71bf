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
def test_what_the_variances_or_a_method_add_to_a_step_is_a_ratio_with_its_quartiles(write_recipe):
    script = SCRIPT.with_name("benchmark_step.py")
    recipe = write_recipe(learning_rate=None, output_dir=None, max_steps=None, disable_tqdm=None)
    command = [sys.executable, script, recipe, "--rounds"]
    for words, names in ([], ["without", "with"]), (["--methods", "opd,vopd,opd_full"], ["opd", "vopd", "opd_full"]):
        printed = subprocess.run([*command, "3", *words], check=True, capture_output=True, text=True).stdout
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.strip().splitlines()]
        rows = rows[-len(names) :]
        assert [row[0] for row in rows] == names and {row[1] for row in rows} == {"3"}
        assert rows[0][3:5] == rows[0][6:8] == ["1.000", "1.000 to 1.000"]
        for _, _, *by_clock in rows:
            for each, ratio, quartiles in (by_clock[:3], by_clock[3:]):
                low, high = map(float, quartiles.split(" to "))
                assert float(each) > 0 and 0 < low <= float(ratio) <= high < math.inf
    refused = subprocess.run([*command, "1"], capture_output=True, text=True)
    assert refused.returncode == 2 and "error: --rounds must be at least 2" in refused.stderr
    refused = subprocess.run([*command, "2", "--methods", "vopdd"], capture_output=True, text=True)
    assert refused.returncode == 2 and "error: --methods: no method 'vopdd'; did you mean 'vopd'?" in refused.stderr
