"""Gradients by layer type, made small enough to keep: lengths and inner products survive, coordinates do not.

A gradient is as large as the model, and a dozen of them per draw are compared with each other and over draws. So each
is projected at once: coordinate i of a layer type's parameters is multiplied by a random sign, drawn once, and added
to entry i mod K, a count sketch (Charikar et al. 2002). Over the signs E⟨Sx, Sy⟩ = ⟨x, y⟩. The relative standard
deviation of ‖Sx‖² is √(2/K) where the squares spread evenly over the entries, 1.1 % with the default K, and less for a
mean over draws; a layer type with no more than K parameters is kept exactly. Being linear, the projection of a sum
over micro-batches is the sum of theirs.

Dropped: running means and squares per parameter. They are exact, but one set per estimator is a dozen copies of the
model, and no confidence interval of a variance can be had from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vopd_recipes.models import causal_lm_of, head_module

# A prime, so that no row length of a weight matrix divides it and outlying columns spread over all entries.
WIDTH = 16_381

LAYER_TYPES = ("embedding", "attention", "mlp", "norm", "head", "other")


def layer_type(name: str) -> str:
    """Of a parameter inside the backbone, by the words of its name; norms of queries and keys are norms."""
    words = name.lower()
    for kind, marks in (
        ("norm", ("norm", "ln_", ".ln")),
        ("attention", ("attn", "attention")),
        ("mlp", ("mlp", "ffn", "feed_forward", "expert", "moe")),
        ("embedding", ("embed", "wte", "wpe")),
    ):
        if any(mark in words for mark in marks):
            return kind
    return "other"


@dataclass(frozen=True)
class Leaf:
    """A tensor whose gradient is taken, and the parameter whose signs it shares."""

    layer_type: str
    tensor: Tensor
    parameter: Tensor


def trained_leaves(student: nn.Module) -> tuple[list[Leaf], Tensor]:
    """What is differentiated, and the head's weight [V, H] that the loss has to use for it.

    A tied matrix is used twice, as embedding and as head; a detached second copy of it tells the two apart. Their sum
    is the parameter's gradient, and counts as one in every total.
    """
    head = head_module(student)
    own = {id(parameter) for parameter in head.parameters(recurse=False)}
    tied = causal_lm_of(student).get_input_embeddings().weight is head.weight
    if tied:
        own.discard(id(head.weight))
    leaves = []
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            leaves.append(Leaf("head" if id(parameter) in own else layer_type(name), parameter, parameter))
    if not (tied and head.weight.requires_grad):
        return leaves, head.weight
    copy = head.weight.detach().requires_grad_()
    return [*leaves, Leaf("head", copy, head.weight)], copy


class Projection:
    """Projects a gradient to [layer types, K].

    Args:
        leaves: of `trained_leaves`; fixes the layer types and the order of gradients.
        seed: of the signs, which take a byte per parameter.
        width: K.
    """

    def __init__(self, leaves: Sequence[Leaf], seed: int, width: int = WIDTH) -> None:
        self.width = width
        self.layer_types = [kind for kind in LAYER_TYPES if any(leaf.layer_type == kind for leaf in leaves)]
        self.parameters = dict.fromkeys(self.layer_types, 0)
        self._leaves = list(leaves)
        self._rows = [self.layer_types.index(leaf.layer_type) for leaf in leaves]
        self._signs: dict[int, Tensor] = {}
        self._first: dict[int, int] = {}  # the entry of a parameter's first coordinate
        generator = torch.Generator().manual_seed(seed)
        for leaf in leaves:
            key, count = id(leaf.parameter), leaf.tensor.numel()
            if key not in self._signs:
                signs = torch.randint(2, (count,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
                self._signs[key] = signs.to(leaf.tensor.device)
                self._first[key] = self.parameters[leaf.layer_type] % width
            self.parameters[leaf.layer_type] += count
        #: layer types of a matrix used twice
        self.tied = [
            (leaf.layer_type, other.layer_type)
            for leaf in leaves
            for other in leaves
            if leaf.parameter is other.parameter and leaf is not other and other.layer_type == "head"
        ]

    def __call__(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """One gradient per leaf, `None` where the loss does not reach it: [layer types, K] float32."""
        device = self._leaves[0].tensor.device
        projected = torch.zeros(len(self.layer_types), self.width, device=device)
        for leaf, row, gradient in zip(self._leaves, self._rows, gradients):
            if gradient is None:
                continue
            key = id(leaf.parameter)
            signed = gradient.detach().flatten().float() * self._signs[key]
            before, after = self._first[key], -(self._first[key] + len(signed)) % self.width
            projected[row] += nn.functional.pad(signed, (before, after)).view(-1, self.width).sum(0)
        return projected

    def inner(self, left: Tensor, right: Tensor) -> Tensor:
        """⟨x, y⟩ of projections [..., layer types, K], by layer type and, last, of all: [..., layer types + 1]."""
        products = (left.double() * right.double()).sum(-1)
        total = products.sum(-1)
        for pair in self.tied:
            first, second = (self.layer_types.index(kind) for kind in pair)
            total = total + (left[..., first, :].double() * right[..., second, :].double()).sum(-1)
            total = total + (left[..., second, :].double() * right[..., first, :].double()).sum(-1)
        return torch.cat([products, total[..., None]], -1)
