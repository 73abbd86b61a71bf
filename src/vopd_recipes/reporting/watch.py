"""A page that follows runs while they train: written anew whenever their logs have grown, until all are finished.

Each time the page is written whole, so a browser never finds half of one; it loads the page again by itself, by a
`<meta http-equiv="refresh">` that only a page of unfinished runs has. Nothing listens on a port.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from vopd_recipes.files import METRICS, RunError
from vopd_recipes.reporting.page import check_output, write_report
from vopd_recipes.reporting.runs import check_is_run, is_finished


def watch_report(folders: Sequence[Path], path: Path, seconds: int, say: Callable[[str], None]) -> None:
    """Keep the page of some runs as they are, until the last of them has finished or somebody interrupts it.

    Args:
        folders: of runs that have begun.
        path: where the page goes.
        seconds: between two looks at the files; a browser looks as often.
        say: prints a line.

    Raises:
        RunError: a folder that is no run, a path that is no file's, or runs that have finished and cannot be read.
        KeyboardInterrupt: at Ctrl-C, after a last page that no longer refreshes.
    """
    check_output(path)
    for folder in folders:
        check_is_run(folder)
    try:
        _follow(folders, path, seconds, say)
    except KeyboardInterrupt:
        with suppress(RunError):
            write_report(folders, path, live=True)
        raise


def _follow(folders: Sequence[Path], path: Path, seconds: int, say: Callable[[str], None]) -> None:
    seen, said = None, ""
    while not all(map(is_finished, folders)):
        sizes = [_size(folder / METRICS) for folder in folders]
        if sizes != seen:
            line = f"{path}: open it; it is renewed every {seconds} s until the runs have finished"
            try:
                write_report(folders, path, live=True, refresh=seconds)
            except RunError as error:  # nothing logged yet, or a checkpoint that went while it was read
                line = f"waiting: {error}"
            if line != said:
                say(line)
            seen, said = sizes, line
        time.sleep(seconds)
    write_report(folders, path, live=True)


def _size(path: Path) -> int:
    """In bytes; 0 where there is none yet. A log only grows, and begins anew where its run does."""
    return path.stat().st_size if path.is_file() else 0
