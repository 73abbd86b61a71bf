"""Attention over a packed row, one sequence at a time: cost grows with Σ length², not with (Σ length)².

A packed row holds many sequences without padding. Flash-attention has a kernel for that; with plain sdpa,
transformers builds a block-diagonal mask over the whole row and computes every masked block all the same. The
`packed_sdpa` implementation registered here cuts the row at its boundaries and calls sdpa on each sequence, causal and
maskless, which also keeps sdpa's fast kernels; on a GPU and in half precision torch's own variable-length kernel takes
the whole row at once. It is the default where flash-attention is not installed.

Outside a packed row (generation with left padding and a cache) it is transformers' own sdpa, mask and all.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_SDPA = "packed_sdpa"
# Flash-attention's largest head, and what sdpa may be asked for that `varlen_attn` does not have.
_LARGEST_HEAD = 256
_BEYOND_VARLEN = ("softcap", "s_aux", "position_bias", "cache")


class CannotPack(RuntimeError):
    """An attention layer is not told where the sequences of a packed row begin."""


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a packed row.

    Args:
        module: the attention layer.
        query: [1, heads, T, head_dim]; key and value alike, with their own number of heads.
        key: see query.
        value: see query.
        attention_mask: ignored for a packed row, applied otherwise.
        sequence_lengths: lengths that sum to T, or `None` outside a packed row.
        sliding_window: how many tokens back a query sees, or `None`.
        kwargs: scaling, dropout and whatever else sdpa takes.

    Raises:
        CannotPack: the model does not hand `sequence_lengths` down to its attention.
        RuntimeError: it caps attention scores or has sinks, which sdpa would leave out without a word.
    """
    for argument, what in (("softcap", "caps its scores"), ("s_aux", "has attention sinks")):
        if kwargs.get(argument) is not None:
            raise RuntimeError(f"{type(module).__name__} {what}, which sdpa cannot; set attn_implementation: eager")
    if sequence_lengths is None:
        if attention_mask is not None and attention_mask.shape[-1] == 1 < key.shape[2]:
            raise CannotPack(
                f"{type(module).__name__} does not pass sequence_lengths on, so rows cannot be packed with "
                f"{PACKED_SDPA}; set attn_implementation: sdpa"
            )
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if fits_varlen(query, key, value, kwargs):
        row: Any = varlen_attn(**varlen_arguments(query, key, value, sequence_lengths, sliding_window, kwargs))
        return row[None], None
    outputs = []
    for q, k, v in zip(*(tensor.split(sequence_lengths, dim=2) for tensor in (query, key, value))):
        mask = _band(q.shape[2], sliding_window, q.device) if sliding_window else None
        outputs.append(sdpa_attention_forward(module, q, k, v, mask, **{**kwargs, "is_causal": mask is None})[0])
    return torch.cat(outputs, dim=1), None


def fits_varlen(
    query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any], on_gpu: bool | None = None
) -> bool:
    """Whether `varlen_attn` computes this: flash-attention's kernel, of which torch has its own build.

    Args:
        query: [1, heads, T, head_dim].
        key: alike.
        value: alike.
        options: what else the attention is asked for.
        on_gpu: whether there is one that has the kernel; default: asked of the query's device.
    """
    if on_gpu is None:
        nvidia = query.is_cuda and torch.version.hip is None
        on_gpu = nvidia and torch.cuda.get_device_capability(query.device) >= (8, 0)
    types = {_product_dtype(tensor) for tensor in (query, key, value)}
    size = query.shape[-1]
    return (
        on_gpu
        and types in ({torch.bfloat16}, {torch.float16})
        and key.shape[-1] == value.shape[-1] == size <= _LARGEST_HEAD
        and size % 8 == 0
        and not options.get("dropout")
        and all(options.get(name) is None for name in _BEYOND_VARLEN)
    )


def varlen_arguments(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], window: int | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Those of `varlen_attn`: a row [T, heads, head_dim] and its boundaries; windows leave the query's token out.

    Args:
        query: [1, heads, T, head_dim].
        key: alike.
        value: alike.
        lengths: that sum to T.
        window: how many tokens a query sees, its own included, or `None`.
        options: what else the attention is asked for; its `scaling` is read.
    """
    row = {
        name: tensor[0].transpose(0, 1).to(_product_dtype(tensor))
        for name, tensor in (("query", query), ("key", key), ("value", value))
    }
    boundaries, longest = _boundaries(lengths, query.device), max(lengths)
    return {
        **row, "cu_seq_q": boundaries, "cu_seq_k": boundaries, "max_q": longest, "max_k": longest,
        "scale": options.get("scaling"), "enable_gqa": query.shape[1] != key.shape[1],
        "window_size": (window - 1, 0) if window and window < longest else (-1, 0),
    }  # fmt: skip


def _product_dtype(tensor: Tensor) -> torch.dtype:
    """What sdpa would multiply in: autocast does not know `varlen_attn`."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


@lru_cache(maxsize=4)  # one row after another, the same in every layer
def _boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where sequences begin, and T: [sequences + 1] int32."""
    return torch.tensor((0, *lengths), device=device).cumsum(0, dtype=torch.int32)


def _band(length: int, window: int, device: torch.device) -> Tensor | None:
    """Causal mask of a sliding window, or `None` where the window covers the sequence."""
    if length <= window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def packed_arguments(implementation: str, sequence_lengths: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    """What a model's forward needs, besides tokens and positions, to treat its row as packed."""
    if implementation == PACKED_SDPA:
        # A 4-dimensional mask is handed through as it is: none of the row's quadratic size is built.
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        return {"attention_mask": no_mask, "sequence_lengths": sequence_lengths}
    if implementation.startswith("flash_attention"):
        boundaries = _boundaries(sequence_lengths, device)
        longest = max(sequence_lengths)
        return {
            "cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": longest, "max_length_k": longest
        }  # fmt: skip
    return {}


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
