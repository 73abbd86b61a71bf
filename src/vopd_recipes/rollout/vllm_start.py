"""How vLLM starts, for training and evaluation: in this process, on token ids, with no settings of a checkpoint's own.

Half of its settings are environment variables that it reads when it is imported, and the import takes ten seconds: so
it is done here, late. On a CPU it does not compile, and reads every prompt in one piece.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch


def start_vllm(
    on_gpu: bool, max_model_len: int, enforce_eager: bool | None = None, **settings: Any
) -> tuple[Any, Any]:
    """An engine in this process.

    Args:
        on_gpu: where it samples.
        max_model_len: prompt and completion together, in tokens.
        enforce_eager: no CUDA graphs; `None` is only on CPUs.
        settings: the caller's own of `vllm.LLM`.

    Returns:
        The module `vllm` and its `LLM`.

    Raises:
        Exception: of whatever type vLLM likes.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_FLOAT32_MATMUL_PRECISION", torch.get_float32_matmul_precision())  # else it resets it
    if not on_gpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        # after each piece of a prompt a token is drawn and taken back from its generator, which a CPU's cannot do
        settings |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, max_model_len)}
    vllm: Any = importlib.import_module("vllm")
    return vllm, vllm.LLM(
        max_model_len=max_model_len,
        skip_tokenizer_init=True,  # token ids go in and come out
        generation_config="vllm",  # not the checkpoint's
        enforce_eager=not on_gpu if enforce_eager is None else enforce_eager,
        **settings,
    )
