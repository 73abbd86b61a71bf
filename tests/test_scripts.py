"""What `scripts/` refuse: one line and a status, before anything is loaded, trained or measured."""

import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vopd_recipes.tiny import KINDS
from vopd_recipes.tiny.problems import chain

SCRIPTS = Path(__file__).parents[1] / "scripts"
Refuse = Callable[..., str]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Refuse]:
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

    before = signal.getsignal(signal.SIGTERM)  # one of them takes it
    yield run
    signal.signal(signal.SIGTERM, before)


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


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("make_problems", "word OUT --train -5", "--train and --test must be at least 0, and one of them more"),
        ("make_problems", "word OUT --train 0 --test 0", "--train and --test must be at least 0, and one"),
        ("make_problems", "chain OUT --train 20000 --test -1", "--train and --test must be at least 0, and one"),
        ("compare_two_teachers", "--seeds 0", "--seeds and --jobs must be at least 1"),
        ("compare_two_teachers", "--jobs 0", "--seeds and --jobs must be at least 1"),
        ("benchmark_rollout", "RECIPE --rounds 0", "--rounds and --prompts must be at least 1"),
        ("benchmark_rollout", "RECIPE --prompts 0", "--rounds and --prompts must be at least 1"),
        ("benchmark_loss", "--rounds 0", "--rounds must be at least 1, got 0"),
        ("benchmark_loss", "--tokens 0", "--tokens must be at least 1, got 0"),
        ("benchmark_loss", "--output OUT/../file/below", "--output: nothing can be written to "),
        ("benchmark_data", "--rows 0", "--rows must be at least 1"),
        ("build_tiny_pair", "OUT/../file/below/pair", "folder: nothing can be written to "),
    ],
)
def test_counts_of_nothing(script: str, words: str, message: str, refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = {"OUT": str(tmp_path / "out"), "RECIPE": "tiny-arithmetic/vopd.yaml"}
    for name, place in places.items():
        words = words.replace(name, place)
    assert refuse(script, *words.split()).startswith(message)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"teacher": {"accur', '{"teacher": {"accuracy": {"sums": 0.9}}}']
)
def test_a_summary_beside_what_is_no_pair(content: str | None, refuse: Refuse, tmp_path: Path) -> None:
    pair, state = tmp_path / "pair.json", tmp_path / "run" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text('{"log_history": [{"step": 1, "loss": 0.5}]}')
    if content is not None:
        pair.write_text(content)
    said = refuse("summarize", state.parent, "--pair", pair)
    assert said.startswith(f"--pair: {pair}: not what scripts/build_tiny_pair.py writes (")
    assert refuse("summarize", state.parent, "--picture", state / "a.png").startswith("--picture: nothing can be")
    assert refuse("summarize", state.parent, "--picture", tmp_path).startswith(f"--picture: {tmp_path} is a folder; ")


def test_more_problems_than_there_are(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "short", lambda generator: chain(generator, sums=1))
    said = refuse("make_problems", "short", tmp_path / "out", "--train", 80, "--test", 2)
    assert said == "--train, --test: only 81 different short problems found, 82 asked for; ask for fewer"
