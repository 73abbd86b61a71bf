"""Launches that would quietly train something else are refused, with one line, before a model is loaded."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from launching import REPOSITORY, SCRIPT, execute
from test_trainer import build

from vopd_recipes.recipe import RecipeError, check_launch, load_recipe

CONFIGS = REPOSITORY / "recipes" / "accelerate_configs"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def on_cpus(name: str, folder: Path) -> Path:
    """One of the repository's configurations as somebody without GPUs might edit it."""
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    settings |= {"use_cpu": True, "num_processes": 2, "mixed_precision": "no"}
    if name == "ddp":
        settings["distributed_type"] = "MULTI_CPU"
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ddp", "the launcher was asked for several processes on CPUs and started one"),
        ("fsdp2", "use_cpu: true with FSDP: its processes would train apart"),
        ("zero2", "on CPUs the recipe itself must name the DeepSpeed configuration"),
    ],
)
def test_configurations_that_become_another_launch_on_cpus(write_recipe, tmp_path, name, message) -> None:
    """Slow: the real launcher, because the trap is what it does with its own configuration."""
    recipe = write_recipe()
    done = execute([*LAUNCH, "--config_file", str(on_cpus(name, tmp_path)), str(SCRIPT), str(recipe)])
    assert done.returncode != 0
    line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp2"])
def test_the_repositorys_configurations_are_read_by_accelerate(name: str) -> None:
    settings = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}
    assert settings.distributed_type == kinds[name]
    if name.startswith("zero"):
        file = REPOSITORY / settings.deepspeed_config["deepspeed_config_file"]
        assert json.loads(file.read_text())["zero_optimization"]["stage"] == int(name[-1])


def test_a_deepspeed_file_that_is_not_there(write_recipe) -> None:
    with pytest.raises(RecipeError, match="deepspeed: no such file: nowhere.json"):
        load_recipe(write_recipe(deepspeed="nowhere.json"))


@pytest.mark.slow
def test_zero3_that_saves_no_model(write_recipe, tmp_path) -> None:
    """Slow: a process of its own, because DeepSpeed keeps its configuration for the life of one."""
    settings = json.loads((REPOSITORY / "recipes" / "deepspeed" / "zero3.json").read_text())
    del settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(settings))
    done = execute([sys.executable, str(SCRIPT), str(write_recipe(deepspeed=str(path)))])
    assert done.returncode == 2
    assert "error: the DeepSpeed configuration lacks stage3_gather_16bit_weights_on_model_save" in done.stderr
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_processes_that_did_not_find_each_other(write_recipe, monkeypatch) -> None:
    trainer = build(write_recipe())
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="2 processes were started but 1 found each other"):
        check_launch(trainer.accelerator)
