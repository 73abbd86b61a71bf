"""To the Hub and back: a run publishes itself while it trains, results follow, anyone fetches any step.

Out: scrub (what may leave) → queue (what waits on disk) → revisions, card (one commit on a branch) → merge, upload
(`python -m vopd_recipes.hub` is the process that uploads) → publisher (what a run talks to), evaluations (their
results). Back: download, sweep. Only `merge` imports torch, and it is a process of its own: the uploader starts in a
second and stays small beside the training. For the same reason `sweep`, which draws, waits until it is asked for.
"""

from typing import TYPE_CHECKING

from vopd_recipes.exports import on_demand
from vopd_recipes.hub.download import download, list_revisions
from vopd_recipes.hub.evaluations import publishable_results, push_results
from vopd_recipes.hub.publisher import OwnPublishing, Publisher, check_publishable, check_write_access, publish_run
from vopd_recipes.hub.queue import Target
from vopd_recipes.hub.revisions import check_access, check_token, hub_client, hub_is_away, reason
from vopd_recipes.hub.scrub import scrub
from vopd_recipes.hub.upload import Pace

if TYPE_CHECKING:
    from vopd_recipes.hub.sweep import plot_sweep, sweep_steps

__getattr__ = on_demand(__name__, "sweep")
