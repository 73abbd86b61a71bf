"""A causal language model in the two parts that the loss needs: a backbone that gives hidden states, and its head.

    logits = softcap · tanh(scale · (W h + b) / softcap)

Layers that carry a state from token to token (linear attention, convolutions, state spaces) would carry it from one
sequence of a packed row into the next. Such a model, once `run_each_alone` was said of it, runs the sequences of a row
one after another, all inside the one forward that its distributed wrapper sees. Where every forward of a layer is
collective, there must be as many on each process: then it is one, of all sequences side by side, padded on the right,
where a causal model looks at padding from no token that counts.

`head_of` reads the scale and the soft cap from the configuration; `checks.check_models` compares the result with the
model's own logits, so that an architecture whose head does something else is an error and not another loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from vopd_recipes.loss import Head
from vopd_recipes.models.attention import packed_arguments
from vopd_recipes.models.sharding import is_cut
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
    return _hidden(model, input_ids, position_ids, **packed)[0]


def _hidden(model: nn.Module, input_ids: Tensor, position_ids: Tensor, **packed: Any) -> Tensor:
    """Last hidden states [B, T, H] of rows [B, T]."""
    backbone = causal_lm_of(model).base_model
    return backbone(input_ids=input_ids, position_ids=position_ids, use_cache=False, **packed).last_hidden_state


def vocabulary_of(model: nn.Module) -> int:
    """Number of tokens that the head scores, padding included: a student's and a teacher's may differ."""
    return head_module(model).out_features


def run_each_alone(model: nn.Module) -> None:
    """From now on the sequences of a micro-batch do not share a row of this model."""
    vars(causal_lm_of(model))["runs_each_alone"] = True


def runs_each_alone(model: nn.Module) -> bool:
    """Whether `run_each_alone` was said of it."""
    return "runs_each_alone" in vars(causal_lm_of(model))


def _each_alone(model: nn.Module, sequences: Sequence[Tensor], together: bool) -> Tensor:
    """Last hidden states [T, H], one sequence after another; `together` in one padded forward, not in one for each."""
    states: list[Tensor] = []
    for group in [sequences] if together else [[one] for one in sequences]:
        rows = pad_sequence(list(group), batch_first=True)
        positions = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
        states += [row[: len(one)] for row, one in zip(_hidden(model, rows, positions), group)]
    return torch.cat(states)


def completion_states(model: nn.Module, batch: MicroBatch) -> Tensor:
    """Hidden states [N, H] that predict the completion tokens of a packed row."""
    if runs_each_alone(model):
        sequences = batch.input_ids[0].split(batch.sequence_lengths)
        return _each_alone(model, sequences, together=is_cut(model))[batch.completion_positions]
    implementation = causal_lm_of(model).config._attn_implementation
    packed = packed_arguments(implementation, batch.sequence_lengths, batch.input_ids.device)
    hidden = hidden_states(model, batch.input_ids, batch.position_ids, **packed)
    return hidden[batch.completion_positions]


def scale_logits(products: Tensor, head: Head) -> Tensor:
    """W h + b [N, V] becomes logits, as `fused_loss` defines them."""
    logits = products * head.logit_scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
