"""Attention over a packed row, one sequence at a time: cost grows with Σ length², not with (Σ length)².

A packed row holds many sequences without padding. Flash-attention has a kernel for that; with plain sdpa,
transformers builds a block-diagonal mask over the whole row and computes every masked block all the same. The
`packed_sdpa` implementation registered here cuts the row at its boundaries and calls sdpa on each sequence, causal and
maskless, which also keeps sdpa's fast kernels. It is the default where flash-attention is not installed.

Outside a packed row (generation with left padding and a cache) it is transformers' own sdpa, mask and all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_SDPA = "packed_sdpa"


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
    outputs = []
    for q, k, v in zip(*(tensor.split(sequence_lengths, dim=2) for tensor in (query, key, value))):
        mask = _band(q.shape[2], sliding_window, q.device) if sliding_window else None
        outputs.append(sdpa_attention_forward(module, q, k, v, mask, **{**kwargs, "is_causal": mask is None})[0])
    return torch.cat(outputs, dim=1), None


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
        lengths = torch.tensor((0, *sequence_lengths), device=device)
        boundaries = lengths.cumsum(0, dtype=torch.int32)
        longest = max(sequence_lengths)
        return {
            "cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries, "max_length_q": longest, "max_length_k": longest
        }  # fmt: skip
    return {}


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
