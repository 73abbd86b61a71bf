"""A recipe's student and teacher as tiny models: the real architectures and vocabularies, hardly any width or depth.

What stays of a configuration in `planner/model_configs`: its model class, vocabulary, ties, biases, rotary embedding,
kinds of attention and query heads per key-value head. What shrinks: see `scaled_down`. Weights are random, the
tokenizer is the byte tokenizer, whose ids every vocabulary has.
"""

import copy
from pathlib import Path

import torch
from conftest import sharpened
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from vopd_recipes.planner.architectures import MODEL_CONFIGS
from vopd_recipes.recipe import ModelConfig
from vopd_recipes.tiny import pair as tiny

STUDENT_WIDTH, TEACHER_WIDTH = 24, 48  # some architectures want a multiple of their 2, 4, 6 or 8 query heads


def config_file(name: str) -> Path:
    """Where a Hub model's configuration is kept in this repository."""
    return MODEL_CONFIGS / f"{name.replace('/', '--')}.json"


def is_made_here(name: str) -> bool:
    """Whether a model is what one of our scripts writes, and so in nobody's checkout."""
    return name.startswith("data/")


def scaled_down(config: PreTrainedConfig, width: int) -> PreTrainedConfig:
    """`width` hidden units, two layers (the first and the last kind), two key-value heads of 8, a window of 8."""
    small = copy.deepcopy(config)
    shared = config.num_attention_heads // config.num_key_value_heads
    small.hidden_size, small.intermediate_size, small.num_hidden_layers = width, 2 * width, 2
    small.num_key_value_heads, small.num_attention_heads, small.head_dim = 2, 2 * shared, 8
    if getattr(config, "layer_types", None):
        small.layer_types = [config.layer_types[0], config.layer_types[-1]]
    if getattr(config, "sliding_window", None):
        small.sliding_window = 8
    small.eos_token_id = small.pad_token_id = tiny.byte_tokenizer().eos_token_id
    return small


def write_pair(models: ModelConfig, folder: Path) -> tuple[Path, Path]:
    """Folders of student and teacher; a student that is made here takes after its teacher."""
    teacher = str(models.teacher_model_name_or_path)
    student = teacher if is_made_here(str(models.model_name_or_path)) else str(models.model_name_or_path)
    for seed, (name, role, width) in enumerate(
        [(student, "student", STUDENT_WIDTH), (teacher, "teacher", TEACHER_WIDTH)]
    ):
        small = scaled_down(AutoConfig.from_pretrained(config_file(name)), width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
        tiny.save(sharpened(model), tiny.byte_tokenizer(), folder / role)
    return folder / "student", folder / "teacher"
