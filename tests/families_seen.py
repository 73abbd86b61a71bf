"""What the table in docs/models.md says of each family, seen: three real optimiser steps, whole and with adapters.

Arguments: `transformers` or `vllm`, a folder to work in, families. One process for all of them: importing vLLM takes
as long as an engine does. Writes what it saw of each as JSON to `seen.json` there: the attention, whether sequences
share a row, and the gap between the trainer's and the engine's log-probabilities after the steps, or the line that
says why there is none.
"""

import json
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from conftest import sharpened
from family_configs import FAMILIES
from test_trainer import build
from transformers import AutoModelForCausalLM

from vopd_recipes.models import check_models, checkpoint_weights, runs_each_alone
from vopd_recipes.recipe import RecipeError, one_line
from vopd_recipes.rollout import build_rollout
from vopd_recipes.tiny import pair as tiny
from vopd_recipes.tiny import problems as arithmetic
from vopd_recipes.training import TrainingStopped, VOPDTrainer
from vopd_recipes.training.agreement import first_gap

KINDS = {"full": {}, "lora": {"use_peft": True, "lora_r": 4, "lora_alpha": 8}}


def save_random(family: str, folder: Path) -> None:
    """A random model of a family, with the byte tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family].settings())
    tiny.save(sharpened(model, 4), tiny.byte_tokenizer(), folder)


def common(folder: Path) -> dict[str, object]:
    """Fields of every recipe: twelve prompts, a Qwen3 for teacher; written once."""
    teacher = sharpened(tiny.tiny_qwen3(64, 2, seed=1, tie_word_embeddings=False))
    tiny.save(teacher, tiny.byte_tokenizer(), folder / "teacher")
    arithmetic.write(folder / "problems", *arithmetic.split("chain", train=12, test=2))
    return {
        "teacher_model_name_or_path": str(folder / "teacher"), "dataset_name": str(folder / "problems"),
        "answer_column": "answer", "max_completion_length": 16, "max_steps": 3, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "vllm_gpu_memory_utilization": 0.1,
    }  # fmt: skip


def built(folder: Path, family: str, kind: str, fields: dict[str, object]) -> VOPDTrainer:
    """The trainer of a family's random model, checked as the command checks it."""
    model, recipe = folder / family, folder / "recipe.yaml"
    if not model.exists():
        save_random(family, model)
    own = {"model_name_or_path": str(model), "output_dir": str(folder / f"{family}-{kind}"), **KINDS[kind]}
    if kind == "lora" and FAMILIES[family].adapted:
        own["lora_target_modules"] = list(FAMILIES[family].adapted)
    recipe.write_text(yaml.safe_dump(fields | own))
    trainer = build(recipe)
    check_models(trainer.student, trainer.teacher.model, trainer.train_dataset[0]["input_ids"], 64)
    return trainer


def gap_after_steps(trainer: VOPDTrainer) -> float:
    """In nats per token, on average."""
    trainer.train()
    return first_gap(trainer, trainer.sample(list(trainer.train_dataset)[:4], step=3, generations=1))


def with_engine(trainer: VOPDTrainer, engine: Any) -> Any:
    """A trainer that samples with vLLM: with the engine of the trainer before it, or the first of its family."""
    if engine is None:
        trainer.args.rollout_backend = "vllm"
        longest = trainer._longest_prompt
        engine = build_rollout(
            trainer.args, trainer.student, trainer.accelerator, trainer.tokenizer, trainer.vocabulary, longest, None
        )
    engine._as_saved = partial(checkpoint_weights, trainer.student)
    trainer.rollout = engine
    return engine


def look_at(folder: Path, family: str, vllm: bool, fields: dict[str, object]) -> dict[str, object]:
    seen: dict[str, object] = {}
    engine = None
    for kind in KINDS:
        try:
            trainer = built(folder, family, kind, fields)
            seen["attention"] = trainer.student.config._attn_implementation
            seen["rows"] = "one by one" if runs_each_alone(trainer.student) else "packed"
            if vllm:
                engine = with_engine(trainer, engine)
            seen[kind] = gap_after_steps(trainer)
        except (RecipeError, TrainingStopped) as error:
            traceback.print_exc()
            seen[kind] = one_line(error, 2000)
    return seen


def main(backend: str, folder: Path, families: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    fields, seen = common(folder), {}
    for family in families:
        seen[family] = look_at(folder, family, backend == "vllm", fields)
        (folder / "seen.json").write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
