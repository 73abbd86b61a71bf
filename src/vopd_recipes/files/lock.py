"""One process at a time works in a folder.

The lock is the system's, on a file `.lock` in the folder, so that a process which is killed does not leave it behind.
It is a record lock (`lockf`): the process that took it has it alone, and a worker forked from a run that was killed
since does not keep the next run out, as it would with `flock`. Network file systems pass it on to other machines.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from vopd_recipes.recipe import RecipeError

logger = logging.getLogger(__name__)


@contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; it is made, and goes again where nothing was written into it.

    Raises:
        RecipeError: another process has it, or nothing can be written there.
    """
    path = folder / ".lock"
    file = _locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is ours: who has opened it by now sees that it has no name any more
        with suppress(OSError):
            folder.rmdir()
        file.close()


def _locked(path: Path) -> TextIO:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            raise RecipeError(f"output_dir: {path.parent}: {error.strerror}; name another folder") from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "?"
            file.close()
            raise RecipeError(
                f"output_dir: {path.parent}: another run (process {holder}) is at work there; wait for its end, or "
                "name another output_dir"
            ) from None
        except OSError as error:  # a file system without locks
            logger.warning("%s cannot be locked (%s): start no second run there", path.parent, error.strerror)
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                file.truncate(0)
                file.write(f"{os.getpid()}\n")
                file.flush()
                return file
        file.close()  # its last owner took it away in between: another file has that name, or none
