"""A causal language model in the two parts that the loss needs: a backbone that gives hidden states, and its head.

    logits = softcap · tanh(scale · (W h + b) / softcap)

`head_of` reads the scale and the soft cap from the configuration; `checks.check_models` compares the result with the
model's own logits, so that an architecture whose head does something else is an error and not another loss.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from vopd_recipes.loss import Head
from vopd_recipes.models.attention import packed_arguments
from vopd_recipes.packing import MicroBatch
from vopd_recipes.recipe import RecipeError


def causal_lm_of(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside an optional PEFT wrapper."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def head_module(model: nn.Module) -> nn.Linear:
    """The linear layer that makes logits.

    Raises:
        RecipeError: the head is not a plain linear layer (LoRA on lm_head, for instance).
    """
    causal_lm = causal_lm_of(model)
    module = causal_lm.get_output_embeddings()
    if not isinstance(module, nn.Linear):
        raise RecipeError(
            f"the head of {type(causal_lm).__name__} is a {type(module).__name__}, not a linear layer; "
            "leave lm_head out of lora_target_modules"
        )
    return module


def head_of(model: nn.Module) -> Head:
    """The language-model head with its scale and soft cap; under ZeRO-3 its weight is a shard outside the forward."""
    module = head_module(model)
    config = causal_lm_of(model).config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return Head(module.weight, module.bias, scale, getattr(config, "final_logit_softcapping", None))


def hidden_states(model: nn.Module, input_ids: Tensor, position_ids: Tensor, **packed: Any) -> Tensor:
    """The backbone's last hidden states of a row, [T, H], without the head."""
    backbone = causal_lm_of(model).base_model
    output = backbone(input_ids=input_ids, position_ids=position_ids, use_cache=False, **packed)
    return output.last_hidden_state[0]


def vocabulary_of(model: nn.Module) -> int:
    """Number of tokens that the head scores, padding included: a student's and a teacher's may differ."""
    return head_module(model).out_features


def completion_states(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Hidden states [N, H] that predict the completion tokens of a packed row."""
    implementation = causal_lm_of(model).config._attn_implementation
    packed = packed_arguments(implementation, batch.sequence_lengths, batch.input_ids.device)
    hidden = hidden_states(model, batch.input_ids, batch.position_ids, **packed)
    return hidden[batch.completion_positions]


def scale_logits(products: Tensor, head: Head) -> Tensor:
    """W h + b [N, V] becomes logits, as `fused_loss` defines them."""
    logits = products * head.logit_scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
