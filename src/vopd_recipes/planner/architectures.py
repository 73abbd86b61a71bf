"""A model's architecture without its weights: every parameter's size, exact, from the configuration alone.

The model class itself is built on the meta device, where tensors have a shape and a type and no memory. So nothing is
estimated: tied heads, biases, norms and adapters are counted because they are there. Configurations come from
`model_configs` beside this module (no network), from a folder, or from the Hub.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, Trainer

from vopd_recipes.models import cast_outside_autocast, default_attention
from vopd_recipes.recipe import RecipeError, one_line

MODEL_CONFIGS = Path(__file__).parent / "model_configs"


@dataclass(frozen=True)
class Lora:
    """Which adapters are trained."""

    rank: int
    alpha: int
    targets: str | tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """What a model is made of; `lora` makes everything but its adapters frozen.

    Adapters of a half-precision model are kept in float32, unless `adapters_too` puts them in `dtype`, as DeepSpeed
    does up to ZeRO-2.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"
    lora: Lora | None = None
    adapters_too: bool = False

    @property
    def config(self) -> PreTrainedConfig:
        """The model's configuration.

        Raises:
            RecipeError: there is none of that name, or it cannot be reached.
        """
        return _read_config(self.name, self.revision)

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(self.config.num_hidden_layers)

    @property
    def key_value_heads(self) -> int:
        """Of each layer: as many as query heads where the configuration says nothing else.

        Raises:
            RecipeError: it has no attention.
        """
        for name in ("num_key_value_heads", "num_attention_heads"):
            if count := getattr(self.config, name, None):
                return int(count)
        raise RecipeError(f"{self.name}: cannot be planned for: it has no attention heads")

    @property
    def cache_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, in half precision."""
        config = self.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * self.layers * self.key_value_heads * size * 2


@dataclass(frozen=True)
class Parameter:
    """One parameter: its number of elements and of rows, and what happens to it."""

    numel: int
    rows: int
    itemsize: int
    trained: bool
    decayed: bool  # has weight decay, and so is in the first of the Trainer's two parameter groups
    in_embedding: bool  # the input embedding or the head: outside the decoder layers


@lru_cache(maxsize=64)
def parameters_of(architecture: Architecture) -> tuple[Parameter, ...]:
    """Every parameter of the model, tied ones once."""
    with torch.device("meta"):
        model: Any = build(architecture, architecture.config)
    decayed = set(Trainer.get_decay_parameter_names(cast(Trainer, None), model))  # it reads nothing of the trainer
    causal_lm = model.get_base_model() if architecture.lora else model
    outside = {id(causal_lm.get_input_embeddings().weight), id(causal_lm.get_output_embeddings().weight)}
    return tuple(
        Parameter(
            parameter.numel(),
            parameter.shape[0],
            parameter.element_size(),
            parameter.requires_grad,
            name in decayed,
            id(parameter) in outside,
        )
        for name, parameter in model.named_parameters()
    )


def build(architecture: Architecture, config: PreTrainedConfig) -> nn.Module:
    """The model, with its adapters, on whatever device is the default; its weights are never read.

    Raises:
        RecipeError: transformers has no causal language model of that kind, or the adapters fit nowhere.
    """
    dtype = getattr(torch, architecture.dtype)
    try:
        model: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation=attention_of(config), trust_remote_code=False
        )
        if (lora := architecture.lora) is None:
            return model
        targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
        adapters = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
        with_adapters: Any = get_peft_model(model, adapters)
        cast_outside_autocast(with_adapters)
        return with_adapters.to(dtype) if architecture.adapters_too else with_adapters
    except ValueError as error:
        raise RecipeError(f"{architecture.name}: cannot build its model: {one_line(error)}") from error


def attention_of(config: PreTrainedConfig) -> str:
    """What a recipe that names none gets on a machine without flash-attention, which needs as little as sdpa."""
    return default_attention(config, "float32")


@lru_cache(maxsize=64)
def _read_config(name: str, revision: str | None) -> PreTrainedConfig:
    shipped = MODEL_CONFIGS / f"{re.sub('/', '--', name)}.json"
    source = str(shipped) if shipped.is_file() else name
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        return config.get_text_config()
    except Exception as error:  # the Hub's client raises what it likes; each becomes one line
        raise RecipeError(
            f"{name}: no model configuration in {MODEL_CONFIGS.name}/, in a folder of that name or on the Hub: "
            f"{one_line(error, 300)}"
        ) from error
