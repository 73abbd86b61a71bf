"""Before step 1: the two models are understood, and the teacher has something to teach.

On a real prompt, alone and in a packed row, so that a head or layers that do something else than the loss assumes are
an error at the start and not a quietly different loss. A model that is right alone and wrong in a packed row is not
refused, unless it is sharded: its sequences run one by one from then on, which is said.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vopd_recipes.models.architecture import (
    causal_lm_of,
    head_module,
    head_of,
    hidden_states,
    run_each_alone,
    runs_each_alone,
    scale_logits,
)
from vopd_recipes.models.attention import CannotPack, packed_arguments
from vopd_recipes.models.loading import noise_of
from vopd_recipes.models.sharding import is_cut, redirected
from vopd_recipes.models.weights import merging_error
from vopd_recipes.recipe import RecipeError

logger = logging.getLogger(__name__)

# Mean entropy above this share of log V: a model that has learnt nothing, or whose weights were not loaded.
_UNIFORM_ENTROPY_SHARE = 0.98
# Relative differences of a token's hidden state, in float32 and where it is rounded, which is some 1% in bfloat16.
# In a packed row and alone:
_PACKING_TOLERANCE, _ROUNDED_PACKING_TOLERANCE = 0.01, 0.1
# Behind two other sequences, which rounds alike; what leaks may be little, 5% in a random Falcon-H1:
_LEAK_TOLERANCE, _ROUNDED_LEAK_TOLERANCE = 1e-3, 0.02
_ONE_BY_ONE = "its sequences run one by one, a forward for each: the same loss, slower where they are short"
_TOGETHER = "its sequences run side by side in one padded forward: the same loss, slower where their lengths differ"
# The same computation twice: nothing but the order of a sum may differ.
_TRAIN_MODE_TOLERANCE = 0.01
# Names under which configurations keep how far back a token sees.
_WINDOWS = ("sliding_window", "keep_window_size")
# Relative to what adapters change, with changes as large as the weights: rounding in bfloat16 is some 1%.
_MERGING_TOLERANCE = 0.05


@torch.no_grad()
def check_models(student: nn.Module | None, teacher: nn.Module | None, prompt: list[int], longest: int = 0) -> None:
    """Before step 1, on a real prompt: the models here are understood and the teacher has something to teach.

    Args:
        student: with or without adapters; `None` where it has been looked at.
        teacher: where it is here.
        prompt: its tokens.
        longest: tokens of the longest sequence there can be; attention windows below it are looked at too.

    Raises:
        RecipeError: logits that `head_of` does not reproduce, a token that depends on those after it, a student that
            computes something else while it trains than while it samples, or a teacher that is not finite or knows
            nothing.
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if model is None:
            continue
        training, config = model.training, causal_lm_of(model).config
        label = f"{name} {config._name_or_path or type(causal_lm_of(model)).__name__}"
        try:
            _check_one(name, label, model.eval(), prompt, longest)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise RecipeError(f"{label}: its forward fails on the first prompt: {error}") from error
        model.train(training)


def _check_one(name: str, label: str, model: nn.Module, prompt: list[int], longest: int) -> None:
    """All of it inside one forward of the model: outside, a sharded one has no weights."""
    own_forward = causal_lm_of(model).forward
    with redirected(model, lambda: _compare(name, label, model, own_forward, prompt, longest)):
        model()


