"""Bytes of one thing in each phase of a step."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from vopd_recipes.planner.architectures import Parameter
from vopd_recipes.planner.states import Setup

PHASES = ("rollout", "teacher", "loss", "backward", "update")


@dataclass(frozen=True)
class Item:
    """Bytes of one thing in each phase."""

    name: str
    rollout: int = 0
    teacher: int = 0
    loss: int = 0
    backward: int = 0
    update: int = 0

    @staticmethod
    def always(name: str, size: int) -> Item:
        """The same in all phases."""
        return Item(name, size, size, size, size, size)


def gathered(setup: Setup, parameters: tuple[Parameter, ...], layers: int) -> int:
    """Bytes that are whole while layers run: DeepSpeed's limit, or FSDP2's two layers, embedding and head."""
    total = sum(parameter.numel * parameter.itemsize for parameter in parameters)
    if setup.sharding == "zero3":
        elements = sum(parameter.numel for parameter in parameters)
        return ceil(total * min(1, setup.max_live / elements))
    outside = sum(parameter.numel * parameter.itemsize for parameter in parameters if parameter.in_embedding)
    return outside + 2 * ceil((total - outside) / layers)
