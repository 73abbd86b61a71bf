"""One command, started again: it goes on, says that there is nothing to do, or refuses, and touches nothing then."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vopd_recipes.files import only_process_in
from vopd_recipes.recipe import RecipeError, load_recipe
from vopd_recipes.training import train
from vopd_recipes.training.command import _leave

# Takes the lock of a folder, starts a child that outlives it, says so, and waits to be killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from vopd_recipes.files import only_process_in
with only_process_in(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def flags(**fields: object) -> list[str]:
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder: its bytes and when they were written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def history(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_a_finished_run_is_left_as_it_is(write_recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe, folder = write_recipe(dataset_test_split="test", eval_on_start=True, save_strategy="no"), tmp_path / "run"
    train(load_recipe(recipe))
    before = contents(folder)
    assert "trainer_state.json" in before and ".lock" not in before
    with caplog.at_level(logging.INFO, "vopd_recipes"):
        train(load_recipe(recipe, flags(logging_steps=2)))
    assert f"{folder}: already finished, at step 2" in caplog.text
    assert contents(folder) == before
    with pytest.raises(RecipeError, match="holds a run with seed: None, not 3"):
        train(load_recipe(recipe, flags(seed=3)))
    (folder / "model.safetensors").unlink()  # nothing is finished without its weights
    train(load_recipe(recipe))
    assert (folder / "model.safetensors").is_file()


def test_the_checkpoints_of_another_program_stay(write_recipe, tmp_path: Path, capsys) -> None:
    """Neither a start nor a Ctrl-C before it takes them for checkpoints of ours that are broken."""
    folder = tmp_path / "run"
    (folder / "checkpoint-500").mkdir(parents=True)
    (folder / "checkpoint-500" / "model.safetensors").write_bytes(b"weights")
    before = contents(folder)
    with pytest.raises(RecipeError, match=r"output_dir: .* holds another program's checkpoint-500; name another"):
        train(load_recipe(write_recipe()))
    with pytest.raises(SystemExit, match="130"):
        _leave(0, folder)
    assert contents(folder) == before and "interrupted" in capsys.readouterr().err


def test_a_folder_that_cannot_be_one(write_recipe, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder, why in ((file, "File exists"), (file / "run", "Not a directory"), (Path("/proc/run"), "No such file")):
        with pytest.raises(RecipeError, match=f"output_dir: {folder}: {why}.*; name another folder"):
            train(load_recipe(write_recipe(output_dir=str(folder))))


def test_a_run_that_begins_from_a_checkpoint_goes_on_from_its_own(write_recipe, tmp_path: Path) -> None:
    """The same command: killed, it resumes from what it has saved since; finished, it is."""
    begun, folder = write_recipe(save_steps=1), tmp_path / "run"
    train(load_recipe(begun))
    expected = load_file(folder / "model.safetensors")
    words = flags(output_dir=tmp_path / "again", resume_from_checkpoint=folder / "checkpoint-1")
    train(load_recipe(begun, words))
    again = tmp_path / "again"
    assert [path.name for path in again.glob("checkpoint-*")] == ["checkpoint-2"]
    before = contents(again)
    train(load_recipe(begun, words))
    assert contents(again) == before
    (again / "model.safetensors").unlink()  # as if killed behind its checkpoint
    train(load_recipe(begun, words))
    for name, tensor in load_file(again / "model.safetensors").items():
        assert tensor.equal(expected[name]), name
    assert len(list((again / "completions").iterdir())) == 1  # step 2 was not trained again


def test_a_run_goes_on_over_the_prompts_that_it_began_with(
    write_recipe: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} for n in range(10)]
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = [{"dataset_name": str(file)} for file in files]
    recipe, folder = write_recipe(dataset_name=None, dataset_mixture=mixture, save_steps=1), tmp_path / "run"
    train(load_recipe(recipe))
    expected = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "checkpoint-2" / "complete").unlink()  # as if killed in the middle of step 2

    changed = [*rows[:-1], {"prompt": "9+9= ", "answer": "18"}]
    files[1].write_text("".join(json.dumps(row) + "\n" for row in changed))
    before = contents(folder)
    with pytest.raises(RecipeError) as caught:
        train(load_recipe(recipe))
    assert str(caught.value).startswith(f"dataset_name: the rows of {files[1]} have changed since the run in {folder}")
    assert contents(folder) == before

    files[1].write_text("".join(json.dumps(row) + "\n\n" for row in rows))  # the same rows, written again
    with caplog.at_level(logging.INFO, "vopd_recipes"):
        train(load_recipe(recipe))
    assert f"resuming from {folder / 'checkpoint-1'}, after step 1" in caplog.text
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert tensor.equal(expected[name]), name


def test_a_run_goes_on_over_the_held_out_prompts_that_it_began_with(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} for n in range(6)]
    data, folder = tmp_path / "data", tmp_path / "run"

    def write(split: str, rows: list[dict[str, str]]) -> None:
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def resumed(*words: str) -> None:
        (folder / "model.safetensors").unlink()
        shutil.rmtree(folder / "checkpoint-2")  # as if killed in the middle of step 2
        train(load_recipe(recipe, words))

    data.mkdir()
    write("train", rows)
    write("test", rows[:3])
    recipe = write_recipe(
        dataset_name=str(data), dataset_test_split="test", save_steps=1, eval_strategy="steps", eval_steps=2
    )
    train(load_recipe(recipe))
    write("test", [*rows[:2], rows[4]])
    with pytest.raises(RecipeError) as caught:
        resumed()
    assert str(caught.value) == (
        f"dataset_name: the held-out rows of {data} have changed since the run in {folder} began; bring them back, or "
        "name another output_dir"
    )
    write("test", rows[:3])
    train(load_recipe(recipe))
    resumed("--max_test_prompts", "2")  # fewer of the same
    write("test", [*rows[:2], rows[4]])
    resumed("--max_test_prompts", "2")  # what it never asks
    write("test", [*rows[:1], rows[3]])
    with pytest.raises(RecipeError, match="the held-out rows of"):
        resumed("--max_test_prompts", "2")
    train(load_recipe(recipe, ["--max_test_prompts", "2", "--eval_strategy", "no"]))  # no curve to have two halves
    assert "held_out_sha256" not in json.loads((folder / "environment.json").read_text())  # as of an earlier version
    resumed("--max_test_prompts", "2")
    assert "held_out_sha256" in json.loads((folder / "environment.json").read_text())


def test_a_run_without_its_optimiser_goes_on_only_where_it_is_told_to(write_recipe, tmp_path: Path) -> None:
    recipe, folder = write_recipe(save_only_model=True, save_steps=1), tmp_path / "run"
    train(load_recipe(recipe))
    (folder / "model.safetensors").unlink()
    (folder / "checkpoint-2" / "complete").unlink()
    with pytest.raises(RecipeError, match=r"checkpoint-1: holds no optimiser .*; set resume_only_model: true"):
        train(load_recipe(recipe))
    train(load_recipe(recipe, ["--resume_only_model"]))
    assert [line["step"] for line in history(folder) if "loss" in line] == [1, 2]


def test_batches_of_no_prompts(write_recipe, tmp_path: Path) -> None:
    few = flags(dataloader_drop_last="true", per_device_train_batch_size=25)
    with pytest.raises(RecipeError) as caught:
        train(load_recipe(write_recipe(), few))
    assert str(caught.value).startswith("dataloader_drop_last: true leaves none of 24 prompts: a batch has ")
    assert not (tmp_path / "run").exists()


def test_two_runs_in_one_folder(write_recipe, tmp_path: Path) -> None:
    """The second is refused while the first lives; a killed one keeps nobody out, nor do its workers."""
    folder = tmp_path / "run"
    words = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(RecipeError) as caught:
            train(load_recipe(write_recipe()))
        assert str(caught.value).startswith(f"output_dir: {folder}: another run (process {process.pid}) is at work")
        assert [path.name for path in folder.iterdir()] == [".lock"]
        process.kill()
        process.wait()
        os.kill(child, 0)  # lives
        with only_process_in(folder):
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            again = subprocess.run(words, capture_output=True, text=True, env=os.environ)
            assert again.returncode == 1 and f"another run (process {os.getpid()})" in again.stderr
        assert not folder.exists()
    finally:
        os.kill(child, signal.SIGKILL)
        process.kill()
        process.stdout.close()
