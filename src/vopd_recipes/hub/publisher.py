"""A run publishes itself while it trains: every save a branch `step-00000100`, the final model `main`.

The training process only puts links into a queue on disk (`queue.py`); a process of its own uploads them
(`upload.py`). So training never waits for the Hub and never fails by it, and what was not up when a process died
goes up at the next start, or by `python scripts/publish.py RUN_DIR`. transformers' own `push_to_hub` is another thing:
one branch, blocking, and an exception in the Hub's client is the end of the training.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from vopd_recipes.checkpoints import complete_checkpoints
from vopd_recipes.hub.queue import MAIN, Queue, Target, step_revision
from vopd_recipes.hub.upload import Pace, Uploader
from vopd_recipes.recipe_text import RecipeError
from vopd_recipes.whole import written_whole

logger = logging.getLogger(__name__)

# In a checkpoint: for which repository it was queued.
_QUEUED = "queued"
# How long the end of a run waits for uploads that are making their way.
_LAST_WAIT = 1800.0


def check_write_access(target: Target, answer: float = 20.0) -> None:
    """Before any training: may this machine's token write there? A Hub that does not answer is only a warning.

    Args:
        target: where the run is to go.
        answer: seconds that the Hub may take for each answer.

    Raises:
        RecipeError: it may not.
    """
    public = [] if target.private else ["--public"]
    command = _command(Path(), Pace(answer=answer), *public, "--check", *target.repo_ids)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=6 * answer)
    except subprocess.TimeoutExpired:
        logger.warning("the Hub did not answer: every save waits in the queue until it does")
        return
    said = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 2:
        raise RecipeError(said)
    if said or done.returncode:
        logger.warning("the Hub is away (%s): every save waits in the queue until it is back", said or "no answer")


class OwnPublishing:
    """In front of `transformers.Trainer`: none of its own pushing runs, whatever `push_to_hub` says."""

    def init_hf_repo(self, token: str | None = None) -> None:
        """`check_write_access` makes the repository."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """`Publisher.save` queues it, once it is whole."""

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """`Publisher.finish` queues the final model."""


class Publisher:
    """Queues what a run saves and keeps an uploader process going. On one process of the run.

    Args:
        run: the run's folder.
        target: where it goes.
        pace: of the retries.
    """

    def __init__(self, run: Path, target: Target, pace: Pace | None = None) -> None:
        self.queue = Queue(run)
        self.target, self.pace = target, pace or Pace()
        self._unqueued: list[tuple[Path, str]] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start uploading, first what an earlier process has left: in the queue, or saved and not yet queued."""
        self.queue.sweep()
        for checkpoint in complete_checkpoints(self.queue.run):
            if _queued_for(checkpoint) != self.target.repo_id:
                self._queue((checkpoint, step_revision(int(checkpoint.name.split("-")[1]))))
        self._keep_uploading()

    def save(self, checkpoint: Path, step: int) -> None:
        """Queue a whole checkpoint; whatever goes wrong is logged, and tried again at the next save."""
        self._queue((checkpoint, step_revision(step)))

    def retry(self) -> None:
        """Queue what could not be queued before, now that rotation may have made room."""
        if self._unqueued:
            self._queue()

    def finish(self) -> bool:
        """Queue the final model and wait while uploads go well; whether everything is up."""
        self._queue((self.queue.run, MAIN))
        return self.close()

    def close(self, wait: float = _LAST_WAIT) -> bool:
        """End the uploader after one last attempt at what is left; whether everything is up.

        Args:
            wait: seconds after which the uploader is ended all the same.
        """
        process, self._process = self._process, None
        if process is not None:
            try:
                process.communicate("end\n", timeout=wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        left = [entry.revision for entry in self.queue.entries()]
        if left or self._unqueued:
            names = ", ".join([*left, *(revision for _, revision in self._unqueued)])
            logger.warning("not on the Hub yet: %s; python scripts/publish.py %s", names, self.queue.run)
        return not (left or self._unqueued)

    def _queue(self, *new: tuple[Path, str]) -> None:
        waiting, self._unqueued = [*self._unqueued, *new], []
        for path, name in waiting:
            try:
                if path != self.queue.run:
                    self.queue.check_room(path)
                self.queue.add(path, name, self.target)
                if path != self.queue.run:
                    with written_whole(path / _QUEUED) as temporary:
                        temporary.write_text(self.target.repo_id, encoding="utf-8")
            except Exception as error:  # a full disk, or whatever it is: the training goes on
                if path.is_dir():
                    self._unqueued.append((path, name))
                logger.warning("%s could not be queued for the Hub: %s", name, getattr(error, "strerror", 0) or error)
        self._keep_uploading()

    def _keep_uploading(self) -> None:
        if self._process is None or self._process.poll() is not None:
            try:
                self._process = subprocess.Popen(
                    _command(self.queue.run, self.pace),
                    stdin=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                    start_new_session=True,  # an interrupt at the keyboard ends the training; the queue is worked off
                )
            except OSError as error:
                logger.warning("no uploader process: %s", error.strerror)


def _queued_for(checkpoint: Path) -> str | None:
    marker = checkpoint / _QUEUED
    return marker.read_text(encoding="utf-8") if marker.is_file() else None


def _command(run: Path, pace: Pace, *more: str) -> list[str]:
    return [sys.executable, "-m", "vopd_recipes.hub", str(run), "--pace", *map(str, astuple(pace)), *more]


def publish_run(run: Path, target: Target, api: HfApi, pace: Pace, tag: str | None = None) -> None:
    """Queue every whole checkpoint and the final model of a run, and upload what is queued. Harmless to repeat.

    Args:
        run: its folder.
        target: where it goes; entries queued before keep theirs.
        api: the Hub.
        pace: of the retries while the Hub is away.
        tag: name of the release, if `run` holds a final model.

    Raises:
        RecipeError: something is not up, and trying again would not help.
    """
    queue = Queue(run)
    with queue.lock():
        try:
            for checkpoint in complete_checkpoints(run):
                queue.add(checkpoint, step_revision(int(checkpoint.name.split("-")[1])), target)
            if (run / "config.json").is_file() or (run / "adapter_config.json").is_file():
                queue.add(run, MAIN, target, tag)
        except OSError as error:
            raise RecipeError(f"{run}: cannot be queued for the Hub: {error.strerror or error}") from None
        uploader = Uploader(queue, api, pace)
        while not uploader.attempt() and uploader.away:
            logger.warning("the next attempt is in %.0f s; what is not up stays in the queue", uploader.pause)
            time.sleep(uploader.pause)
    if left := [entry.revision for entry in queue.entries()]:
        raise RecipeError(f"not on the Hub yet: {', '.join(left)}; the reasons stand above, the same command goes on")
