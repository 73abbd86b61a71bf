"""Every recipe of this repository, proven without a Hub or a GPU.

A recipe is found by where it lies, so a new one is proven from the day it is written. It is read and checked as it
stands; then it is trained, as `scripts/run_vopd.py` does, with its own estimator, adapters, precision, template and
optimiser, on its own architectures and vocabularies (`scaled_pairs`) and with `SCALED_DOWN` in place of its sizes: two
optimiser steps, a checkpoint at each, one evaluation, and the second step once more from the first checkpoint.
"""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from recipe_files import BASES, RECIPES, ROOT, SEVERAL, as_it_stands, resolved
from safetensors.torch import load_file
from scaled_pairs import config_file, is_made_here, write_pair

from evaluation.tasks import BOXED
from vopd_recipes.data.sciknoweval import INSTRUCTION, multiple_choice
from vopd_recipes.files import complete_checkpoints
from vopd_recipes.recipe import Recipe, load_recipe
from vopd_recipes.tiny import problems as arithmetic
from vopd_recipes.training import train

SCRIPT = ROOT / "scripts" / "run_vopd.py"

# What a recipe's sizes and machine become here; everything else is its own.
SCALED_DOWN: dict[str, Any] = {
    "use_cpu": True, "deepspeed": None, "teacher_backend": "local", "teacher_server_url": None,
    "teacher_server_scores": "logprobs", "teacher_dtype": None, "eos_token": None,
    "rollout_backend": "transformers", "report_to": "none", "disable_tqdm": True,
    "max_prompt_length": 256, "max_completion_length": 4, "rollout_batch_size": 4, "max_test_prompts": 2,
    "max_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
    "eval_on_start": False, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 1,
}  # fmt: skip

# What a variant's name promises; every other difference from `vopd.yaml` must be named in `OF_THE_PAIR`.
METHODS = {
    "vopd": {"divergence": "sampled", "baseline": "value"},
    "vopd_topk": {"divergence": "sampled", "baseline": "value_topk"},
    "vopd_optimal": {"divergence": "sampled", "baseline": "optimal"},
    "vopd_rao_blackwell": {"divergence": "rao_blackwell", "baseline": "optimal"},
    "opd": {"divergence": "sampled", "baseline": "none"},
    "opd_full": {"divergence": "full", "baseline": "none"},
    "opd_topk": {"divergence": "topk", "baseline": "none"},
    "self_distillation": {"divergence": "sampled", "baseline": "value"},
    "vopd_from_32b_server": {"divergence": "rao_blackwell", "baseline": "tail", "support": "teacher"},
}
OF_EVERY_PAIR = {name for name in METHODS if "_from_" not in name and name != "self_distillation"}
OF_ITSELF = {
    "teacher_model_name_or_path", "teacher_prompt_template", "teacher_max_prompt_length", "use_peft", "lora_r",
    "lora_alpha",
}  # fmt: skip
OF_THE_CARD = {"per_device_train_batch_size", "gradient_accumulation_steps", "vllm_gpu_memory_utilization"}
OF_THE_PAIR = {
    "teacher_model_name_or_path", "teacher_dtype", "deepspeed", "gradient_accumulation_steps",
    "teacher_backend", "teacher_server_url", "teacher_server_scores",
}  # fmt: skip

