"""What the variance of a sampled gradient is made of, row by row and without another [b, V] tensor.

`definition.py` has the sums these are; here they are multiplied out, so that one buffer to work in is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vopd_recipes.loss.sweep import row_dot


@dataclass(frozen=True)
class Moments:
    """The variance of a baseline shifted by b is second - 2 b first + b² norm - squared_mean; all are [b]."""

    mass: Tensor  # of the tokens that are sampled
    norm: Tensor
    first: Tensor
    second: Tensor | float = 0.0  # these two only where a variance is asked for
    squared_mean: Tensor | float = 0.0


def whole_moments(p: Tensor, rewards: Tensor, room: Tensor, second: bool) -> Moments:
    """Over every token, from ω = p s with s = ‖∇_z log p‖²; ‖E g‖² is what no baseline changes."""
    purity = row_dot(p, p)[:, None]
    omega = torch.mul(p, 1 + purity, out=room).addcmul_(p, p, value=-2)
    norm, mass = omega.sum(-1), torch.ones_like(purity[:, 0])
    if not second:
        return Moments(mass, norm, row_dot(omega, rewards))
    omega.mul_(rewards)
    first, square = omega.sum(-1), row_dot(omega, rewards)
    mean = torch.mul(p, rewards, out=room)
    return Moments(mass, norm, first, square, row_dot(mean, mean))


def tail_moments(tail: Tensor, rewards: Tensor, support_squares: Tensor, room: Tensor, second: bool) -> Moments:
    """Over the tail, `definition.tail_moments` multiplied out: sums over T of p, p², p r and p² r are enough.

    Args:
        tail: p on T and zero on S, [b, V].
        rewards: R, [b, V].
        support_squares: Σ_S p², [b].
        room: a buffer [b, V].
        second: whether m₂ is wanted.
    """
    mass, squares = tail.sum(-1), row_dot(tail, tail)
    purity = squares + support_squares
    weighted = torch.mul(tail, rewards, out=room)
    first, cross = weighted.sum(-1), row_dot(tail, weighted)
    norm = mass * (1 + purity) - 2 * squares - (squares - 2 * mass * squares + mass.square() * purity)
    mean = cross - mass * cross - first * squares + first * mass * purity
    of_first = first * (1 + purity) - 2 * cross - mean
    if not second:
        return Moments(mass, norm, of_first)
    linear, quadratic = row_dot(weighted, rewards), row_dot(weighted, weighted)
    of_second = linear * (1 + purity) - 2 * quadratic
    return Moments(mass, norm, of_first, of_second, quadratic - 2 * first * cross + first.square() * purity)
