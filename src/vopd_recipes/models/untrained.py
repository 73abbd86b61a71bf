"""A recipe's models without their weights: the same shape, random numbers in it.

For what a machine can be asked before gigabytes are downloaded to it. The layers start as transformers starts them;
only the head is scaled, so that the next token is far from certain and far from anything (logits of deviation 2): with
a uniform distribution every sampler would agree with every student.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from vopd_recipes.models.architecture import head_module
from vopd_recipes.models.loading import _check_layers, _lora, cast_outside_autocast, default_attention
from vopd_recipes.models.sharding import is_sharded
from vopd_recipes.recipe import ModelConfig

_DEVIATION = 2.0  # of logits


def untrained_student(
    config: ModelConfig, settings: PreTrainedConfig, device: torch.device
) -> PreTrainedModel | PeftModel:
    """What `load_student` gives, as far as shapes go.

    Args:
        config: the recipe's.
        settings: the student's architecture.
        device: where the random numbers are drawn; a large model takes a CPU a minute.
    """
    student = _untrained(config, settings, device, config.dtype)
    student.config.use_cache = False
    if not config.use_peft:
        return student
    adapted = get_peft_model(student, _lora(config, student))
    _check_layers(adapted)
    cast_outside_autocast(adapted)
    return adapted


def untrained_teacher(config: ModelConfig, settings: PreTrainedConfig, device: torch.device) -> PreTrainedModel:
    """What `load_teacher` gives, as far as shapes go; see `untrained_student`."""
    return _untrained(config, settings, device, config.teacher_dtype or config.dtype).eval().requires_grad_(False)


def _untrained(config: ModelConfig, settings: PreTrainedConfig, device: torch.device, dtype: str) -> PreTrainedModel:
    with device:
        model: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(settings),
            dtype=getattr(torch, dtype),
            attn_implementation=config.attn_implementation or default_attention(settings, dtype),
        )
    weight = head_module(model).weight
    if is_sharded(model):
        import deepspeed  # imported late: it takes seconds

        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            _spread(weight)
    else:
        _spread(weight)
    return model


@torch.no_grad()
def _spread(weight: Tensor) -> None:
    """The hidden states come out of a norm: of size 1 in each of H places."""
    if weight.numel():
        weight.mul_(_DEVIATION / (weight.float().std() * weight.shape[1] ** 0.5))
