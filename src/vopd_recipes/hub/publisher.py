"""A run publishes itself while it trains: every save a branch `step-00000100`, the final model `main`.

The training process only puts links into a queue on disk (`queue.py`); a process of its own uploads them
(`upload.py`). So training never waits for the Hub and never fails by it, and what was not up when a process died
goes up at the next start, or by `python scripts/publish.py RUN_DIR`. transformers' own `push_to_hub` is another thing:
one branch, blocking, and an exception in the Hub's client is the end of the training.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from vopd_recipes.console import screen
from vopd_recipes.files import complete_checkpoints, write_text
from vopd_recipes.hub.queue import MAIN, Queue, Target, step_revision
from vopd_recipes.hub.revisions import check_tag, without_addresses
from vopd_recipes.hub.upload import Pace, Uploader
from vopd_recipes.recipe import RecipeError

logger = logging.getLogger(__name__)

# In a checkpoint: for which repositories it was queued, one a line.
_QUEUED = "queued"
# How long the end of a run waits for uploads that are making their way.
_LAST_WAIT = 1800.0


def check_write_access(target: Target, answer: float = 20.0) -> None:
    """Before any training: may this machine's token write there? A Hub that does not answer is only a warning.

    Args:
        target: where the run is to go.
        answer: seconds that the Hub may take for each answer.

    Raises:
        RecipeError: it may not, or the name is none.
    """
    target.check_names()
    public = [] if target.private else ["--public"]
    command = _command(Path(), Pace(answer=answer), *public, "--check", *target.repo_ids)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=6 * answer)
    except subprocess.TimeoutExpired:
        logger.warning("the Hub did not answer: every save waits in the queue until it does")
        return
    said = done.stdout.strip().splitlines()
    if done.returncode == 2 and said:
        raise RecipeError(said[-1])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        logger.warning("whether the Hub takes this run could not be checked: %s", without_addresses(last)[:200])
    for line in said:
        logger.warning(line)


class OwnPublishing:
    """In front of `transformers.Trainer`: none of its own pushing runs, whatever `push_to_hub` says."""

    def init_hf_repo(self, token: str | None = None) -> None:
        """`check_write_access` makes the repository."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """`Publisher.save` queues it, once it is complete."""

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
        self._lost: list[str] = []  # rotation was faster
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start uploading, first what an earlier process has left: in the queue, or saved and not yet queued."""
        try:
            self.queue.sweep()
            for checkpoint in complete_checkpoints(self.queue.run):
                if not _queued_for(checkpoint) >= {*self.target.repo_ids}:
                    self._queue((checkpoint, step_revision(int(checkpoint.name.split("-")[1]))))
        except Exception as error:  # a folder that cannot be read, or whatever it is: the training continues
            logger.warning("what an earlier process has left is not queued for the Hub: %s", _why(error))
        self._keep_uploading()

    def save(self, checkpoint: Path, step: int) -> None:
        """Queue a complete checkpoint; whatever goes wrong is logged, and tried again at the next save."""
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
        try:
            self._end_uploader(wait)
            left = [*self.queue.left(), *(revision for _, revision in self._unqueued)]
        except Exception as error:  # the run is well, whatever became of its uploads
            left = [f"nobody can tell what ({_why(error)})"]
        if left:
            logger.warning("not on the Hub yet: %s; python scripts/publish.py %s", ", ".join(left), self.queue.run)
        if self._lost:
            logger.warning("never to be on the Hub, removed before there was room to queue: %s", ", ".join(self._lost))
        return not (left or self._lost)

    def _end_uploader(self, wait: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate("end\n", timeout=wait)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the merge that it may be waiting for
            process.wait()

    def _queue(self, *new: tuple[Path, str]) -> None:
        waiting, self._unqueued = [*self._unqueued, *new], []
        for path, name in waiting:
            try:
                if path != self.queue.run:
                    self.queue.check_room(path)
                self.queue.add(path, name, self.target)
                if path != self.queue.run:
                    write_text(path / _QUEUED, "\n".join(self.target.repo_ids))
            except Exception as error:  # a full disk, or whatever it is: the training continues
                if path.is_dir():
                    self._unqueued.append((path, name))
                elif name not in self._lost:
                    self._lost.append(name)
                logger.warning("%s could not be queued for the Hub: %s", name, _why(error))
        self._keep_uploading()

    def _keep_uploading(self) -> None:
        if self._process is None or self._process.poll() is not None:
            try:
                self._process = subprocess.Popen(
                    _command(self.queue.run, self.pace),
                    stdin=subprocess.PIPE,
                    stderr=screen.for_children,
                    text=True,
                    env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                    start_new_session=True,  # an interrupt at the keyboard ends the training; the queue is drained
                )
            except OSError as error:
                logger.warning("no uploader process: %s", error.strerror)


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _queued_for(checkpoint: Path) -> set[str]:
    marker = checkpoint / _QUEUED
    return {*marker.read_text(encoding="utf-8").split()} if marker.is_file() else set()


def _command(run: Path, pace: Pace, *more: str) -> list[str]:
    return [sys.executable, "-m", "vopd_recipes.hub", str(run), "--pace", *map(str, astuple(pace)), *more]


def check_publishable(run: Path) -> None:
    """Before a repository is made for it: does a run hold anything that could go up?

    Raises:
        RecipeError: neither a complete checkpoint nor a final model, and nothing waits in its queue.
    """
    if not (complete_checkpoints(run) or _has_final_model(run) or Queue(run).left()):
        raise RecipeError(
            f"{run}: there is nothing to publish: no complete checkpoint, no final model, nothing queued; wait for "
            "the run's first save, or name another run"
        )


def _has_final_model(run: Path) -> bool:
    return (run / "config.json").is_file() or (run / "adapter_config.json").is_file()


def publish_run(run: Path, target: Target, api: HfApi, pace: Pace, tag: str | None = None) -> None:
    """Queue every complete checkpoint and the final model of a run, and upload what is queued. Harmless to repeat.

    Args:
        run: its folder.
        target: where it goes; entries queued before keep theirs.
        api: the Hub.
        pace: of the retries while the Hub is away.
        tag: name of the release, if `run` holds a final model.

    Raises:
        RecipeError: there is nothing to publish, or something is not up and trying again would not help; `tag` is
            another release's.
    """
    check_publishable(run)
    if tag is not None:
        check_tag(api, target.repo_id, tag, run)
    queue = Queue(run)
    with queue.lock():
        try:
            for checkpoint in complete_checkpoints(run):
                queue.add(checkpoint, step_revision(int(checkpoint.name.split("-")[1])), target)
            if _has_final_model(run):
                queue.add(run, MAIN, target, tag)
        except (OSError, ValueError) as error:  # a full disk, a damaged file
            raise RecipeError(f"{run}: cannot be queued for the Hub: {_why(error)}") from None
        uploader = Uploader(queue, api, pace)
        while not uploader.attempt() and uploader.away:
            logger.warning("the next attempt is in %.0f s; what is not up stays in the queue", uploader.pause)
            time.sleep(uploader.pause)
    if left := queue.left():
        raise RecipeError(f"not on the Hub yet: {', '.join(left)}; the reasons stand above, the same command resumes")
