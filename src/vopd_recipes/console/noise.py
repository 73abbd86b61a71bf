"""What launchers and libraries print goes into a file: DeepSpeed alone says 264 lines in two steps.

The process's file descriptors 1 and 2 are led there, so that C++ and child processes are caught as well; the screen
keeps copies of what they were. Until a run has a folder the file is a nameless one. An exception puts everything back
before its traceback is printed, and a signal that kills the process prints its stack on the screen: an error is seen.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, TextIO

from vopd_recipes.console.screen import OnScreen, screen

LOGS = "logs"


class Noise:
    """From the block's begin on, only the screen speaks; of several processes, the first one's.

    Args:
        rank: of this process.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._path: Path | None = None

    def __enter__(self) -> Noise:
        self._own = os.dup(1), os.dup(2)
        screen.use(*map(_text, self._own))
        faulthandler.enable(self._own[1], all_threads=False)
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # until there is a folder
        self._lead(self._file.fileno(), self._file.fileno())
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", force=True)
        if self._rank == 0:
            logging.getLogger().addHandler(OnScreen())
        return self

    def keep(self, output_dir: Path) -> Path:
        """From now on in a file of the run's folder, with what was caught so far.

        Returns:
            The file.
        """
        path = self._path = output_dir / LOGS / f"rank-{self._rank}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        _flush()
        before, self._file = self._file, path.open("ab", buffering=0)
        before.seek(0)
        self._file.write(before.read())
        before.close()
        self._lead(self._file.fileno(), self._file.fileno())
        return path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """An end that was said on the screen leaves the noise of leaving aside, too."""
        if kind is None or issubclass(kind, SystemExit):
            return
        self._lead(*self._own)
        screen.use(None, None)
        if self._path is None:  # nobody could read it anywhere else
            self._file.seek(0)
            sys.stderr.write(self._file.read().decode(errors="replace"))
        else:
            print(f"what libraries have printed: {self._path}", file=sys.stderr)

    @staticmethod
    def _lead(out: int, errors: int) -> None:
        _flush()
        os.dup2(out, 1)
        os.dup2(errors, 2)


def _text(descriptor: int) -> TextIO:
    """Open for good: a character that a terminal lacks is no reason to stop."""
    return os.fdopen(descriptor, "w", buffering=1, encoding=sys.stdout.encoding, errors="replace", closefd=False)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)  # C's own buffers, which would be written to where the descriptor leads by then
