"""A room's exports that wait until somebody asks for them.

Rooms are imported by their names, and Python then runs their whole `__init__`. Where that would bring torch or
transformers along for one error class or one table, the heavy part of a room waits: the uploader beside a training run
is such a reader, and is to start in a second and stay small.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def on_demand(room: str, *modules: str) -> Callable[[str], Any]:
    """The `__getattr__` of a room (PEP 562) whose names come from these modules, imported at the first question.

    Args:
        room: its `__name__`.
        modules: of that room, in the order in which a name is looked for.
    """

    def find(name: str) -> Any:
        for module in modules if not name.startswith("_") and name not in modules else ():
            if hasattr(found := import_module(f"{room}.{module}"), name):
                return getattr(found, name)
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return find
