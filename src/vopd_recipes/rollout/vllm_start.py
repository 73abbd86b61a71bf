"""How vLLM starts, for training and evaluation: in this process, on token ids, with no settings of a checkpoint's own.

Half of its settings are environment variables that it reads when it is imported, and the import takes ten seconds: so
it is done here, late. On a CPU it does not compile, and reads every prompt in one piece.
"""

from __future__ import annotations

import importlib
import os
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from vopd_recipes.rollout.shared_memory import shared_under


def start_vllm(
    on_gpu: bool, max_model_len: int, enforce_eager: bool | None = None, group: str | None = None, **settings: Any
) -> tuple[Any, Any]:
    """An engine in this process.

    Args:
        on_gpu: where it samples.
        max_model_len: prompt and completion together, in tokens.
        enforce_eager: no CUDA graphs; `None` is only on CPUs.
        group: a name that the processes of this engine, and no others, have in common; `None` where it is one.
        settings: the caller's own of `vllm.LLM`.

    Returns:
        The module `vllm` and its `LLM`.

    Raises:
        Exception: of whatever type vLLM likes.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_FLOAT32_MATMUL_PRECISION", _matmul_precision())  # else it resets it
    if not on_gpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        # after each piece of a prompt a token is drawn and taken back from its generator, which a CPU's cannot do
        settings |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, max_model_len)}
        settings |= {"enable_prefix_caching": False}  # which hybrids of attention and state spaces only have in pieces
    vllm: Any = importlib.import_module("vllm")
    ours = {cls: (cls.__bases__, dict(vars(cls))) for cls in _subclasses(PreTrainedModel)}
    with shared_under(group) if group and not on_gpu else nullcontext():
        llm = vllm.LLM(
            max_model_len=max_model_len,
            skip_tokenizer_init=True,  # token ids go in and come out
            generation_config="vllm",  # not the checkpoint's
            enforce_eager=not on_gpu if enforce_eager is None else enforce_eager,
            **settings,
        )
    for cls, (bases, own) in ours.items():
        if cls.__bases__ != bases:
            llm.apply_model(partial(_reclass, cls, _take_back(cls, bases, own)))
    return vllm, llm


def _matmul_precision() -> str:
    """Of float32, in the words of PyTorch's older interface, which refuses to say after `tf32: true`."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


def _subclasses(cls: type) -> set[type]:
    return {cls}.union(*map(_subclasses, cls.__subclasses__()))


def _take_back(cls: type, bases: tuple[type, ...], own: dict[str, Any]) -> type:
    """Undo what vLLM does to a class of transformers that it runs for want of its own (Olmo, SmolLM3, Phi, …).

    It gives the class, in this process, a base and methods that belong to its engine; the student is of that class
    too, and its next forward would fail. Here the class is as it was again.

    Returns:
        A class of its own for the engine's model, with all that vLLM added.
    """
    added = {name: value for name, value in vars(cls).items() if own.get(name) is not value}
    others = tuple(base for base in cls.__bases__ if base not in bases)
    cls.__bases__ = bases
    for name in added:
        if name in own:
            setattr(cls, name, own[name])
        else:
            delattr(cls, name)
    return type(cls.__name__, (cls, *others), added)


def _reclass(cls: type, engines: type, model: nn.Module) -> None:
    for module in model.modules():
        if type(module) is cls:
            module.__class__ = engines
