"""The k largest of a row of V logits, in one fast pass: `torch.topk` takes as long as an exponential of all of them.

The k largest entries lie in the k blocks with the largest maxima. Maxima are a pass at the speed of memory; what is
left to rank are V / 64 maxima and 64 k candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64


def likeliest(values: Tensor, k: int) -> Tensor:
    """Indices of each row's k largest entries, the largest first; among equals any.

    Args:
        values: [n, V].
        k: more than V is V.

    Returns:
        [n, k] int64.
    """
    n, size = values.shape
    k, whole = min(k, size), size // _BLOCK * _BLOCK
    if 4 * k * _BLOCK > whole:
        return values.topk(k, dim=-1).indices
    blocks = values[:, :whole].unflatten(1, (-1, _BLOCK))
    chosen = blocks.amax(-1).topk(k, dim=-1).indices[:, :, None]
    places = torch.arange(_BLOCK, device=values.device)
    candidates = blocks.gather(1, chosen.expand(-1, -1, _BLOCK)).flatten(1)
    indices = (chosen * _BLOCK + places).flatten(1)
    if whole < size:
        rest = torch.arange(whole, size, device=values.device).expand(n, -1)
        candidates, indices = torch.cat([candidates, values[:, whole:]], 1), torch.cat([indices, rest], 1)
    return indices.gather(1, candidates.topk(k, dim=-1).indices)
