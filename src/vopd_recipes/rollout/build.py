"""Which sampler a recipe asks for, and with what it is built."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from vopd_recipes.models import (
    FullCopy,
    base_of,
    causal_lm_of,
    check_end_tokens,
    checkpoint_weights,
    end_of_sequence_ids,
    shards_weights,
)
from vopd_recipes.recipe import ModelConfig, VOPDConfig
from vopd_recipes.rollout.engine import RolloutEngine, Sampling
from vopd_recipes.rollout.transformers_engine import TransformersRollout
from vopd_recipes.rollout.vllm_engine import VLLMRollout

logger = logging.getLogger(__name__)

# Up to this many tokens a rollout is short whatever samples it.
_SHORT = 256


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
    sampling = Sampling(args.temperature, args.top_p, args.top_k)
    progress = accelerator.is_local_main_process and not args.disable_tqdm
    if args.rollout_backend == "transformers":
        if accelerator.is_main_process and (notice := slow_notice(accelerator.device.type, args)):
            logger.warning(notice)
        return TransformersRollout(
            model=lambda: student,
            eos_token_ids=eos_token_ids,
            vocabulary=vocabulary,
            sampling=sampling,
            batch_size=args.rollout_batch_size,
            progress=progress,
            copy=FullCopy(student, accelerator.device) if shards_weights(accelerator) else None,
        )
    config = causal_lm_of(student).config
    source = source or ModelConfig(model_name_or_path=config._name_or_path)
    base = base_of(student, source)  # an adapter that the student starts from comes with the first hand-over
    half = "bfloat16" if accelerator.mixed_precision == "bf16" else None  # the recipe's bf16, or the launcher's
    return VLLMRollout(
        model=str(base.model_name_or_path),
        revision=base.model_revision,
        device=accelerator.device,
        dtype=args.vllm_dtype or half or str(config.dtype).removeprefix("torch."),
        eos_token_ids=eos_token_ids,
        vocabulary=vocabulary,
        sampling=sampling,
        max_model_len=args.vllm_max_model_len or longest_prompt() + args.max_completion_length,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
        enforce_eager=args.vllm_enforce_eager,
        max_num_seqs=args.rollout_batch_size,
        trust_remote_code=source.trust_remote_code,
        seed=args.seed,
        as_saved=partial(checkpoint_weights, student),
        progress=progress,
    )


def slow_notice(device: str, args: VOPDConfig) -> str | None:
    """What long completions cost on a GPU without vLLM, or `None` where they are short or there is no GPU."""
    if device != "cuda" or args.max_completion_length <= _SHORT:
        return None
    return (
        f"rollout_backend: transformers samples up to {args.max_completion_length} tokens with a forward of the whole "
        "model for each: vLLM was 2.3 times as fast in float32 and 3.5 in bfloat16, on two CPU cores "
        "(docs/smollm2-135m.md; not yet measured on a GPU); set rollout_backend: vllm"
    )