def _compare(
    name: str, label: str, model: nn.Module, own_forward: Callable[..., Any], prompt: list[int], longest: int
) -> None:
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
    hidden = _alone(model, input_ids[0])
    module = head_module(model)
    with redirected(module, lambda hidden: nn.functional.linear(hidden, module.weight, module.bias)):
        ours = scale_logits(module(hidden).float(), head)
    if (ours - logits).abs().max() > 0.02 * logits.abs().max() + 1e-3:
        raise RecipeError(f"{label}: its head is not softcap·tanh(scale·(W h + b)/softcap), which the loss computes")
    windows = [getattr(causal_lm.config.get_text_config(), name, None) or longest for name in _WINDOWS]
    texts = [prompt]
    if min(windows) < longest:
        length = min(windows) + 64
        texts.append((prompt * (length // len(prompt) + 1))[:length])
    for text in texts:
        _check_causal(label, model, text)
    if not runs_each_alone(model) and (reason := next(filter(None, (_mixing(model, text) for text in texts)), None)):
        run_each_alone(model)
        logger.info("%s: %s; %s", label, reason, _TOGETHER if is_cut(model) else _ONE_BY_ONE)
    if name == "student":
        _check_train_mode(label, model, hidden, input_ids)
    if isinstance(model, PeftModel) and not is_cut(model):
        error = merging_error(model, lambda: own_forward(input_ids=input_ids, use_cache=False))
        if not error < _MERGING_TOLERANCE:
            raise RecipeError(
                f"{label}: merged into its weights, its adapters do something else ({error:.0%} of what they change), "
                "and the sampler and whoever loads the result would have another model"
            )


def _check_causal(label: str, model: nn.Module, text: list[int]) -> None:
    """The hidden states [T, H] of a text's tokens must be those that they have without its last ones."""
    tokens = torch.tensor(text, device=causal_lm_of(model).device)
    most = tokens[: max((len(text) + 1) // 2, len(text) - 32)]
    difference = _difference(_alone(model, tokens)[: len(most)], _alone(model, most))
    if difference.mean() > (_ROUNDED_PACKING_TOLERANCE if _rounds(model) else _PACKING_TOLERANCE):
        raise RecipeError(
            f"{label}: what it computes for a token depends on those after it (in texts of {len(text)} tokens), so it "
            "would not train what it samples"
        )


def _mixing(model: nn.Module, text: list[int]) -> str | None:
    """What is wrong with a text's hidden states [T, H] after another one in a row; `None` if they are those alone."""
    causal_lm = causal_lm_of(model)
    tokens = torch.tensor(text, device=causal_lm.device)
    before = tokens[: (len(text) + 1) // 2]
    lengths, implementation = (len(before), len(text)), causal_lm.config._attn_implementation
    positions = torch.cat([torch.arange(length, device=tokens.device) for length in lengths])[None]
    packed = packed_arguments(implementation, lengths, tokens.device)
    others = (before + 1) % causal_lm.config.get_text_config().vocab_size
    try:
        one, other = (
            hidden_states(model, torch.cat([first, tokens])[None], positions, **packed)[len(before) :]
            for first in (before, others)
        )
    except CannotPack as error:
        if is_cut(model):  # broken off in the middle of a forward, it cannot be called again
            raise
        return str(error)
    # The first tokens, because what leaks in from before fades; their mean, because rounding may swap experts.
    leak = _difference(one, other)[:4].mean()
    if leak > (_ROUNDED_LEAK_TOLERANCE if _rounds(model) else _LEAK_TOLERANCE):
        return "its layers carry something from one sequence of a packed row into the next"
    difference = _difference(one, _alone(model, tokens))
    tolerance = _ROUNDED_PACKING_TOLERANCE if _rounds(model) else _PACKING_TOLERANCE
    if difference[:4].mean() > tolerance or difference[-32:].mean() > tolerance:
        return (
            "its attention has a window that it keeps in a mask alone, and none in a packed row with "
            f"attn_implementation: {implementation} (sdpa packs it)"
        )
    return None


def _alone(model: nn.Module, tokens: Tensor) -> Tensor:
    """Hidden states [T, H] of a row that is one text."""
    return hidden_states(model, tokens[None], torch.arange(len(tokens), device=tokens.device)[None])


def _rounds(model: nn.Module) -> bool:
    return causal_lm_of(model).dtype.itemsize < 4


def _check_train_mode(label: str, model: nn.Module, hidden: Tensor, input_ids: Tensor) -> None:
    """The student that is trained is the one that samples; the dropout of adapters is the recipe's own choice."""
    if noise_of(causal_lm_of(model).config):
        return  # asked for
    model.train()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout.eval()
    with torch.random.fork_rng():
        difference = _difference(_alone(model, input_ids[0]), hidden)
    model.eval()
    if difference.mean() > _TRAIN_MODE_TOLERANCE:
        raise RecipeError(
            f"{label}: some of its layers compute something else while it trains (dropout, noise on a router), so it "
            "would not train what it samples"
        )


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """Of hidden states [T, H], relative, token by token."""
    return (one.float() - other.float()).norm(dim=-1) / other.float().norm(dim=-1).clamp_min(1e-6)
