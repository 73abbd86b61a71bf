"""`vopd`: one line for what is wrong, the processes' own exit status, recipes by name from anywhere."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from launching import REPOSITORY, environment

from vopd_recipes.command import COMMANDS, main
from vopd_recipes.command.train import take_processes
from vopd_recipes.recipe import RecipeError, find_recipe
from vopd_recipes.recipe.launch import prepare_launch

VOPD = [sys.executable, "-c", "import sys; from vopd_recipes.command import main; sys.exit(main())"]


def vopd(*words: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [*VOPD, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=400)


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(words)
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_the_help_is_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    status, help_, _ = said(["--help"], capsys)
    assert status == 0 and all(f"\n  {name} " in help_ for name in COMMANDS)
    assert help_.count("\n") < 24 and max(map(len, help_.splitlines())) <= 100
    assert said([], capsys)[:2] == (2, help_)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "evaluate"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, help_, _ = said([name, "--help"], capsys)
    assert status == 0 and help_.startswith(f"usage: vopd {name} ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "error: vopd trian: no such command; did you mean 'train'?; vopd --help lists them"),
        (["train", "--seed", "1"], "error: vopd train: name a recipe first, as in vopd train qwen3-1.7b/vopd"),
        (["explain", "--seed", "1"], "error: vopd explain: name a recipe first, as in vopd explain qwen3-1.7b/vopd"),
        (["train", "RECIPE", "--processes", "0"], "error: --processes: '0' is no number of processes; at least 1"),
        (["train", "RECIPE", "--processes"], "error: --processes: expected one argument"),
        (
            ["train", "qwen3-1.7/vopd"],
            "error: qwen3-1.7/vopd: cannot read the recipe: no such file, and none of that name comes with vopd; did "
            "you mean 'qwen3-1.7b/vopd'?",
        ),
        (
            ["train", "tiny-arithmetic/vopd", "--accelerate_config", "zero4"],
            "error: zero4: cannot read the recipe: no such file, and none of that name comes with vopd; did you mean "
            "'zero3'?",
        ),
        (
            ["train", "tiny-arithmetic/vopd", "--learning_rat", "1", "--processes", "2"],
            "error: --learning_rat: unknown field 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (["data", "dapo-math"], "error: dapo-math: cannot read the recipe: no such file, and none of that name"),
        (["report", "nowhere"], "error: nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, error = said(words, capsys)
    assert (status, out) == (2, "") and error.startswith(line) and error.count("\n") == 1


def test_recipes_have_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Files come first, then the checkout's own folder, then what comes with the package."""
    monkeypatch.chdir(tmp_path)
    shipped = find_recipe("qwen3-8b/vopd")
    assert shipped.read_text() == (REPOSITORY / "recipes" / "qwen3-8b" / "vopd.yaml").read_text()
    for name in ("qwen3-8b/vopd.yaml", "recipes/qwen3-8b/vopd", "recipes/qwen3-8b/vopd.yaml"):
        assert find_recipe(name) == shipped
    assert find_recipe("gsm8k", "data") == find_recipe("recipes/data/gsm8k.yaml", "data") == find_recipe("data/gsm8k")
    monkeypatch.chdir(REPOSITORY)
    assert find_recipe("qwen3-8b/vopd") == Path("recipes/qwen3-8b/vopd.yaml")
    (tmp_path / "mine").write_text("")
    assert find_recipe(str(tmp_path / "mine")) == tmp_path / "mine"
    with pytest.raises(RecipeError, match="nowhere.yaml: cannot read the recipe"):
        find_recipe(str(tmp_path / "nowhere.yaml"))
    assert take_processes(["a", "--processes=3", "--x", "1"]) == (3, ["a", "--x", "1"])


def test_a_deepspeed_file_of_a_recipe_that_is_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")  # as a launcher does
    arguments = SimpleNamespace(use_cpu=False, ddp_backend=None, deepspeed="recipes/deepspeed/zero2.json")
    prepare_launch(arguments)  # type: ignore[arg-type]
    assert json.loads(Path(arguments.deepspeed).read_text())["zero_optimization"]["stage"] == 2


@pytest.mark.slow  # processes that import everything: exit statuses of real ones are what it is about
def test_explain_and_plan_from_anywhere(tmp_path: Path) -> None:
    explained = vopd("explain", "qwen3-8b/vopd_from_32b", "--processes", "8", cwd=tmp_path)
    assert explained.returncode == 0, explained.stderr
    assert "processes 8" in explained.stdout and "memory:" in explained.stdout
    planned = vopd("plan", "qwen3-8b/vopd_from_32b", "--gpus", "8", cwd=tmp_path)  # ZeRO-3 by a file that is shipped
    assert planned.returncode == 0 and "sharding zero3" in planned.stdout, planned.stderr


@pytest.mark.slow  # two processes and their launcher, twice
def test_two_processes_are_one_command(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Trained to the end; refused in one line, with the status of the process that refused."""
    recipe, folder = write_recipe(output_dir="run"), tmp_path / "run"
    done = vopd("train", recipe.name, "--processes", 2, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 processes (ddp)" in done.stdout and max(map(len, done.stdout.splitlines())) <= 100
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2
    assert {path.name for path in (folder / "logs").iterdir()} == {"rank-0.log", "rank-1.log"}

    refused = vopd("train", recipe, "--processes", 2, "--output_dir", tmp_path / "b", "--prompt_column", "question")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ") and "has no column 'question'; it has prompt, solution, answer" in line


@pytest.mark.slow  # as above: a process that is killed
def test_a_process_that_is_killed(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe, folder = write_recipe(max_steps=500), tmp_path / "run"
    words = [*VOPD, "train", str(recipe), "--processes", "2"]
    started = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment())
    deadline = time.monotonic() + 200
    while not (folder / "metrics.jsonl").exists():
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    ranks = {Path(f"/proc/{pid}/environ").read_bytes().split(b"\0RANK=")[1][:1]: int(pid) for pid in children}
    os.kill(ranks[b"1"], 9)
    _, errors = started.communicate(timeout=200)
    assert started.returncode == 128 + 9
    assert errors.splitlines()[-1] == (  # the other one may have seen its peer go, and said so
        f"error: process 1 was ended by SIGKILL (often: out of memory); {folder}/logs/rank-1.log has its last words, "
        "the same command resumes"
    )


@pytest.mark.slow  # the launcher itself, because the traps are there
def test_plain_accelerate_says_one_line_of_ours(write_recipe: Callable[..., Path]) -> None:
    """What its launcher adds, a traceback of its own, is not ours to take away."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0", "scripts/run_vopd.py", str(write_recipe(learning_rat=1))]
    done = subprocess.run(launcher, capture_output=True, text=True, cwd=REPOSITORY, env=environment(), timeout=300)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line and "unknown field" in line]
    assert line.startswith("error: ") and "did you mean 'learning_rate'?" in line


def test_a_configuration_that_accelerate_refuses(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump({"no_such_key": 1, "num_processes": 2}))
    status, _, error = said(["train", str(write_recipe()), "--accelerate_config", str(path)], capsys)
    assert status == 2 and error.startswith("error: accelerate does not start that: ") and error.count("\n") == 1
