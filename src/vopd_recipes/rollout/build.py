"""The sampler that a recipe asks for: `rollout_backend: NAME` is `build` of this room's module `NAME_engine`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from vopd_recipes.models import check_end_tokens, end_of_sequence_ids
from vopd_recipes.recipe import ModelConfig, VOPDConfig
from vopd_recipes.rollout.engine import RolloutEngine, Sampling, Wanted


def build_rollout(
    args: VOPDConfig,
    student: nn.Module,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    longest_prompt: Callable[[], int],
    source: ModelConfig | None,
) -> RolloutEngine:
    """The engine of `rollout_backend`.

    Args:
        args: sampling, and how much of the machine vLLM may take.
        student: outside any distributed wrapper.
        accelerator: the trainer's.
        tokenizer: names the end-of-sequence token.
        vocabulary: tokens from this id on are never drawn.
        longest_prompt: in tokens; asked only where the recipe names no `vllm_max_model_len`.
        source: where vLLM loads the student from.

    Raises:
        RecipeError: an end token is never drawn, or vLLM is not installed, or cannot be started with these settings.
    """
    eos_token_ids = end_of_sequence_ids(student, tokenizer)
    check_end_tokens(eos_token_ids, tokenizer, vocabulary)
    wanted = Wanted(
        args=args,
        student=student,
        accelerator=accelerator,
        eos_token_ids=eos_token_ids,
        vocabulary=vocabulary,
        sampling=Sampling(args.temperature, args.top_p, args.top_k),
        longest_prompt=longest_prompt,
        source=source,
        progress=accelerator.is_local_main_process and not args.disable_tqdm,
    )
    engine: RolloutEngine = import_module(f"{__package__}.{args.rollout_backend}_engine").build(wanted)
    return engine
