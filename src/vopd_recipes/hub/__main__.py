"""The process that uploads: `python -m vopd_recipes.hub RUN_DIR`, started by the training process.

It is a process and not a thread so that nothing of it can reach the training: no shared HTTP client, no interpreter
lock held while gigabytes are hashed, no memory of a merge, no exit that waits for a socket. It ends when its parent
says so or is gone, after one last attempt at everything that is left. What then is not up stays in the queue.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import sys
import time
from functools import partial
from pathlib import Path

from vopd_recipes.hub.queue import Queue
from vopd_recipes.hub.revisions import check_access, hub_client
from vopd_recipes.hub.upload import Pace, Uploader
from vopd_recipes.recipe import RecipeError


def _parent_says(parent: int, seconds: float) -> bool:
    """Wait that long; `False` at once when the training process has closed the pipe, has written to it, or is gone."""
    end = time.monotonic() + seconds
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], max(0.0, min(1.0, end - time.monotonic())))
        if readable or os.getppid() != parent:
            return False
        if time.monotonic() >= end:
            return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pace", type=float, nargs=3, required=True, help="the fields of Pace")
    parser.add_argument("--check", metavar="REPO_ID", nargs="+", help="only whether this token may write there")
    parser.add_argument("--public", action="store_true", help="a repository that --check creates")
    words = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parent, pace = os.getppid(), Pace(*words.pace)
    api = hub_client(pace.answer)
    if words.check:
        try:
            warnings = [line for repo_id in words.check for line in check_access(api, repo_id, not words.public)]
        except RecipeError as error:
            print(error)
            sys.exit(2)
        print("\n".join(dict.fromkeys(warnings)))  # a Hub that is away is so for both
        return
    os.nice(10)  # training first
    queue, wait = Queue(words.run), partial(_parent_says, parent)
    with queue.lock(wait) as ours:  # another process may be at it, `scripts/publish.py`
        complete = ours and Uploader(queue, api, pace).work(wait)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
