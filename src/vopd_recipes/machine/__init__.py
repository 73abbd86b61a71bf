"""Is this machine right for a recipe? Asked on the machine, before a run: three minutes instead of a lost night.

`surroundings` (versions, devices, the exchange between processes) → `untrained` (models of the recipe's shape, where
there are no weights) → `trial` (the trainer itself, three steps of it, looked at) → `forecast` (memory against the
planner's figure, and how long a run takes). `report` says it, a line each; `command` is the whole of it.
"""

from typing import TYPE_CHECKING

from vopd_recipes.exports import on_demand

if TYPE_CHECKING:
    from vopd_recipes.machine.command import main

__getattr__ = on_demand(__name__, "command")
