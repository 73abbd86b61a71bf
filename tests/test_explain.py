"""`--explain` says what a run does: the values that it reads, the steps that it takes, the memory that it needs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.data_loader import BatchSamplerShard
from conftest import TinyPair
from torch.utils.data import BatchSampler
from transformers import Trainer, TrainingArguments

from vopd_recipes.planner.explain import explain, optimizer_steps, take_flag
from vopd_recipes.planner.fitting import verdict
from vopd_recipes.planner.items import PHASES
from vopd_recipes.planner.memory import GB, plan
from vopd_recipes.planner.setup import read_setup
from vopd_recipes.recipe import RecipeError, VOPDConfig, load_recipe

ROOT = Path(__file__).parents[1]


def fields_of(text: str) -> dict[str, str]:
    """Field → source, of the printed lines."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.split(":")[0]: line.rpartition(" # ")[2] for line in lines}


def told(text: str, name: str) -> str:
    """What a comment at the end says."""
    found = re.search(rf"^# {name}: +(.*(?:\n# {{5,}}.*)*)", text, re.MULTILINE)
    assert found, text
    return found[1]


def test_every_value_has_its_source(write_recipe: Callable[..., Path]) -> None:
    base = write_recipe("base")
    variant = base.with_name("variant.yaml")
    variant.write_text(f"extends: base.yaml\nbaseline: optimal\noutput_dir: {base.parent / 'other'}\n")
    text = explain(variant, ["--learning_rate", "1e-4"], 1)
    sources, values = fields_of(text), yaml.safe_load(text)
    line = 1 + base.read_text().splitlines().index("max_steps: 2")
    assert (values["baseline"], sources["baseline"]) == ("optimal", f"{variant}:2")
    assert (values["max_steps"], sources["max_steps"]) == (2, f"{base}:{line}")
    assert (values["learning_rate"], sources["learning_rate"]) == (1e-4, "--learning_rate")
    assert (values["temperature"], sources["temperature"]) == (1.0, "default")
    assert (values["use_cpu"], sources["use_cpu"]) == (
        True,
        f"{base}:{1 + list(yaml.safe_load(base.read_text())).index('use_cpu')}",
    )


def test_what_is_printed_is_the_same_recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Also where a value has several lines, a # or letters beyond ASCII."""
    recipe = write_recipe(
        prompt_template="{prompt} # ≤ 7\n\n\\boxed{}: 'now'",
        divergence="topk",
        support_top_k=7,
        lora_target_modules=["q_proj"],
    )
    again = tmp_path / "again.yaml"
    again.write_text(explain(recipe, ["--seed", "3"], 1), encoding="utf-8")
    assert load_recipe(again).resolved() == load_recipe(recipe, ["--seed", "3"]).resolved()


def test_fields_of_another_machine_are_shown_as_written(write_recipe: Callable[..., Path]) -> None:
    """A recipe for GPUs, DeepSpeed and a tracker that this machine lacks."""
    recipe = write_recipe(
        use_cpu=None, bf16=True, deepspeed="recipes/deepspeed/zero2.json", report_to="wandb", tf32=True
    )
    values = yaml.safe_load(explain(recipe, [], 4))
    assert "use_cpu" not in values and "ddp_backend" not in values
    assert (values["bf16"], values["tf32"], values["report_to"]) == (True, True, "wandb")
    assert values["deepspeed"] == "recipes/deepspeed/zero2.json"


