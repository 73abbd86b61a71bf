"""What a run says: lines that fit, all numbers in a file, noise in another, and a way on after Ctrl-C."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vopd_recipes.console import WIDTH, duration, screen
from vopd_recipes.console.lines import before_and_after, heading, held_out_line, rows_text, step_line, wrapped
from vopd_recipes.recipe import load_recipe
from vopd_recipes.training import train

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_vopd.py"
LOGS = {
    "reverse_kl": 0.18342,
    "grad_norm": 0.01234,
    "advantage/std": 1.2345,
    "completion/length": 34.4,
    "completion/truncated": 0.125,
    "tokens_per_second": 5120.4,
}
EVALUATION = {"eval_accuracy": 0.4648, "eval_reverse_kl": 0.20581}


# Lines ---------------------------------------------------------------------------------------------------------------


def test_a_step_is_a_row_under_its_heading() -> None:
    title, row = heading(150), step_line(12, 150, LOGS, 3725)
    assert row == " 12/150      0.1834     0.0123      1.23      34        12%     5,120   1:02:05"
    assert len(title) == len(row) == 79
    ends = [(match.end(), word) for word in ("reverse KL", "grad norm", "left") if (match := re.search(word, title))]
    assert [row[:end].rsplit("  ", 1)[-1].strip() for end, _ in ends] == ["0.1834", "0.0123", "1:02:05"]
    assert step_line(1, 9, {"reverse_kl": 1.0}, 5).split() == ["1/9", "1.0000", "0:05"]


def test_no_line_is_wider_than_a_log() -> None:
    huge = {
        "reverse_kl": 12345.6789,
        "grad_norm": 1.23456e-12,
        "advantage/std": 1.23456e12,
        "completion/length": 131072.0,
        "completion/truncated": 1.0,
        "tokens_per_second": 12345678.9,
    }
    assert len(step_line(999_999, 999_999, huge, 3.2e7)) <= 100
    first = {"eval_accuracy": 1.0, "eval_reverse_kl": 12345.6789}
    assert len(held_out_line(999_999, first, first)) <= 100
    assert all(len(line) <= WIDTH for line in rows_text([("method", "word " * 99), ("", "word " * 99)], WIDTH))


def test_an_evaluation_stands_beside_the_first() -> None:
    assert held_out_line(0, EVALUATION, None) == "── held out, step 0: accuracy 46.5%, reverse KL 0.2058"
    later = {"eval_reverse_kl": 0.1}
    assert held_out_line(15, later, EVALUATION) == "── held out, step 15: reverse KL 0.1000 (first 0.2058)"


@pytest.mark.parametrize(
    ("history", "rows"),
    [
        (
            [EVALUATION, LOGS, {"eval_accuracy": 0.8, "eval_reverse_kl": 0.05}],
            [("held out", "accuracy 46.5% → 80.0%"), ("", "reverse KL 0.2058 → 0.0500")],
        ),
        ([LOGS, {"reverse_kl": 0.1}], [("training", "reverse KL 0.1834 → 0.1000")]),
        ([{"train_runtime": 1.0}], []),
    ],
)
def test_before_and_after(history: list[dict[str, float]], rows: list[tuple[str, str]]) -> None:
    assert before_and_after(history) == rows


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (125, "2:05"), (3599.6, "1:00:00"), (101_520, "1d 04:12")]
)
def test_a_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_path_is_left_to_be_copied() -> None:
    assert wrapped("a warning of many words " * 9)[0].count(" ") > 5
    assert wrapped(f"{'/folder' * 20} was not written to its end: removed") == [
        f"{'/folder' * 20} was not written to its end: removed"
    ]


# A run ---------------------------------------------------------------------------------------------------------------


def test_every_number_is_in_a_file_once(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where a run was killed after it had logged more than it had saved."""
    fields = {"save_steps": 1, "dataset_test_split": "test", "eval_strategy": "steps", "eval_steps": 1}
    recipe, folder = write_recipe(**fields), tmp_path / "run"
    train(load_recipe(recipe))
    printed, whole = capsys.readouterr().out, (folder / "metrics.jsonl").read_text()
    assert "{'loss'" not in printed and printed.count("\n── held out, step ") == 2
    assert len(re.findall(r"(?m)^ *[12]/2  ", printed)) == 2
    (folder / "model.safetensors").unlink()
    (folder / "checkpoint-2" / "complete").unlink()  # as if killed after step 2 was logged
    (folder / "metrics.jsonl").write_text(whole + '{"half')
    train(load_recipe(recipe))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


