"""Before step 1: the two models are understood, and the teacher has something to teach.

On a real prompt, alone and in a packed row, so that a head or layers that do something else than the loss assumes are
an error at the start and not a quietly different loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from vopd_recipes.models.architecture import causal_lm_of, head_module, head_of, hidden_states, scale_logits
from vopd_recipes.models.attention import packed_arguments
from vopd_recipes.models.sharding import is_sharded, redirected
from vopd_recipes.models.weights import merging_error
from vopd_recipes.recipe import RecipeError

# Mean entropy above this share of log V: a model that has learnt nothing, or whose weights were not loaded.
_UNIFORM_ENTROPY_SHARE = 0.98
# Relative difference of a token's hidden state, packed and alone: rounding in bfloat16 is some 1%, mixing over 30%.
_PACKING_TOLERANCE = 0.1
# Relative to what adapters change, with changes as large as the weights: rounding in bfloat16 is some 1%.
_MERGING_TOLERANCE = 0.05


@torch.no_grad()
def check_models(student: nn.Module, teacher: nn.Module | None, prompt: list[int]) -> None:
    """Before step 1, on a real prompt: the models here are understood and the teacher has something to teach.

    Raises:
        RecipeError: logits that `head_of` does not reproduce, layers that mix the sequences of a packed row, or a
            teacher that is not finite or knows nothing.
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if model is None:
            continue
        training, config = model.training, causal_lm_of(model).config
        label = f"{name} {config._name_or_path or type(causal_lm_of(model)).__name__}"
        try:
            _check_one(name, label, model.eval(), prompt)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise RecipeError(f"{label}: its forward fails on the first prompt: {error}") from error
        model.train(training)


def _check_one(name: str, label: str, model: nn.Module, prompt: list[int]) -> None:
    """All of it inside one forward of the model: outside, a sharded one has no weights."""
    own_forward = causal_lm_of(model).forward
    with redirected(model, lambda: _compare(name, label, model, own_forward, prompt)):
        model()


def _compare(name: str, label: str, model: nn.Module, own_forward: Callable[..., Any], prompt: list[int]) -> None:
    causal_lm, head = causal_lm_of(model), head_of(model)
    input_ids = torch.tensor([prompt], device=causal_lm.device)
    logits = own_forward(input_ids=input_ids, use_cache=False).logits[0].float()
    if not logits.isfinite().all():
        raise RecipeError(f"{label}: its logits on the first prompt are not finite; check its weights and dtype")
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean().item()
    if name == "teacher" and entropy > _UNIFORM_ENTROPY_SHARE * math.log(logits.shape[1]):
        raise RecipeError(
            f"{label}: its next-token distribution is uniform (entropy {entropy:.2f} nats of "
            f"{math.log(logits.shape[1]):.2f}); were its weights loaded?"
        )
    hidden = hidden_states(model, input_ids, torch.arange(len(prompt), device=causal_lm.device)[None])
    module = head_module(model)
    with redirected(module, lambda hidden: nn.functional.linear(hidden, module.weight, module.bias)):
        ours = scale_logits(module(hidden).float(), head)
    if (ours - logits).abs().max() > 0.02 * logits.abs().max() + 1e-3:
        raise RecipeError(f"{label}: its head is not softcap·tanh(scale·(W h + b)/softcap), which the loss computes")
    _check_packing(label, model, hidden, prompt)
    if isinstance(model, PeftModel) and not is_sharded(model):
        error = merging_error(model, lambda: own_forward(input_ids=input_ids, use_cache=False))
        if not error < _MERGING_TOLERANCE:
            raise RecipeError(
                f"{label}: merged into its weights, its adapters do something else ({error:.0%} of what they change), "
                "and the sampler and whoever loads the result would have another model"
            )


def _check_packing(label: str, model: nn.Module, alone: Tensor, prompt: list[int]) -> None:
    """A sequence after another one in a row must have the hidden states [T, H] that it has alone."""
    causal_lm = causal_lm_of(model)
    lengths = ((len(prompt) + 1) // 2, len(prompt))
    row = torch.tensor([prompt[: lengths[0]] + prompt], device=causal_lm.device)
    positions = torch.cat([torch.arange(length, device=row.device) for length in lengths])[None]
    packed = packed_arguments(causal_lm.config._attn_implementation, lengths, row.device)
    together = hidden_states(model, row, positions, **packed)[lengths[0] :]
    difference = (together.float() - alone.float()).norm(dim=-1) / alone.float().norm(dim=-1).clamp_min(1e-6)
    # The first tokens, because what leaks in from before fades; their mean, because rounding may swap experts.
    if difference[:4].mean() > _PACKING_TOLERANCE:
        raise RecipeError(
            f"{label}: its layers mix the sequences of a packed row (recurrent or convolutional layers do, and some "
            f"attention with attn_implementation: {causal_lm.config._attn_implementation}), which training relies on"
        )
