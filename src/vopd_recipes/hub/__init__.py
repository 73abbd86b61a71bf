"""To the Hub and back: a run publishes itself while it trains, results follow, anyone fetches any step.

Out: scrub (what may leave) → queue (what waits on disk) → revisions, card (one commit on a branch) → merge, upload
(`python -m vopd_recipes.hub` is the process that uploads) → publisher (what a run talks to), evaluations (their
results). Back: download, sweep. Only `merge` imports torch, and it is a process of its own: the uploader starts in a
second and stays small beside the training.
"""

from vopd_recipes.hub.publisher import OwnPublishing, Publisher, check_write_access, publish_run
from vopd_recipes.hub.queue import Target
