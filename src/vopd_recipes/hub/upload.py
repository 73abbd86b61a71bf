"""Drains a run's queue, oldest entry first, with a longer wait after each failure.

Whatever goes wrong with an entry, it stays and is tried again; while the Hub is away the others wait with it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers

from vopd_recipes.hub.card import Published, model_card
from vopd_recipes.hub.queue import MAIN, Entry, Queue
from vopd_recipes.hub.revisions import (
    MANIFEST,
    cause_of,
    hub_is_away,
    licence_of,
    put_revision,
    reason,
    release,
)
from vopd_recipes.recipe import RecipeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How patient the uploader is, in seconds.

    Args:
        first_wait: after the first failure; it doubles with each.
        longest_wait: the end of the doubling.
        answer: how long the Hub may take for an answer, or for a part of an upload.
    """

    first_wait: float = 10.0
    longest_wait: float = 300.0
    answer: float = 300.0


class Uploader:
    """Drains a run's queue.

    Args:
        queue: of the run.
        api: the Hub.
        pace: of the retries.
    """

    def __init__(self, queue: Queue, api: HfApi, pace: Pace) -> None:
        self.queue, self.api, self.pace = queue, api, pace
        self.away = False  # whether the last attempt failed by a Hub that may be back
        self.pause = 0.0  # seconds to wait before the next attempt
        self._failures = 0  # attempts in a row
        self._said: dict[str, str] = {}  # what was last logged about an entry

    def work(self, wait: Callable[[float], bool]) -> bool:
        """Upload until `wait(seconds)` is `False`: nothing more will come; whether everything is up then."""
        while self._until(wait):
            self.attempt()
        return self.attempt()

    def _until(self, wait: Callable[[float], bool]) -> bool:
        """Wait the pause out; without one, wait for an entry."""
        end = time.monotonic() + self.pause
        while time.monotonic() < end or not self.queue.entries():
            if not wait(0.5):
                return False
        return wait(0.0)

    def attempt(self) -> bool:
        """Try every entry once, oldest first; whether all went up."""
        complete, asked = True, 0.0
        for entry in self.queue.entries():
            try:
                start = time.monotonic()
                done = self._put(entry)
                self.queue.discard(entry)
                logger.info("%s: %s (%.0f s)", entry.target.repo_id, done, time.monotonic() - start)
            except Exception as error:  # whatever it is, the entry stays and is tried again
                complete, self.away, asked = False, hub_is_away(error), max(asked, _asked_to_wait(error))
                self._say(entry, reason(error))
                if self.away:
                    break
                # Else every entry that fails keeps a model's size of disk; while the Hub is away only one does.
                shutil.rmtree(entry.folder / "merged", ignore_errors=True)
        self._failures = 0 if complete else self._failures + 1
        doubled = self.pace.first_wait * 2 ** min(self._failures - 1, 16)
        self.pause = 0.0 if complete else max(asked, min(self.pace.longest_wait, doubled))
        return complete

    def _say(self, entry: Entry, why: str) -> None:
        if self._said.get(entry.folder.name) != why:
            self._said[entry.folder.name] = why
            logger.warning("%s: %s is not up yet: %s", entry.target.repo_id, entry.revision, why)

    def _put(self, entry: Entry) -> str:
        """Everything an entry asks for; each part is harmless to repeat."""
        done = [self._put_one(entry, entry.target.repo_id, entry.folder)]
        if entry.target.merge and entry.base is not None:
            folder = _merge(entry)
            done.append("merged " + self._put_one(entry, entry.target.merged_repo_id, folder))
        return ", ".join(done)

    def _put_one(self, entry: Entry, repo_id: str, folder: Path) -> str:
        _check_readable(folder)
        about = Published(folder / "files", repo_id, entry.revision)
        about = replace(about, licence=licence_of(self.api, about.read("recipe.yaml").get("model_name_or_path")))
        step = about.read("trainer_state.json").get("global_step")
        message = f"step {step}" if entry.revision != MAIN else f"final model, step {step}"
        card, private = model_card(about), entry.target.private
        new = put_revision(self.api, repo_id, entry.revision, folder, card, message, private)
        done = f"{entry.revision} {'published' if new else 'was there already'}"
        return f"{done}, release {release(self.api, repo_id, entry.tag)}" if entry.revision == MAIN else done


def _merge(entry: Entry) -> Path:
    """The entry's adapter merged into its base: an upload folder beside its own."""
    folder = entry.folder / "merged"
    if not (folder / "files").is_dir():
        assert entry.base is not None
        words = [str(entry.files), str(folder / "files"), *(word for word in entry.base if word)]
        done = subprocess.run(
            [sys.executable, "-m", "vopd_recipes.hub.merge", *words],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the merge failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return folder


def _check_readable(folder: Path) -> None:
    """Else a damaged file of ours would pass for an answer of the Hub that is none.

    Raises:
        RecipeError: an upload folder's JSON cannot be read.
    """
    for path in [*folder.glob(MANIFEST), *sorted((folder / "files").glob("*.json"))]:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise RecipeError(f"{path} is damaged; remove {folder} and publish the run again") from None


def _asked_to_wait(error: Exception) -> float:
    """Seconds that a rate limit asks for, by `Retry-After` or by the Hub's own `ratelimit` header."""
    error = cause_of(error)
    if not isinstance(error, HfHubHTTPError) or isinstance(error, LocalEntryNotFoundError):
        return 0.0
    headers = error.response.headers
    after, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers)
    until_reset = limit.reset_in_seconds if limit is not None and limit.remaining == 0 else 0
    return float(max(int(after) if after.isdigit() else 0, until_reset))
