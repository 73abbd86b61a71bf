"""What `--help` says of a recipe's fields is all of it, and what the installed transformers has."""

import re
from dataclasses import fields

from transformers import TrainingArguments

from vopd_recipes.recipe import fields_help
from vopd_recipes.recipe.config import describe_fields
from vopd_recipes.recipe.help import inherited_groups


def test_every_field_stands_there_once() -> None:
    own, _, inherited = fields_help().partition("Inherited from")
    ours = {name for name, _, _ in describe_fields()}
    assert [name for name in ours if len(re.findall(rf"^  --{name} ", own, re.MULTILINE)) != 1] == []
    theirs = {item.name for item in fields(TrainingArguments) if item.init} - ours - {"local_rank"}
    names = inherited.partition("\n")[2]
    assert len(theirs) > 80 and [name for name in theirs if len(re.findall(rf"\b{name}\b", names)) != 1] == []
    assert max(map(len, own.splitlines())) <= 110


def test_what_a_field_may_hold_is_said_where_its_default_does_not_show_it() -> None:
    text = re.sub(r"\s+", " ", fields_help())
    assert "--rollout_backend what samples the completions; one of transformers, vllm [transformers] --" in text
    assert "--teacher_dtype the teacher's; default: bfloat16 with bf16, else dtype; one of float32, bfloat16, " in text
    assert "--max_test_prompts evaluate on at most this many held-out prompts; a whole number --" in text
    assert "--lora_r rank of the adapters [64] --" in text


def test_inherited_fields_have_the_headings_of_their_library() -> None:
    groups = dict(inherited_groups())
    assert {"warmup_steps", "learning_rate"} <= {*groups["Learning Rate & Scheduler"]}
    assert groups["Best Model Tracking"] == ["load_best_model_at_end", "metric_for_best_model", "greater_is_better"]
    assert "deepspeed" in groups["DeepSpeed"] and "save_total_limit" in groups["Checkpointing & Saving"]