# The paper's setting, sections 4 and B: what its pairs' recipes must not drift from.
PAPERS_SETTING: dict[str, Any] = {
    "dtype": "bfloat16", "bf16": True, "gradient_checkpointing": True, "use_peft": True, "lora_r": 64,
    "lora_alpha": 128, "lora_dropout": 0.0, "lora_target_modules": "all-linear", "max_prompt_length": 1024,
    "rollout_backend": "vllm", "importance_sampling_cap": 2.0, "max_completion_length": 2048, "num_generations": 1,
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "support_top_k": 20, "chat_template": False,
    "optim": "adamw_torch_fused",
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "save_steps": 20,
}  # fmt: skip
ADAPTED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
PAPERS_PAIRS = {  # student → learning rate, vLLM's share of the GPU: the paper's 0.6 where that fits 80 GB
    "Qwen/Qwen3-0.6B-Base": (1e-5, 0.6), "Qwen/Qwen3-1.7B-Base": (1e-5, 0.6), "Qwen/Qwen3-4B-Base": (1e-5, 0.6),
    "allenai/Olmo-3-1025-7B": (2e-5, 0.45),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name files from there."""
    monkeypatch.chdir(ROOT)


# Each recipe runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `math` and `choice`, after `answer_format`: `train` and `test` with the columns of every recipe's data.

    There are more rows than any recipe holds out.
    """
    folder = tmp_path_factory.mktemp("prompts")
    arithmetic.write(folder / "math", *arithmetic.split("chain", train=80, test=4))
    (folder / "choice").mkdir()
    for part, count in (("train", 80), ("test", 4)):
        rows = [
            {"prompt": multiple_choice(f"Which is {number}?", [str(number - number % 4 + i) for i in range(4)]),
             "answer": "ABCD"[number % 4]}
            for number in range(count)
        ]  # fmt: skip
        (folder / "choice" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory, tiny_pair: Any) -> Callable[[Recipe], tuple[Path, Path]]:
    """A recipe's student and teacher, each pair written once."""
    written: dict[tuple[str, str], tuple[Path, Path]] = {}

    def pair(recipe: Recipe) -> tuple[Path, Path]:
        names = (str(recipe.model.model_name_or_path), str(recipe.model.teacher_model_name_or_path))
        if recipe.training.teachers or all(map(is_made_here, names)):
            return tiny_pair.student, tiny_pair.teacher
        if names not in written:
            written[names] = write_pair(recipe.model, tmp_path_factory.mktemp("pair"))
        return written[names]

    return pair


def flags(name: str, pair: tuple[Path, Path], prompts: Path, output_dir: Path, **changed: str) -> list[str]:
    """The overrides; a recipe that holds nothing out is evaluated on the test part."""
    recipe = as_it_stands(name)
    student, teacher = pair
    data = prompts / recipe.data.answer_format
    own = {"model_name_or_path": student, "teacher_model_name_or_path": teacher, "dataset_name": data}
    if names := list(recipe.training.teachers or {}):
        teachers = {one: {"teacher_model_name_or_path": str(teacher)} for one in names}
        mixture = [{"dataset_name": str(data), "teacher": one} for one in names]
        own = {"model_name_or_path": student, "teachers": json.dumps(teachers), "dataset_mixture": json.dumps(mixture)}
    if recipe.model.teacher_is_base:
        own["teacher_model_name_or_path"] = student
    own["baseline"] = recipe.training.baseline  # a server's default is another than a local teacher's
    held_out = {} if recipe.data.test_size else {"dataset_test_split": "test"}
    values = {**SCALED_DOWN, **own, **held_out, "output_dir": output_dir, **changed}
    return [
        word for field, value in values.items() for word in (f"--{field}", "null" if value is None else str(value))
    ]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def history(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow  # five seconds each: nothing else shows that a recipe nobody has a GPU for still trains
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs(
    name: str,
    tmp_path: Path,
    prompts: Path,
    pair_of: Callable[[Recipe], tuple[Path, Path]],
) -> None:
    folder, own = tmp_path / "run", as_it_stands(name)
    recipe = load_recipe(name, flags(name, pair_of(own), prompts, folder))
    assert recipe.training.estimator == own.training.estimator
    train(recipe)
    steps = [line for line in history(folder) if "loss" in line]
    evaluations = [line for line in history(folder) if "eval_reverse_kl" in line]
    assert [line["step"] for line in steps] == [1, 2] and len(evaluations) == 1
    for line in steps:
        assert math.isfinite(line["loss"]) and line["grad_norm"] > 0 and line["reverse_kl"] > 0
    assert 0 <= evaluations[0]["eval_accuracy"] <= 1
    assert [path.name for path in complete_checkpoints(folder)] == ["checkpoint-1", "checkpoint-2"]
    if own.model.use_peft:  # as every large pair does it
        adapted = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
        assert {module.rpartition(".")[2] for module in adapted} == ADAPTED

    expected = final_weights(folder)
    shutil.rmtree(folder / "checkpoint-2")  # as if killed in the middle of step 2
    for path in folder.glob("*model.safetensors"):
        path.unlink()
    words = flags(name, pair_of(own), prompts, folder, eval_strategy="no", save_strategy="no")
    train(load_recipe(name, words))
    assert [line["step"] for line in history(folder) if "loss" in line] == [1, 2]
    resumed = final_weights(folder)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[key], tensor) for key, tensor in expected.items())


