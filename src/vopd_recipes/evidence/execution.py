"""Runs are trained: several at a time, resumable, each on its own.

A run is the training command itself in a process of its own, so that it is what a user would get. A run that is done
is not done again, an interrupted one resumes from its last checkpoint, and one that fails costs no other.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

from vopd_recipes.evidence.outcome import Run
from vopd_recipes.recipe import RecipeError

LOCK = ".lock"
_PATIENCE = 20.0  # seconds between asking a process to end and ending it


@contextmanager
def locked(output: Path) -> Iterator[int]:
    """One comparison at a time in a folder; yields the lock's file descriptor, which its runs inherit.

    The lock is the open file's: it ends with the last process that holds it, however that ends, so that nobody trains
    into a folder whose runs have outlived the command that started them.

    Raises:
        RecipeError: another one is at work there.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"--output: {output}: another comparison, or a run it left behind, is at work there; wait for it, or "
                "name another folder"
            ) from None
        yield lock.fileno()


@dataclass
class _Processes:
    """The runs that are under way.

    Args:
        recipe: of all.
        flags: for all.
        threads: of each.
        lock: file descriptor that they inherit.
    """

    recipe: Path
    flags: Sequence[str]
    threads: int
    lock: int
    _running: set[subprocess.Popen] = field(default_factory=set)
    _gate: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def train(self, run: Run) -> str | None:
        """Train a run to its end; why it failed, or `None`."""
        command = [sys.executable, "-P", "-m", "vopd_recipes.training"]  # -P: not what lies in the current folder
        words = [*command, str(self.recipe), *self.flags, *run.flags]
        with run.log.open("ab", buffering=0) as log:  # behind what it printed before it was interrupted
            log.write(f"$ {shlex.join(words)}\n".encode())
            start = log.tell()
            process = self._start(words, log)
            if process is None:
                return "not started"
            code = process.wait()
        with self._gate:
            self._running.discard(process)
        return None if code == 0 and run.done else _last_line(run.log, start)

    def _start(self, words: list[str], log: IO[bytes]) -> subprocess.Popen | None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with self._gate:
            if self._stopped:
                return None
            process = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=[self.lock]
            )
            self._running.add(process)
        return process

    def stop(self) -> None:
        """Start nothing more, and end what runs."""
        with self._gate:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def execute(runs: Sequence[Run], recipe: Path, flags: Sequence[str], jobs: int, lock: int) -> dict[Run, str]:
    """Train what is not done yet; the runs that failed, with the reason, the last line each printed.

    Args:
        runs: all of them.
        recipe: of all.
        flags: for all, `--field value`.
        jobs: how many run at a time; the cores are divided among them.
        lock: of `locked`.

    Raises:
        KeyboardInterrupt: at an interrupt, after every run has ended.
    """
    waiting = [run for run in runs if not run.done]
    processes = _Processes(recipe, flags, max(1, len(os.sched_getaffinity(0)) // jobs), lock)
    failed: dict[Run, str] = {}
    with (
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(runs), initial=len(runs) - len(waiting), desc="Runs", unit="run") as bar,
    ):
        started = {pool.submit(processes.train, run): run for run in waiting}
        try:
            for future in as_completed(started):
                if (reason := _reason(future)) is not None:
                    failed[started[future]] = reason
                bar.update()
                bar.set_postfix_str(f"{len(failed)} failed" if failed else "")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
    return failed


def _reason(future: Future[str | None]) -> str | None:
    """Why a run failed; a full disk, or a file in the way of its log, is a reason like any other."""
    try:
        return future.result()
    except OSError as error:
        return str(error)


def _last_line(log: Path, start: int) -> str:
    """The last error, or else the last line, that was printed from byte `start` on."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or ["it printed nothing"])[-1].strip()
