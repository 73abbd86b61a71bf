"""Launches that would quietly train something else are refused, with one line, before a model is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DynamoBackend
from launching import REPOSITORY, SCRIPT, environment, execute
from test_trainer import build
from transformers.trainer_pt_utils import AcceleratorConfig

from vopd_recipes.recipe import RecipeError, check_launch, free_port, load_recipe, threads
from vopd_recipes.recipe.launch import add_up_in_float32
from vopd_recipes.recipe.threads import available_cores

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
        configuration = json.loads(file.read_text())
        assert configuration["zero_optimization"]["stage"] == int(name[-1])
        assert configuration["data_types"] == {"grad_accum_dtype": "fp32"}


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


@pytest.mark.slow
@pytest.mark.parametrize("in_float32", [True, False])
def test_gradients_that_are_added_up_in_bfloat16(write_recipe, tmp_path, in_float32) -> None:
    """Slow for the same reason; with ours, bfloat16 trains on a CPU and nothing is to be said."""
    settings = json.loads((REPOSITORY / "recipes" / "deepspeed" / "zero2.json").read_text())
    if not in_float32:
        del settings["data_types"]
    path = tmp_path / "zero2.json"
    path.write_text(json.dumps(settings))
    done = execute([sys.executable, str(SCRIPT), str(write_recipe(deepspeed=str(path), bf16=True))])
    assert done.returncode == 0, done.stderr[-3000:]
    said = " ".join((done.stdout + done.stderr).split())  # on a screen of 100 columns
    assert said.count("lacks data_types: {grad_accum_dtype: fp32}") == (not in_float32)


# A model that FSDP2 shards over one process: how far a sum of 64 micro-batches' gradients is from that of float32.
SHARDED = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=0, world_size=1)
torch.manual_seed(0)
model = torch.nn.Linear(16, 16, bias=False)
weight, expected = model.weight.detach().bfloat16(), torch.zeros(16, 16)
half = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16)
fully_shard(model, mesh=init_device_mesh("cpu", (1,)), mp_policy=half)
for number in range(64):
    rows = torch.randn(4, 16)
    model.set_requires_gradient_sync({sync} or number == 63)
    model(rows).float().square().sum().backward()
    rows = rows.bfloat16()
    expected += 2 * (rows @ weight.t()).float().t() @ rows.float()
found = model.weight.grad.full_tensor()
print(((found - expected).norm() / expected.norm()).item())
torch.distributed.destroy_process_group()
"""


def test_fsdp2_adds_gradients_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does where each micro-batch's is reduced, and so each is."""
    errors = []
    for sync in (True, False):
        done = execute([sys.executable, "-c", SHARDED.format(port=free_port(), sync=sync)])
        assert done.returncode == 0, done.stderr[-2000:]
        errors.append(float(done.stdout))
    assert errors[0] < 1e-3 < 5e-3 < errors[1]
    args = SimpleNamespace(accelerator_config=AcceleratorConfig())
    add_up_in_float32(args)
    assert args.accelerator_config.gradient_accumulation_kwargs is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    add_up_in_float32(args)
    assert args.accelerator_config.gradient_accumulation_kwargs == {"sync_each_batch": True}


ENDING = """
import atexit, os, torch
from types import SimpleNamespace
from vopd_recipes.training import leave_the_group
class Kept:
    def __del__(self, write=os.write):
        write(1, b"taken down, ")
kept = Kept()
atexit.register(os.write, 1, b"at exit, ")
torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=0, world_size=1)
leave_the_group(SimpleNamespace(training=SimpleNamespace(rollout_backend="transformers")))
print("alone", flush=True)
"""


@pytest.mark.parametrize(("processes", "said"), [("2", "at exit, "), ("1", "alone\nat exit, taken down, ")])
def test_one_of_several_processes_ends_without_taking_its_interpreter_down(
    monkeypatch: pytest.MonkeyPatch, processes: str, said: str
) -> None:
    """What waits for the end, as a tracker's last lines do, still runs."""
    monkeypatch.setenv("WORLD_SIZE", processes)
    done = execute([sys.executable, "-c", ENDING.format(port=free_port())])
    assert (done.returncode, done.stdout) == (0, said), done.stderr[-2000:]


def test_processes_that_did_not_find_each_other(write_recipe, monkeypatch) -> None:
    trainer = build(write_recipe())
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="2 processes were started but 1 found each other"):
        check_launch(trainer.accelerator)


def test_a_launcher_that_compiles_the_student_is_refused(write_recipe, monkeypatch) -> None:
    """Its wrapper would call the student's own forward, past DDP: processes would train apart."""
    trainer = build(write_recipe())
    monkeypatch.setattr(trainer.accelerator.state.dynamo_plugin, "backend", DynamoBackend.INDUCTOR)
    with pytest.raises(RecipeError, match="dynamo_backend: inductor in the accelerate configuration compiles"):
        check_launch(trainer.accelerator)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "chosen"), [(1, None), (2, None), (1, "1")])
def test_processes_share_the_cores(write_recipe, tmp_path, processes, chosen) -> None:
    """Slow: the real launcher, because it is what sets one thread where nobody has said how many."""
    words = ["--multi_gpu", "--num_processes", "2"] if processes > 1 else []
    given = {"OMP_NUM_THREADS": chosen} if chosen else {}
    without = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    subprocess.run(
        [*LAUNCH, *words, str(SCRIPT), str(write_recipe(max_steps=1))],
        env=without | given, cwd=REPOSITORY, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    share = int(chosen) if chosen else max(1, available_cores() // processes)
    assert (found["processes"], found["cpu_threads"]) == (processes, share)


SHARE = """
import os, sys
from vopd_recipes.recipe import take_cpu_share
if "late" in sys.argv:
    import torch
take_cpu_share()
assert "late" in sys.argv or "torch" not in sys.modules
import torch
print(os.environ["OMP_NUM_THREADS"], torch.get_num_threads())
"""
CORES = available_cores()


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, CORES),
        ({"LOCAL_WORLD_SIZE": str(2 * CORES)}, 1),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),  # in a shell, whose own environment does not show it
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, CORES),  # of a launcher that was given none
        ({"OMP_NUM_THREADS": "5", "ACCELERATE_MIXED_PRECISION": "no"}, 5),
    ],
)
def test_a_share_is_taken_where_nobody_chose(when, given, expected) -> None:
    """Before torch is imported or after; the shell is the launcher, whose own environment says nothing."""
    exports = "".join(f"export {name}={value}; " for name, value in given.items())
    words = ["sh", "-c", f'{exports}"$@"; exit $?', "sh", sys.executable, "-c", SHARE, when]
    bare = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")}
    done = subprocess.run(words, env=bare, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(expected), str(min(expected, CORES))], done.stderr  # torch takes no more


def test_a_quota_is_less_than_the_cores(tmp_path, monkeypatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(threads, "_QUOTA", quota)
    for text, cores in (("max 100000", CORES), ("150000 100000", 1), ("50000 100000", 1), ("9900000 100000", CORES)):
        quota.write_text(text)
        assert available_cores() == cores