@pytest.mark.slow
def test_the_plain_command(tmp_path: Path, prompts: Path, pair_of: Callable[[Recipe], tuple[Path, Path]]) -> None:
    """One recipe as a user starts it. Slow: a process that imports everything."""
    name = "recipes/qwen3-0.6b/opd_topk.yaml"
    words = flags(name, pair_of(as_it_stands(name)), prompts, tmp_path / "run")
    done = subprocess.run([sys.executable, SCRIPT, name, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


# Each recipe says what it is -----------------------------------------------------------------------------------------


def test_recipes_are_found() -> None:
    """Every file is one of a pair's, or is named as something else."""
    assert len(BASES) >= 8 and len(RECIPES) >= len(OF_EVERY_PAIR) * len(BASES)
    assert {Path(name).parent.name for name in RECIPES} == {Path(name).parent.name for name in [*BASES, *SEVERAL]}


@pytest.mark.parametrize("base", BASES)
def test_every_pair_has_every_method(base: str) -> None:
    assert {path.stem for path in Path(base).parent.glob("*.yaml")} >= OF_EVERY_PAIR


def sequences(values: dict[str, Any]) -> int:
    """Of a step on one GPU."""
    return values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * values["num_generations"]


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in SEVERAL])
def test_a_recipe_does_what_its_name_says(name: str) -> None:
    """A variant is its pair's `vopd.yaml` but for the method, the folder, and a teacher with what that one needs."""
    path = Path(name)
    base, own = resolved(str(path.with_name("vopd.yaml"))), resolved(name)
    method = METHODS.get(path.stem) or METHODS[re.split("_(?:from|on)_", path.stem)[0]]
    assert {field: own[field] for field in method} == method
    differing = {field for field in {*base, *own} if base.get(field) != own.get(field)}
    if path.stem == "vopd":
        return
    written = yaml.safe_load(path.read_text())
    assert written["extends"] == "vopd.yaml"
    dropped = {"baseline"} if "divergence" in written else set()  # another divergence inherits none
    assert written.keys() == {"extends", *differing} - dropped  # no line that changes nothing
    changed = {field for field in method if method[field] != base[field]}
    free = OF_THE_PAIR if "_from_" in path.stem else OF_THE_CARD if "_on_" in path.stem else set()
    free = OF_ITSELF if path.stem == "self_distillation" else free
    assert differing == {*changed, "output_dir"} | (differing & free)
    if "_on_" in path.stem:
        assert sequences(own) == sequences(base)


@pytest.mark.parametrize("base", [*BASES, *(name for name in SEVERAL if name.endswith("/vopd.yaml"))])
def test_every_value_says_where_it_comes_from(base: str) -> None:
    """Beside each value that decides what is trained: from the paper, from its released code, or ours."""
    text, mark, _ = Path(base).read_text().partition("\n# What the run leaves\n")
    lines = [line for line in text.splitlines() if re.match(r"\w+:", line)]
    assert mark and [line.split(":")[0] for line in lines] == list(yaml.safe_load(text))
    assert [line for line in lines if not re.search(r" # .*\b(paper|released|ours)\b", line)] == []


def test_every_run_has_its_own_folder() -> None:
    folders = [as_it_stands(name).training.output_dir for name in RECIPES]
    assert len(set(folders)) == len(folders)
    for name, folder in zip(RECIPES, folders):
        path = Path(name)
        assert folder == f"data/runs/{path.parent.name}-{path.stem.replace('_', '-')}"


@pytest.mark.parametrize("name", RECIPES)
def test_models_are_known_without_a_hub(name: str) -> None:
    models = as_it_stands(name).model
    for model in (str(models.model_name_or_path), str(models.teacher_model_name_or_path)):
        if model != "None" and not is_made_here(model):
            source = json.loads(config_file(model).read_text())["_source"]
            assert source == f"https://huggingface.co/{model}/blob/main/config.json"


@pytest.mark.parametrize(
    "base", [base for base in BASES if any(name in (ROOT / base).read_text() for name in PAPERS_PAIRS)]
)
def test_the_papers_pairs_have_its_settings(base: str) -> None:
    values = resolved(base)
    assert {field: values.get(field) for field in PAPERS_SETTING} == PAPERS_SETTING
    assert sequences(values) == 64  # in micro-batches of 1 in the paper; larger ones have the same gradient
    eight = re.search("Qwen3-(1.7|4)B", values["model_name_or_path"]) is not None
    assert values["per_device_train_batch_size"] == (8 if eight else 1)
    own = values["learning_rate"], values["vllm_gpu_memory_utilization"]
    assert own == PAPERS_PAIRS[values["model_name_or_path"]]
    science = "chemistry" in base
    assert values["num_train_epochs"] == (10 if science else 1)
    assert values["answer_format"] == ("choice" if science else "math")
    assert values["prompt_template"] == "{prompt}\n\n" + (INSTRUCTION if science else BOXED)  # as evaluation asks
