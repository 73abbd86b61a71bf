"""The loop: rollout, teacher, loss, step; what it logs, how it is evaluated, and what a run leaves behind.

`main` is the command over it, `train` the same from a recipe that is read; both bring the planner along, for
`--explain`, and wait until asked for.
"""

from typing import TYPE_CHECKING

from vopd_recipes.exports import on_demand
from vopd_recipes.training.agreement import first_gap, largest_gap
from vopd_recipes.training.announcement import COMMAND
from vopd_recipes.training.run import finish_run, publishing, start_run
from vopd_recipes.training.trainer import TrainingStopped, VOPDTrainer

if TYPE_CHECKING:
    from vopd_recipes.training.command import build_trainer, description, leave_the_group, main, train

__getattr__ = on_demand(__name__, "command")
