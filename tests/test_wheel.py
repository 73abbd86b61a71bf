"""What is installed works without the checkout: a wheel has every file, runs, and declares what it imports.

No network: the wheel is built by the setuptools that torch requires, and its dependencies are those of this
environment, seen from a virtual environment of its own in which the checkout's editable install does not exist.
"""

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"

EVERYTHING = """
import importlib, pkgutil, sys, vopd_recipes
for module in pkgutil.walk_packages(vopd_recipes.__path__, "vopd_recipes."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from vopd_recipes.planner.architectures import Architecture
print(vopd_recipes.__file__, Architecture("Qwen/Qwen3-8B").layers)
from vopd_recipes.training import main
main(sys.argv[1:])
"""


def run(words: list[object], folder: Path) -> str:
    """What a command prints in a folder, with nothing of this process on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no `build` folder of the checkout's adds files to it."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    run([*pip, "--no-index", "--wheel-dir", copy / "wheels", copy], copy)
    (built,) = (copy / "wheels").iterdir()
    return built


def test_a_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vopd_recipes/")}
    paths = [path for path in (SOURCE / "vopd_recipes").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    files = {path.relative_to(SOURCE).as_posix() for path in paths}
    recipes = [path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".yaml", ".json")]
    shipped = {f"vopd_recipes/{path.relative_to(ROOT).as_posix()}" for path in recipes}
    assert inside == files | shipped
    assert {Path(name).suffix for name in files} == {".py", ".typed", ".json", ".css", ".js"}


@pytest.mark.slow  # two processes that import everything: only an installation shows what a checkout lent
def test_an_installed_wheel_trains(tmp_path: Path, wheel: Path, write_recipe: Callable[..., Path]) -> None:
    """From an empty folder, by the checkout's script and its own; of the checkout it reads nothing else."""
    empty, installation = tmp_path / "empty", tmp_path / "venv"
    empty.mkdir()
    venv.create(installation, with_pip=False)
    python = installation / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run([*pip, "install", "--no-deps", "--no-index", wheel], empty)
    (packages,) = installation.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(others))  # not their .pth files, such as editable installs

    for command, name in ((["-c", EVERYTHING], "all"), ([ROOT / "scripts" / "run_vopd.py"], "script")):
        folder = tmp_path / name
        printed = run([python, *command, write_recipe(name, output_dir=str(folder))], empty)
        if name == "all":
            where, layers = printed.splitlines()[0].split()
            assert Path(where).is_relative_to(packages) and layers == "36"
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert [line["step"] for line in history if "loss" in line] == [1, 2]
        assert (folder / "model.safetensors").is_file() and (folder / "plots" / "training.png").is_file()
        assert json.loads((folder / "environment.json").read_text())["git_revision"] is None

    vopd, own = installation / "bin" / "vopd", write_recipe(output_dir=str(tmp_path / "own")).read_text()
    fields = {**yaml.safe_load(own), "eval_strategy": "no", "eval_on_start": "false"}
    flags = [word for name, value in fields.items() for word in (f"--{name}", value)]
    run([vopd, "train", "tiny-arithmetic/vopd", *flags], empty)
    assert yaml.safe_load((tmp_path / "own" / "recipe.yaml").read_text())["log_gradient_variance"] is True
    assert "divergence: rao_blackwell" in run([vopd, "explain", "qwen3-1.7b/vopd_rao_blackwell"], empty)
    assert list(empty.iterdir()) == []


# What is imported is declared ----------------------------------------------------------------------------------------


def declared(*extras: str) -> dict[str, Requirement]:
    """Requirements of the package and of extras, by name."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    found = [Requirement(line) for lines in lists for line in lines.split("\n") if line]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def imported(folder: str) -> set[str]:
    """Modules of others that a folder's files import, wherever in them."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"vopd_recipes", "evaluation"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("src", ()), ("evaluation", ("eval", "vllm")), ("scripts", ("eval", "vllm", "bench"))],
)
def test_what_is_imported_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    """By the name of the distribution that brings the module, or its own; and as it is installed here."""
    requirements, distributions = declared(*extras), packages_distributions()
    missing = {}
    for module in sorted(imported(folder)):
        brought_by = {canonicalize_name(name) for name in [*distributions.get(module, []), module]}
        if not brought_by & requirements.keys():
            missing[module] = brought_by
    assert missing == {}


def test_what_is_declared_is_what_is_installed() -> None:
    """Every range holds the version that these tests run with, and has a lower bound."""
    for name, requirement in declared().items():
        assert requirement.specifier.contains(version(name), prereleases=True), name
        assert any(bound.operator in (">=", "==") for bound in requirement.specifier), name