@pytest.mark.parametrize(
    ("fields", "equation"),
    [
        ({"baseline": "none"}, "-r(y) ∇log p(y), r(y) = log q(y) - log p(y) (Eq. 3)"),
        ({"baseline": "none", "reward_clip_lambda": 0.5}, "r(y) = max(log q(y) - log p(y), -1.39) (Eq. 3)"),
        ({"baseline": "constant", "baseline_constant": 2}, "-(r(y) - 2) ∇log p(y)"),
        ({"baseline": "value"}, "-(r(y) + KL(p‖q)) ∇log p(y), r(y) = log q(y) - log p(y) (Eq. 10)"),
        ({"baseline": "value_topk", "support_top_k": 5}, ", KL on the student's top 5 (Eq. 15)"),
        ({"baseline": "optimal"}, "-(r(y) - E[r s]/E[s]) ∇log p(y)"),
        ({"divergence": "full"}, "∇ KL(p‖q) over the whole vocabulary (Eq. 5)"),
        ({"divergence": "topk"}, "∇ KL(p̄‖q̄) on the student's top 20"),
    ],
)
def test_the_gradient(write_recipe: Callable[..., Path], fields: dict[str, object], equation: str) -> None:
    assert equation in told(explain(write_recipe(**fields), [], 1), "gradient")


def test_prompts_steps_and_tokens(write_recipe: Callable[..., Path]) -> None:
    """24 problems, 2 · 2 · 3 prompts a step: two steps an epoch."""
    recipe = write_recipe(max_steps=None, num_train_epochs=2.5, num_generations=2, dataset_test_split="test")
    text = explain(recipe, [], 3)
    assert told(text, "prompts") == "24 of 12 tokens on average; 6 held out"
    assert told(text, "steps") == "5 in 2.5 epochs"
    assert told(text, "a run") == "at most 960 completion tokens, all steps together"
    assert told(text, "a step").startswith("24 sequences (processes 3 × gradient_accumulation_steps 2 ×")
    assert told(text, "a step").endswith("at most 192 completion tokens")
    assert told(explain(write_recipe(), [], 3), "steps") == "2, as max_steps says"


def test_prompts_that_are_too_long_do_not_count(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": "x" * length}) + "\n" for length in (3, 5, 8, 9, 30)))
    recipe = write_recipe(dataset_name=str(data), answer_column=None, max_prompt_length=8, max_steps=None)
    text = explain(recipe, [], 1)
    assert told(text, "prompts") == "3 of 5 tokens on average; 2 dropped, empty or over 8"
    assert told(text, "steps") == "1 in 1 epoch"


def test_prompts_that_are_not_there(write_recipe: Callable[..., Path]) -> None:
    text = explain(write_recipe(dataset_name="someone/problems", max_steps=None, num_generations=3), [], 2)
    assert told(text, "prompts") == "not known: someone/problems is not on this machine"
    assert told(text, "steps") == "not known, because the number of prompts is not: one for every 8, in 1 epoch"
    assert told(text, "a run") == "not known, because the number of steps is not"
    text = explain(write_recipe(dataset_name="someone/problems", max_steps=7), [], 2)
    assert (told(text, "steps"), told(text, "a run").split(" tokens")[0]) == (
        "7, as max_steps says", "at most 448 completion",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "steps", "tokens"),
    [  # ⌈(14,000 - 64) / 64⌉ and 10 ⌈1,890 / 64⌉ steps, of 64 · 2,048 tokens
        ("qwen3-8b/opd_full.yaml", "about 218 in 1 epoch", "at most about 28,600,000"),
        ("qwen3-1.7b-chemistry/vopd.yaml", "about 300 in 10 epochs", "at most about 39,300,000"),
    ],
)
def test_the_papers_prompts_before_they_are_prepared(
    recipe: str, steps: str, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)  # a clone without data/
    text = explain(Path("recipes") / recipe, [], 1)
    assert told(text, "steps") == steps and told(text, "a run").startswith(f"{tokens} completion tokens")
    assert "on this machine; python scripts/prepare_data.py recipes/data/" in told(text, "prompts")
    mixed = ["--dataset_name", "null", "--dataset_mixture", "[{dataset_name: open-r1/DAPO-Math-17k}]"]
    assert told(explain(Path("recipes") / recipe, mixed, 1), "steps").startswith("not known")