@pytest.mark.slow  # two processes: what a terminal's Ctrl-C does to the real command, and what the line it prints does
def test_an_interrupted_run_says_how_it_goes_on(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(save_steps=2, max_steps=16, output_dir="run", dataset_test_split="test", eval_on_start=True)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), recipe.name],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (tmp_path / "run" / "checkpoint-2" / "complete").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # a launcher hands it on
    out, errors = process.communicate(timeout=200)
    assert process.returncode == 130
    found = re.fullmatch(r"interrupted; resumes after step (\d+): (.*)\n", errors)
    assert found, errors
    saved = sorted((tmp_path / "run").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert all((path / "complete").exists() for path in saved) and saved[-1].name == f"checkpoint-{found[1]}"

    words = shlex.split(found[2])
    assert words[1:] == [str(SCRIPT), recipe.name]
    done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    assert f"resuming  from step {found[1]} of 16" in done.stdout
    assert max(map(len, (out + done.stdout).splitlines())) <= 100
    assert "── held out, step 0: " in out and "next      " in done.stdout
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 17))
    assert (tmp_path / "run" / "logs" / "rank-0.log").read_text() != ""  # bars of datasets, at least


# Noise ---------------------------------------------------------------------------------------------------------------

BEGIN = """
import ctypes, logging, os, sys
from pathlib import Path
from vopd_recipes.console import Noise, screen
with Noise(int(sys.argv[1])) as noise:
    os.write(1, b"raw\\n")
    ctypes.CDLL(None).puts(b"from C")
    print("a library", file=sys.stderr)
    logging.getLogger("vopd_recipes.room").warning("ours")
    logging.getLogger("vopd_recipes.room").warning("ours")
    logging.getLogger("library").warning("theirs")
    logging.getLogger("library").error("their error")
    screen.line("a step")
"""
NOISE = {"raw", "from C", "a library", "vopd_recipes.room: ours", "library: theirs", "library: their error"}


def run(code: str, folder: Path, rank: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, str(rank)], cwd=folder, capture_output=True, text=True)


def test_noise_goes_into_a_file_of_the_run(tmp_path: Path) -> None:
    keep = "    noise.keep(Path('run'))\n    os.system('echo a child')\n    sys.exit(3)"
    for rank in (0, 1):
        done = run(BEGIN + keep, tmp_path, rank)
        assert (done.returncode, done.stderr) == (3, "")
        assert done.stdout.splitlines() == (["ours", "their error", "a step"] if rank == 0 else ["a step"])
        assert set((tmp_path / "run" / "logs" / f"rank-{rank}.log").read_text().splitlines()) == NOISE | {"a child"}


def test_an_error_is_seen(tmp_path: Path) -> None:
    """With its traceback; and with the noise where that has no file yet."""
    done = run(BEGIN + "    1 / 0", tmp_path)
    assert done.returncode == 1 and set(done.stderr.splitlines()) >= NOISE
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n") and "Traceback" in done.stderr
    done = run(BEGIN + "    noise.keep(Path('run'))\n    1 / 0", tmp_path)
    assert done.stderr.startswith("what libraries have printed: run/logs/rank-0.log\nTraceback ")
    done = run(BEGIN + "    noise.keep(Path('run'))\n    ctypes.string_at(0)", tmp_path)
    assert done.returncode == -signal.SIGSEGV and "Fatal Python error: Segmentation fault" in done.stderr


def test_a_line_does_not_break_a_bar(tmp_path: Path) -> None:
    """On a terminal, where there are bars; in a log there are none."""
    code = """
from vopd_recipes.console import Noise, screen
with Noise(0):
    bar = screen.bar(total=3, desc="Sampling", leave=False)
    bar.update()
    screen.line("a step", "bold")
    screen.box("done", [("model", "here"), ("", "and there")], "green")
    bar.close()
"""
    assert run(code, tmp_path).stdout.splitlines()[0] == "a step"
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(sys.executable, [sys.executable, "-c", code])
    seen = b""
    while True:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # its end
            break
    assert os.waitpid(child, 0)[1] == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", seen.decode())
    assert "\rSampling:   0%|" in text
    assert re.search(r"\r +\ra step\r\n", text) and re.search(r"│ model  here +│\r\n│        and there +│", text)


def test_outside_of_a_run_bars_are_where_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.bar(total=1, desc="Answers") as bar:
        bar.update()
    printed = capsys.readouterr()
    assert "Answers: 100%" in printed.err and printed.out == ""
