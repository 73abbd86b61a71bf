"""A language-model head: what turns hidden states into logits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """logits = softcap·tanh(logit_scale·(hidden·weightᵀ + bias)/softcap), or without the tanh."""

    weight: Tensor  # [V, H]
    bias: Tensor | None = None  # [V]
    logit_scale: float = 1.0
    softcap: float | None = None

    def shared(self, vocabulary: int) -> Head:
        """The head of the first `vocabulary` tokens."""
        bias = None if self.bias is None else self.bias[:vocabulary]
        return replace(self, weight=self.weight[:vocabulary], bias=bias)

    def to(self, device: torch.device) -> Head:
        """The same on a device."""
        return replace(
            self, weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device)
        )  # fmt: skip

    def detached(self) -> Head:
        """The same without gradients."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())