def test_prompts_that_a_command_writes(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes" / "data").mkdir(parents=True)
    (tmp_path / "recipes" / "data" / "sums.yaml").touch()
    recipe = write_recipe(dataset_name="data/sums")
    monkeypatch.chdir(tmp_path)
    assert told(explain(recipe, [], 1), "prompts") == (
        "not known: data/sums is not on this machine; python scripts/prepare_data.py recipes/data/sums.yaml writes it"
    )


def test_models_that_are_not_there(write_recipe: Callable[..., Path]) -> None:
    """Prompts are counted without a tokenizer, and say so; memory needs a configuration."""
    text = explain(write_recipe(model_name_or_path="someone/student", max_prompt_length=9), [], 1)
    assert told(text, "prompts") == "24, less those over 9 tokens: the student's tokenizer is not on this machine"
    assert told(text, "memory").startswith("not known: someone/student: no model configuration")


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize(
    ("prompts", "size", "accumulation", "epochs"), [(13, 4, 8, 1), (100, 3, 4, 1), (101, 4, 2, 2.5)]
)
def test_steps_are_those_of_the_trainer(
    tmp_path: Path, prompts: int, size: int, accumulation: int, epochs: float, processes: int, drop_last: bool
) -> None:
    """The Trainer's own count over the batches that accelerate hands to the first of the processes."""
    settings = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation,
        "num_train_epochs": epochs, "dataloader_drop_last": drop_last, "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    batches = BatchSamplerShard(BatchSampler(range(prompts), size, drop_last), processes, 0)
    loader = torch.utils.data.DataLoader(list(range(prompts)), batch_sampler=batches)
    trainer = Trainer(torch.nn.Linear(1, 1), TrainingArguments(**settings))
    expected = trainer.set_initial_training_values(trainer.args, loader)[-1]
    assert optimizer_steps(VOPDConfig(**settings), prompts, processes) == expected


def test_memory_is_the_planners(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(rollout_batch_size=4)
    planned = plan(read_setup(recipe, [], 2, 80 * GB))
    memory = told(explain(recipe, [], 2), "memory")
    assert verdict(planned) in memory
    for phase in PHASES:
        assert f"{phase} {planned.need(phase) / GB:.2f}" in memory


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--explain"], "--explain: name a recipe first"),
        (["--explain", "--seed", "1"], "--explain: name a recipe first"),
        (["recipe.yaml", "--explain", "0"], "--explain: 0 processes; at least 1 trains"),
    ],
)
def test_words_that_say_nothing(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        take_flag(words)


def test_where_the_flag_may_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert take_flag(["r.yaml", "--explain", "8", "--seed", "1"]) == (8, ["r.yaml", "--seed", "1"])
    assert take_flag(["--explain", "r.yaml"]) == (4, ["r.yaml"])
    monkeypatch.delenv("WORLD_SIZE")
    assert take_flag(["r.yaml", "--seed", "1", "--explain"]) == (1, ["r.yaml", "--seed", "1"])


def test_what_is_wrong_with_a_recipe_is_said(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="unknown field 'learning_rat'; did you mean 'learning_rate'"):
        explain(write_recipe(), ["--learning_rat", "1"], 1)
    with pytest.raises(RecipeError, match="prompt_column: .* has no column 'question'"):
        explain(write_recipe(prompt_column="question"), [], 1)


@pytest.mark.slow
def test_the_command_under_a_launcher_loads_nothing(
    write_recipe: Callable[..., Path], tiny_pair: TinyPair, tmp_path: Path
) -> None:
    """One of two processes, whose peer never comes; models without weights. Slow: it starts the command twice."""
    bare = tmp_path / "bare"
    shutil.copytree(tiny_pair.student, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    words = [sys.executable, "scripts/run_vopd.py", str(write_recipe(model_name_or_path=str(bare))), "--explain"]
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "ACCELERATE_USE_FSDP": "true"}
    for rank in (0, 1):
        environment = {**os.environ, **launcher, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert ("processes 2" in done.stdout) == (rank == 0)
        assert bool(done.stdout) == (rank == 0)
    assert not (tmp_path / "run").exists()
