"""What `scripts/` refuse: one line and a status, before anything is loaded, trained or measured."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
Refuse = Callable[..., str]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a script in this process, which must end with one line of error; returns it."""

    def run(name: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        printed = capsys.readouterr()
        said = printed.err or f"{end.value.code}\n"  # what sys.exit is given is printed by the interpreter
        assert printed.out == "" and end.value.code not in (0, None)
        assert said.startswith("error: ") and said.count("\n") == 1
        return said.removeprefix("error: ").rstrip("\n")

    return run


@pytest.mark.parametrize("script", ["measure_variance", "measure_baselines", "compare_estimators"])
def test_a_place_that_takes_no_file_is_seen_before_anything_is_loaded(
    script: str, refuse: Refuse, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(dataset_name="nowhere", model_name_or_path="nowhere")
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "below"
    said = refuse(script, recipe, "--output", place)
    assert said == f"--output: nothing can be written to {place} (Not a directory); name another place"


def test_a_kept_file_that_cannot_be_written(refuse: Refuse, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = [write_recipe(), "--output", tmp_path / "out", "--kept", tmp_path / "file" / "kept.json"]
    assert refuse("compare_estimators", *words).startswith("--kept: ")


def test_a_student_that_cannot_be_written_is_seen_before_its_teacher_is_loaded(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refuse("prune_layers", tmp_path / "nowhere", tmp_path / "file" / "student", "--drop", "1")
    assert said == f"folder: nothing can be written to {tmp_path / 'file'} (File exists); name another place"
