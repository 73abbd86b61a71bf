"""Where a run speaks to the person who watches it: what it is, a line a step, what came of it, and nothing else.

The screen is a terminal or the text of a log (`screen`); what others print goes into a file (`noise`). Numbers become
lines of less than 100 columns (`lines`) while the trainer runs (`progress`); all that they leave out is a file, too.
"""

from typing import TYPE_CHECKING

from vopd_recipes.console.lines import WIDTH, Rows, before_and_after, duration
from vopd_recipes.console.noise import LOGS, Noise
from vopd_recipes.console.screen import screen
from vopd_recipes.exports import on_demand

if TYPE_CHECKING:
    from vopd_recipes.console.progress import Progress

__getattr__ = on_demand(__name__, "progress")
