"""Only checkpoints that were written to their end count, and only for the recipe that began them."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from vopd_recipes.files import (
    RECIPE,
    check_own_folder,
    check_same_layout,
    check_same_recipe,
    checkpoint_to_resume,
    complete_checkpoints,
    discard_incomplete,
    keep_newest,
    last_complete_checkpoint,
    mark_complete,
)
from vopd_recipes.files.checkpoints import MARKER
from vopd_recipes.recipe import RecipeError, load_recipe


def make(folder: Path, step: int, whole: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    if whole:
        mark_complete(checkpoint)
    return checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_marked_checkpoints_count_in_order_of_steps(tmp_path: Path) -> None:
    assert complete_checkpoints(tmp_path) == []
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    ninth, hundredth, tenth = make(tmp_path, 9), make(tmp_path, 100), make(tmp_path, 10)
    make(tmp_path, 200, whole=False)
    best = tmp_path / "checkpoint-best"
    best.mkdir()
    (best / MARKER).touch()
    assert complete_checkpoints(tmp_path) == [ninth, tenth, hundredth]
    assert last_complete_checkpoint(tmp_path) == hundredth


def test_half_written_checkpoints_are_removed_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, 1)
    make(tmp_path, 2, whole=False)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-notes.txt").write_text("mine")
    (tmp_path / "checkpoint-3").write_text("a file")
    before = names(tmp_path)
    discard_incomplete(tmp_path)  # of somebody else
    assert names(tmp_path) == before
    (tmp_path / RECIPE).write_text("{}")
    with caplog.at_level(logging.WARNING):
        discard_incomplete(tmp_path)
    assert names(tmp_path) == [name for name in before if name != "checkpoint-2"] + [RECIPE]
    assert "checkpoint-2 was not written to its end: removed" in caplog.text


@pytest.mark.parametrize(("limit", "left"), [(None, [2, 10, 30]), (5, [2, 10, 30]), (2, [10, 30]), (1, [30])])
def test_the_newest_are_kept(tmp_path: Path, limit: int | None, left: list[int]) -> None:
    for step in (10, 2, 30):
        make(tmp_path, step)
    make(tmp_path, 40, whole=False)  # being written: neither counted nor removed
    keep_newest(tmp_path, limit, spared=tmp_path / "checkpoint-30")
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in (*left, 40))
    keep_newest(tmp_path, 1, spared=tmp_path / f"checkpoint-{left[0]}")
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in {left[0], 30, 40})


def test_a_checkpoint_that_would_be_removed_cannot_be_named(tmp_path: Path) -> None:
    half = make(tmp_path, 2, whole=False)
    (half / "trainer_state.json").write_text('{"global_step": 2}')
    (half / "optimizer.pt").touch()
    with pytest.raises(RecipeError, match="checkpoint-2: was not written to its end; leave it out"):
        checkpoint_to_resume(tmp_path, str(half), only_model=False)
    assert checkpoint_to_resume(tmp_path / "another", str(half), only_model=False) == half


def test_a_checkpoint_that_is_half_removed_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make(tmp_path, 1), make(tmp_path, 2)

    def killed(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_newest(tmp_path, 1)
    assert old.is_dir()
    assert complete_checkpoints(tmp_path) == [new]


@pytest.fixture
def begun(tmp_path: Path, write_recipe: Callable[..., Path]) -> tuple[Path, Path]:
    """A recipe, and the folder in which it has one checkpoint."""
    recipe, folder = write_recipe(seed=1, chat_template=True), tmp_path / "run"
    make(folder, 1)
    (folder / RECIPE).write_text(yaml.safe_dump(load_recipe(recipe).resolved()), encoding="utf-8")
    return recipe, folder


def test_the_same_recipe_goes_on(begun: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = begun
    check_same_recipe(folder, load_recipe(recipe).resolved())
    harmless = [
        "--logging_steps", "5", "--save_steps", "7", "--save_total_limit", "1", "--test_size", "0", "--disable_tqdm",
        "--eval_steps", "3", "--rollout_batch_size", "2", "--push_to_hub", "--hub_model_id", "someone/model",
        "--max_test_prompts", "4", "--log_gradient_variance", "--run_name", "again",
        "--resume_from_checkpoint", str(folder / "checkpoint-1"), "--resume_only_model",
    ]  # fmt: skip
    check_same_recipe(folder, load_recipe(recipe, harmless).resolved())
    monkeypatch.chdir(folder.parent)
    check_same_recipe(folder, load_recipe(recipe, ["--output_dir", "./run"]).resolved())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seed", "2"], "a run with seed: 1, not 2"),
        (["--learning_rate", "1e-4"], "a run with learning_rate: 0.001, not 0.0001"),
        (["--baseline", "none"], "a run with baseline: value, not none"),
        (["--use_peft"], "a run with use_peft: False, not True"),
        (["--weight_decay", "0.1"], "a run with weight_decay: None, not 0.1"),  # a field only one of them sets
        (["--chat_template=false"], "a run with chat_template: True, not False"),
        (["--max_steps", "9"], "a run with max_steps: 2, not 9"),
    ],
)
def test_another_recipe_is_refused(begun: tuple[Path, Path], flags: list[str], says: str) -> None:
    recipe, folder = begun
    with pytest.raises(RecipeError) as caught:
        check_same_recipe(folder, load_recipe(recipe, flags).resolved())
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"output_dir: {folder} holds ")


def test_without_a_whole_checkpoint_any_recipe_may_begin(begun: tuple[Path, Path]) -> None:
    recipe, folder = begun
    (folder / "checkpoint-1" / MARKER).unlink()
    check_same_recipe(folder, load_recipe(recipe, ["--seed", "2"]).resolved())
    check_same_recipe(folder.parent / "nowhere", load_recipe(recipe, ["--seed", "2"]).resolved())


def test_where_a_run_goes_on(tmp_path: Path) -> None:
    assert checkpoint_to_resume(tmp_path, None, only_model=False) is None
    for step in (1, 2, 3):
        checkpoint = make(tmp_path, step, whole=step < 3)
        (checkpoint / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        (checkpoint / "optimizer.pt").write_bytes(b"state")
    first, second = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    assert checkpoint_to_resume(tmp_path, None, only_model=False) == second
    assert checkpoint_to_resume(tmp_path, str(second), only_model=False) == second
    for folder in (tmp_path, tmp_path / "another"):  # later ones of another line are in the way
        folder.mkdir(exist_ok=True)
        if folder != tmp_path:
            make(folder, 1)
        with pytest.raises(RecipeError, match=r"checkpoint-1: .* holds checkpoint-\d, which is later; move it away"):
            checkpoint_to_resume(folder, str(first), only_model=False)
    (tmp_path / RECIPE).write_text(yaml.safe_dump({"resume_from_checkpoint": str(first)}))  # its own
    assert checkpoint_to_resume(tmp_path, str(first), only_model=False) == second
    shutil.rmtree(first)
    assert checkpoint_to_resume(tmp_path, str(first), only_model=False) == second
    (second / "trainer_state.json").write_text('{"global_st')
    with pytest.raises(RecipeError, match=r"checkpoint-2/trainer_state.json: damaged; move .*checkpoint-2 away"):
        checkpoint_to_resume(tmp_path, None, only_model=False)


@pytest.mark.parametrize("name", ["checkpoint-7", "trainer_state.json"])
def test_a_folder_of_another_programs(tmp_path: Path, name: str) -> None:
    check_own_folder(tmp_path)
    check_own_folder(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"weights")  # a student, say; nothing of it would be taken for ours
    check_own_folder(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(RecipeError, match=f"output_dir: {tmp_path} holds another program's {name}; name another"):
        check_own_folder(tmp_path)
    (tmp_path / RECIPE).write_text("{}")
    check_own_folder(tmp_path)


def test_a_recipe_that_is_damaged(begun: tuple[Path, Path]) -> None:
    recipe, folder = begun
    for text in ("", "[1]", "a: [", "\0"):
        (folder / RECIPE).write_text(text)
        with pytest.raises(RecipeError, match=f"{folder / RECIPE}: damaged; move {folder} away"):
            check_same_recipe(folder, load_recipe(recipe).resolved())


@pytest.mark.parametrize("state", ["optimizer.bin", "optimizer_0/__0_0.distcp", "latest"])
def test_a_checkpoint_without_its_optimiser_only_where_asked_for(tmp_path: Path, state: str) -> None:
    checkpoint = make(tmp_path, 2)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    for named in (None, str(checkpoint)):
        with pytest.raises(RecipeError, match="holds no optimiser .* set resume_only_model: true"):
            checkpoint_to_resume(tmp_path, named, only_model=False)
        assert checkpoint_to_resume(tmp_path, named, only_model=True) == checkpoint
    with pytest.raises(RecipeError, match="DeepSpeed does not resume; .* with model_name_or_path"):
        check_same_layout(checkpoint, "zero3", 1)
    (checkpoint / state).parent.mkdir(exist_ok=True)
    (checkpoint / state).write_bytes(b"state")
    assert checkpoint_to_resume(tmp_path, None, only_model=False) == checkpoint


@pytest.mark.parametrize(("named", "says"), [("true", "no such folder"), ("{tmp_path}", "it has no trainer_state")])
def test_what_is_named_is_a_checkpoint(tmp_path: Path, named: str, says: str) -> None:
    named = named.format(tmp_path=tmp_path)
    with pytest.raises(RecipeError) as caught:
        checkpoint_to_resume(tmp_path, named, only_model=True)
    assert str(caught.value).startswith(f"resume_from_checkpoint: {named}: ") and says in str(caught.value)
    assert "leave it out" in str(caught.value)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("true", "no such folder; it takes a checkpoint's folder, not a switch"),
        ("nowhere/checkpoint-1", "no such folder"),
        ("nowhere/checkpoint-9", "no such folder"),
        ("{run}/checkpoint-1", "no such folder"),
        ("{run}/checkpoint-9", "no such folder"),
        ("{run}", "no checkpoint, it has no trainer_state.json"),
    ],
)
def test_a_wrong_name_moves_no_run_away(tmp_path: Path, named: str, says: str) -> None:
    run = tmp_path / "run"
    checkpoint, named = make(run, 2), named.format(run=run)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    with pytest.raises(RecipeError) as caught:
        checkpoint_to_resume(run, named, only_model=False)
    assert str(caught.value) == (
        f"resume_from_checkpoint: {named}: {says}; leave it out, and the same command resumes from the last complete "
        f"checkpoint in {run} by itself"
    )
    assert checkpoint_to_resume(run, None, only_model=False) == checkpoint
